"""Chords of files and of progressions, as the rows of the field ``chords``."""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Iterable, Sequence
from itertools import count
from pathlib import Path
from typing import Any

from ..core.chord_names import chord_label
from ..errors import PartitaError, printable
from ..limits import LARGEST_SIDECAR
from ..storage.untrusted import read_text
from .fields.base import parse_value

ChordRows = list[tuple[float, float, str]]

SUFFIXES = (".lab", ".txt", ".json", ".csv", ".tsv")
"""Endings of the names of files of chords."""

_MOST_NAMED = 12


def read_chords(path: Path) -> ChordRows:
    """Return the rows (start, end, chord) of a file, in seconds.

    Lines of a ``.lab`` or ``.txt`` file are start, end and chord, separated by spaces or tabs. A ``.json`` file is a
    list of such rows, or an object with the key ``chords``. A ``.csv`` or ``.tsv`` file is a table of them, which can
    have a header. Chords are in the notation of Harte (``A:min``) or of chord charts (``Am``).

    Raises:
        PartitaError: The file cannot be read, or holds something else. Chords that cannot be parsed are all named.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise PartitaError(f"{path}: a file of chords is called {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}")
    try:
        text = read_text(path, LARGEST_SIDECAR).removeprefix("\ufeff")
        rows = _json(text) if path.suffix.lower() == ".json" else _table(text, path.suffix.lower())
        times, names = [row[:2] for row in rows], [str(row[2]) for row in rows]
    except (ValueError, TypeError, LookupError, csv.Error, RecursionError):
        raise PartitaError(f"{path}: expected rows of start, end and chord, such as 0 1.5 C:maj") from None
    labels = parse_labels(names, str(path))
    try:
        return parse_value("chords", [(*span, label) for span, label in zip(times, labels, strict=True)])
    except ValueError as error:
        raise PartitaError(f"{path}: {error}") from None


def parse_labels(names: Iterable[str], where: str) -> list[str]:
    """Return chords in the notation of Harte.

    Raises:
        PartitaError: Some of them are no chords. The message names them all.
    """
    labels, wrong = [], []
    for name in names:
        try:
            labels.append(chord_label(name))
        except ValueError:
            wrong.append(printable(name[:40]))
    if wrong:
        wrong = list(dict.fromkeys(wrong))
        more = f" and {len(wrong) - _MOST_NAMED} more" if len(wrong) > _MOST_NAMED else ""
        named = ", ".join(repr(name) for name in wrong[:_MOST_NAMED])
        raise PartitaError(f"{where}: no chords: {named}{more}. Write chords as C, Am, F#m7b5, G/B, Bb:min7 or N")
    return labels


def spread(progression: str, seconds: float, tempo: float | None = None) -> tuple[ChordRows, float]:
    """Return the rows of a progression such as ``C G Am F``, and the seconds that it takes once.

    Args:
        progression: Chords, separated by spaces, commas or bars (``|``).
        seconds: Length of the clip, over which the chords are spread evenly.
        tempo: Beats per minute. Each chord then lasts a bar of four beats, and the progression is repeated up to the
            end of the clip.

    Raises:
        PartitaError: The progression is empty, or some of it are no chords.
    """
    labels = parse_labels([part for part in re.split(r"[\s,|]+", progression) if part], "chords")
    if not labels:
        raise PartitaError("chords: there are none: give a progression such as 'C G Am F', or a file")
    length = seconds / len(labels) if tempo is None else 240 / tempo
    rows: ChordRows = []
    for i in range(len(labels)) if tempo is None else count():
        start, end = i * length, min(seconds, (i + 1) * length)
        if not start < end - 1e-6:
            break
        rows.append((round(start, 6), round(end, 6), labels[i % len(labels)]))
    return rows, len(labels) * length


def _json(text: str) -> Sequence[Any]:
    values = json.loads(text)
    rows = values["chords"] if isinstance(values, dict) else values
    return [_row(row) for row in rows]


def _table(text: str, suffix: str) -> Sequence[Any]:
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    if suffix in (".lab", ".txt"):
        return [_row(line.split()) for line in lines]
    head = lines[0] if lines else ""
    rows = list(csv.reader(lines, delimiter="\t" if suffix == ".tsv" else max(",;", key=head.count)))
    columns = (0, 1, 2)
    names = [cell.strip().lower() for cell in rows[0]] if rows else []
    if names and not _is_number(names[0]):
        columns = (names.index("start"), names.index("end"), names.index("chord" if "chord" in names else "label"))
        rows = rows[1:]
    return [_row([row[column] for column in columns]) for row in rows]


def _row(row: Sequence[Any]) -> tuple[float, float, str]:
    start, end, label = row
    if not isinstance(label, str):
        raise TypeError
    return float(start), float(end), label


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
