"""The scores of an evaluation as a table for a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from ..core.console import columns
from .rows import clips_text
from .score import SUBJECTS


def score_table(rows: Mapping[str, Mapping[str, Any]]) -> Table:
    """All scores in a table for a terminal, in sections by what they measure.

    Args:
        rows: The ``metrics`` of an evaluation.
    """
    numbers = ("generated", "95 %", "real clips", "coded", "chance")
    table = columns("metric", *numbers, "better", "clips", right=(*numbers, "clips"))
    for subject in SUBJECTS:
        own = {name: row for name, row in rows.items() if row["subject"] == subject}
        if own and table.row_count:
            table.add_section()
            table.add_row(f"{SUBJECTS[subject].title}:")
        for name, row in own.items():
            interval = f"{row['low']:.3f} – {row['high']:.3f}" if "low" in row else ""
            beside = [f"{row[key]:.3f}" if key in row else "" for key in ("real", "codec", "chance")]
            beside[-1] += "" if row.get("beats_chance", True) else " (not beaten)"
            table.add_row(name, f"{row['value']:.3f}", interval, *beside, row["better"], clips_text(row))
    return table
