"""Check of a system's data before training."""

from __future__ import annotations

import warnings

from ..data.overview import damage, overview, training_gaps
from .assembly import Assembly


def check_data(system: Assembly) -> tuple[list[str], list[str]]:
    """Read all data of a system once. Progress is reported to :func:`partita.core.progress.reporting`.

    Args:
        system: A system with data.

    Returns:
        Lines that describe the data and its missing fields, and a line for each damaged piece.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # skipped pieces are reported as damaged
        system.source.setup()
    return [*overview(system.source), *training_gaps(system.source, system.reads)], damage(system.source)
