"""Annotations of audio files: rows of a JSONL or CSV manifest, and sidecar files."""

from __future__ import annotations

import csv
import difflib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

from ..core.registry import lookup, names
from ..errors import PartitaError, printable
from ..limits import LARGEST_SIDECAR
from ..storage.files import kind
from ..storage.untrusted import json_mapping, read_bytes
from .base import Split
from .fields.base import parse_value

FILE_KEYS = ("file", "path", "audio")
_SPLITS: dict[str, Split] = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
    "eval": "test",
}
_COMPUTED = ("audio", "id")
"""Fields that come from the audio file itself, and not from a manifest."""


def manifest_fields() -> dict[str, str]:
    """Return the fields that a manifest can carry, by each of their names and aliases."""
    own = {name: name for name in names("field") if name not in _COMPUTED}
    return own | {alias: name for name in own for alias in lookup("field", name).aliases}


def closest_field(key: str) -> str | None:
    """Return the field, ``split`` or file key that ``key`` probably misspells; ``None`` if there is none.

    >>> closest_field("txet"), closest_field("instrument"), closest_field("mood"), closest_field("text")
    ('text', 'instruments', None, None)
    """
    known = [*manifest_fields(), "split", *FILE_KEYS]
    if key in known:
        return None
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.75 if len(key) > 3 else 0.65)
    return close[0] if close and abs(len(close[0]) - len(key)) < 2 else None


def read_manifest(path: Path) -> Iterator[tuple[int, dict[str, Any] | PartitaError]]:
    """Yield the line number of each row, and its content or an error.

    Raises:
        PartitaError: The file cannot be opened, or is neither JSONL nor a table.
    """
    suffix = path.suffix.lower()
    if suffix not in (".jsonl", ".csv", ".tsv"):
        raise PartitaError(f"{path}: a manifest is a .jsonl, .csv or .tsv file")
    try:
        with path.open("rb") as start:
            encoding = "utf-16" if start.read(2) in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
        newline = None if suffix == ".jsonl" else ""
        # Bytes that are not UTF-8 invalidate their own row only, and may be part of a file name.
        with path.open(encoding=encoding, errors="surrogateescape", newline=newline) as file:
            if suffix == ".jsonl":
                for number, line in enumerate(file, 1):
                    if line.strip():
                        yield number, _json_object(line)
            else:
                yield from _table(file, suffix, path)
    except (OSError, UnicodeError) as error:
        raise PartitaError(f"cannot read the manifest {path}: {error}") from None


def read_sidecar(audio: Path) -> dict[str, Any]:
    """Return the fields in ``song.json`` and ``song.txt`` beside ``song.wav``; an empty mapping if neither exists.

    Raises:
        PartitaError: A sidecar file is damaged. The message does not name the audio file.
    """
    found: dict[str, Any] = {}
    for suffix in (".txt", ".json"):
        path = audio.with_suffix(suffix)
        if kind(path) != "file":  # also if the name exceeds the limit of the file system
            continue
        try:
            text = read_bytes(path, LARGEST_SIDECAR).decode("utf-8-sig")
        except (PartitaError, UnicodeDecodeError) as error:
            raise PartitaError(f"its sidecar file {printable(path.name)} cannot be read: {error}") from None
        fields = _json_object(text) if suffix == ".json" else {"text": text}
        if isinstance(fields, PartitaError):
            raise PartitaError(f"its sidecar file {printable(path.name)}: {fields}")
        captioned = any(manifest_fields().get(key) == "text" for key in fields)
        found = fields if captioned else found | fields  # a caption in song.json replaces the one in song.txt
    return found


def parse_row(raw: dict[str, Any]) -> tuple[dict[str, Any], Split | None]:
    """Return the parsed fields of a row, and the split that it names. Unknown keys are ignored.

    Raises:
        PartitaError: A value does not fit its field, or a key is a misspelled field.
    """
    fields: dict[str, Any] = {}
    split: Split | None = None
    known = manifest_fields()
    for key, value in raw.items():
        if value is None:
            continue
        if key == "split":
            split = _SPLITS.get(str(value).strip().lower())
            if split is None:
                given = repr(value[:60]) if isinstance(value, str) else "that"
                raise PartitaError(f"{key} cannot be {given}; expected one of {', '.join(_SPLITS)}")
            continue
        name = known.get(key)
        if name is None:
            if (meant := closest_field(key)) is not None:
                raise PartitaError(_misspelled(key, meant))
            continue
        try:
            found = parse_value(name, value)
        except ValueError as error:
            raise PartitaError(f"{key} {error}") from None
        if isinstance(found, str | list | dict) and not found:
            continue
        if name in fields:
            raise PartitaError(f"the row has two values for {name}: keep one of them")
        fields[name] = found
    return fields, split


def _misspelled(key: str, meant: str) -> str:
    return f"there is no field {printable(key)!r}: did you mean {meant!r}?"


def _table(file: TextIO, suffix: str, path: Path) -> Iterator[tuple[int, dict[str, Any] | PartitaError]]:
    """Yield the rows of a table with a header. In many countries, spreadsheets separate columns by semicolons."""
    head = file.readline()
    file.seek(0)
    separator = "\t" if suffix == ".tsv" else max(",;", key=head.count)
    rows = csv.reader(file, delimiter=separator)
    columns: list[str] | None = None
    while True:
        try:
            cells = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            yield rows.line_num, PartitaError(f"this is not a row of a table: {error}")
            continue
        if columns is None:
            columns = [name.strip().lower() for name in cells]
            _check_columns(columns, path)
        elif len(cells) > len(columns):
            yield rows.line_num, PartitaError("there are more cells than columns: put text with commas in quotes")
        elif cells:
            yield rows.line_num, {name: cell for name, cell in zip(columns, cells, strict=False) if name and cell}


def _check_columns(columns: Sequence[str], path: Path) -> None:
    """Check the header of a table.

    Raises:
        PartitaError: No column names the files, a column is misspelled, or two columns are the same field.
    """
    if not set(FILE_KEYS) & set(columns):
        there = ", ".join(printable(name) for name in columns[:10])
        raise PartitaError(f"{path}: the table needs a column called {' or '.join(FILE_KEYS)}; its columns are {there}")
    for name in columns:
        if name and (other := closest_field(name)) is not None:
            raise PartitaError(f"{path}: {_misspelled(name, other)}")
    fields = manifest_fields()
    meant = [fields.get(name, name) for name in columns if name]
    if twice := sorted({name for name in meant if meant.count(name) > 1}):
        raise PartitaError(f"{path}: several columns are called {printable(twice[0])}: keep one of them")


def _json_object(text: str) -> dict[str, Any] | PartitaError:
    try:
        return json_mapping(text)
    except ValueError as error:
        return PartitaError(str(error))
