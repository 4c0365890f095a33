"""Looking at the data of a system before it is trained."""

from __future__ import annotations

import warnings

from ..data.overview import damage, gaps, overview
from .assembly import Assembly


def check_data(system: Assembly) -> tuple[list[str], list[str]]:
    """Read all data of a system once. Its progress goes to :func:`partita.core.progress.reporting`.

    Args:
        system: Any system with data.

    Returns:
        Lines on what there is and what is missing of it, and a line on each damaged piece.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # what was skipped is among the damaged
        system.source.setup()
    return [*overview(system.source), *gaps(system.source, system.reads)], damage(system.source)
