"""Tables of results as CSV and Markdown."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..storage.files import replacing_file

Table = tuple[str, list[str], list[list[str]]]
"""Title, column names and rows of a table."""

MAX_COLUMNS = 6
"""Largest number of columns that fit on a screen, besides the column of labels."""


def fitted(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], most: int = MAX_COLUMNS) -> list[Table]:
    """Fit a table to a screen: transpose it if it is wider than long, and split it if it is still too wide.

    Args:
        title: Title of the table. If the table is split, a number is appended.
        columns: Names of the columns; the first one describes the labels of the rows.
        rows: Cells of each row, of which the first is the label.
        most: Largest number of columns besides the labels.

    >>> fitted("Scores", ["variant", "FAD", "KLD"], [["small", "2", "3"]])
    [('Scores', ['', 'small'], [['FAD', '2'], ['KLD', '3']])]
    >>> [columns for _, columns, _ in fitted("", ["", "a", "b", "c"], [["x", "1", "2", "3"]] * 3, most=2)]
    [['', 'a', 'b'], ['', 'c']]
    """
    lines = [list(columns), *map(list, rows)]
    if len(rows) < len(columns) - 1:
        lines = [list(column) for column in zip(*lines, strict=True)]
        lines[0][0] = ""
    starts = range(1, len(lines[0]), most)
    parts = [[[line[0], *line[start : start + most]] for line in lines] for start in starts]
    titles = [title] if len(parts) == 1 else [f"{title}, {i} of {len(parts)}" for i in range(1, len(parts) + 1)]
    return [(name, part[0], part[1:]) for name, part in zip(titles, parts, strict=True)]


def write_text(path: Path, text: str) -> None:
    """Write a text file, which is replaced as a whole."""
    with replacing_file(path) as new:
        new.write_text(text, encoding="utf-8")


def write_csv(path: Path, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Write a CSV file with a header, which is replaced as a whole."""
    with replacing_file(path) as new, new.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(rows)


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    r"""Return a table in Markdown.

    >>> print(markdown(["part", "kind"], [["a|b", "codec"]]))
    | part | kind |
    | --- | --- |
    | a\|b | codec |
    """
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(
        "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in line) + " |" for line in lines
    )
