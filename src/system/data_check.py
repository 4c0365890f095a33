"""Looking at the data of a system before it is trained."""

from __future__ import annotations

import warnings
from collections.abc import Callable

from ..data.overview import damage, gaps, overview
from .assembly import Assembly


def check_data(
    system: Assembly, progress: Callable[[int, int], None] = lambda done, total: None
) -> tuple[list[str], list[str]]:
    """Read all data of a system once.

    Args:
        system: Any system with data.
        progress: Called with (pieces read, pieces in all).

    Returns:
        Lines on what there is and what is missing of it, and a line on each damaged piece.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # what was skipped is among the damaged
        system.source.setup()
    return [*overview(system.source), *gaps(system.source, system.reads)], damage(system.source, progress)
