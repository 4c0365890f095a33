"""The scores of an evaluation as a table in the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from ..core.console import columns
from ..metrics.significance import p_relation
from .rows import below_required, clips_text
from .score import SUBJECTS


def score_table(rows: Mapping[str, Mapping[str, Any]]) -> Table:
    """Return a table of all scores, with a section for each subject.

    Args:
        rows: The ``metrics`` of an evaluation.
    """
    shown = next((subject for subject in SUBJECTS if any(row["subject"] == subject for row in rows.values())), "system")
    numbers = (SUBJECTS[shown].column, "95 %", "real clips", "coded", "chance")
    table = columns("metric", *numbers, "better", "clips", right=(*numbers, "clips"))
    for subject in SUBJECTS:
        own = {name: row for name, row in rows.items() if row["subject"] == subject}
        if own and table.row_count:
            table.add_section()
            table.add_row(f"{SUBJECTS[subject].title}:")
        for name, row in own.items():
            interval = f"{row['low']:.3f} – {row['high']:.3f}" if "low" in row else ""
            references = [f"{row[key]:.3f}" if key in row else "" for key in ("real", "codec", "chance")]
            references[0] += f" (below {row['required']:g})" if below_required(row) else ""
            references[-1] += "" if row.get("beats_chance", True) else " (not beaten)"
            references[-1] += f" (p {p_relation(row['p'])})" if "p" in row else ""
            table.add_row(name, f"{row['value']:.3f}", interval, *references, row["better"], clips_text(row))
    return table
