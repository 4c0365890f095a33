"""Tables of results, as files and as text."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .files import replacing_file


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    with replacing_file(path) as new:
        new.write_text(text, encoding="utf-8")


def write_csv(path: Path, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Write a CSV file with a header, whole or not at all."""
    with replacing_file(path) as new, new.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(rows)


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    r"""A table in Markdown.

    >>> print(markdown(["part", "kind"], [["a|b", "codec"]]))
    | part | kind |
    | --- | --- |
    | a\|b | codec |
    """
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(
        "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in line) + " |" for line in lines
    )
