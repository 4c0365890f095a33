"""What is known of audio files: rows of a JSONL or CSV manifest, and side-car files."""

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
from .fields.base import parsed

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
"""What a file says of itself."""


def manifest_fields() -> dict[str, str]:
    """The fields that a manifest can carry, by every name of theirs."""
    own = {name: name for name in names("field") if name not in _COMPUTED}
    return own | {alias: name for name in own for alias in lookup("field", name).aliases}


def meant_by(key: str) -> str | None:
    """The field, ``split`` or file key that a key was probably to be; ``None`` for what is no misspelling of one.

    >>> meant_by("txet"), meant_by("instrument"), meant_by("mood"), meant_by("text")
    ('text', 'instruments', None, None)
    """
    known = [*manifest_fields(), "split", *FILE_KEYS]
    if key in known:
        return None
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.75 if len(key) > 3 else 0.65)
    return close[0] if close and abs(len(close[0]) - len(key)) < 2 else None


def read_manifest(path: Path) -> Iterator[tuple[int, dict[str, Any] | PartitaError]]:
    """Line number and content of each row, or what is wrong with it.

    Raises:
        PartitaError: The manifest cannot be read at all.
    """
    suffix = path.suffix.lower()
    if suffix not in (".jsonl", ".csv", ".tsv"):
        raise PartitaError(f"{path}: a manifest is a .jsonl, .csv or .tsv file")
    try:
        with path.open("rb") as start:
            encoding = "utf-16" if start.read(2) in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
        newline = None if suffix == ".jsonl" else ""
        # What is not UTF-8 spoils its own row, or is the name of a file that is called so.
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
    """What ``song.json`` and ``song.txt`` say of ``song.wav``; nothing where there is neither.

    Raises:
        PartitaError: One of them is damaged; the message does not name the audio.
    """
    found: dict[str, Any] = {}
    for suffix in (".txt", ".json"):
        path = audio.with_suffix(suffix)
        if kind(path) != "file":  # its name may be longer than a name can be
            continue
        try:
            text = read_bytes(path, LARGEST_SIDECAR).decode("utf-8-sig")
        except (PartitaError, UnicodeDecodeError) as error:
            raise PartitaError(f"{printable(path.name)} beside it cannot be read: {error}") from None
        said = _json_object(text) if suffix == ".json" else {"text": text}
        if isinstance(said, PartitaError):
            raise PartitaError(f"{printable(path.name)} beside it: {said}")
        captioned = any(manifest_fields().get(key) == "text" for key in said)
        found = said if captioned else found | said  # a caption in song.json counts over song.txt
    return found


def known_fields(raw: dict[str, Any]) -> tuple[dict[str, Any], Split | None]:
    """The fields of an example out of a row, in their types, and the split it names; keys of no meaning are left out.

    Raises:
        PartitaError: A value is not what its key says, or a key is a misspelt field.
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
                said = repr(value[:60]) if isinstance(value, str) else "that"
                raise PartitaError(f"{key} cannot be {said}; expected one of {', '.join(_SPLITS)}")
            continue
        name = known.get(key)
        if name is None:
            if (meant := meant_by(key)) is not None:
                raise PartitaError(_misspelt(key, meant))
            continue
        try:
            found = parsed(name, value)
        except ValueError as error:
            raise PartitaError(f"{key} {error}") from None
        if isinstance(found, str | list | dict) and not found:
            continue
        if name in fields:
            raise PartitaError(f"it has two values for {name}: keep one")
        fields[name] = found
    return fields, split


def _misspelt(key: str, meant: str) -> str:
    return f"there is no field {printable(key)!r}: did you mean {meant!r}?"


def _table(file: TextIO, suffix: str, path: Path) -> Iterator[tuple[int, dict[str, Any] | PartitaError]]:
    """The rows of a table with a line of names, which spreadsheets separate by semicolons in half of the world."""
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
            yield rows.line_num, PartitaError(f"not a row of a table: {error}")
            continue
        if columns is None:
            columns = [name.strip().lower() for name in cells]
            _check_columns(columns, path)
        elif len(cells) > len(columns):
            yield rows.line_num, PartitaError("more cells than columns: put text with commas in quotes")
        elif cells:
            yield rows.line_num, {name: cell for name, cell in zip(columns, cells, strict=False) if name and cell}


def _check_columns(columns: Sequence[str], path: Path) -> None:
    """See that a table says which file each row is about, misspells nothing, and says nothing twice.

    Raises:
        PartitaError: It does not.
    """
    if not set(FILE_KEYS) & set(columns):
        there = ", ".join(printable(name) for name in columns[:10])
        raise PartitaError(f"{path}: none of its columns is called {' or '.join(FILE_KEYS)}; they are called {there}")
    for name in columns:
        if name and (other := meant_by(name)) is not None:
            raise PartitaError(f"{path}: {_misspelt(name, other)}")
    fields = manifest_fields()
    meant = [fields.get(name, name) for name in columns if name]
    if twice := sorted({name for name in meant if meant.count(name) > 1}):
        raise PartitaError(f"{path}: several of its columns are called {printable(twice[0])}: keep one")


def _json_object(text: str) -> dict[str, Any] | PartitaError:
    try:
        return json_mapping(text)
    except ValueError as error:
        return PartitaError(str(error))
