"""What is known of audio files: rows of a JSONL or CSV manifest, and side-car files."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

from ..errors import PartitaError, printable
from ..limits import LARGEST_SIDECAR
from ..storage.files import kind
from ..storage.untrusted import json_mapping, read_bytes
from .base import Split

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
_ALIASES = {"caption": "text"}


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
        captioned = any(_ALIASES.get(key, key) == "text" for key in said)
        found = said if captioned else found | said  # a caption in song.json counts over song.txt
    return found


def known_fields(raw: dict[str, Any]) -> tuple[dict[str, Any], Split | None]:
    """The fields of an example out of a row, in their types, and the split it names; keys of no meaning are left out.

    In a table, ``instruments`` are separated by commas or semicolons, and ``beats``, ``chords`` … are JSON.

    Raises:
        PartitaError: A value is not what its key says.
    """
    fields: dict[str, Any] = {}
    split: Split | None = None
    for key, value in raw.items():
        name = _ALIASES.get(key, key)
        if value is None or (name not in _PARSERS and name != "split"):
            continue
        try:
            if name == "split":
                split = _SPLITS[str(value).strip().lower()]
            elif (parsed := _PARSERS[name](value)) not in ("", []):
                if name in fields:
                    raise PartitaError(f"it has two values for {name}: keep one")
                fields[name] = parsed
        except UnicodeEncodeError:
            raise PartitaError(f"{key} is not UTF-8 text") from None
        except (KeyError, TypeError, ValueError, ArithmeticError, RecursionError):
            said = repr(value[:60]) if isinstance(value, str) else "that"
            raise PartitaError(f"{key} cannot be {said}") from None
    return fields, split


def _table(file: TextIO, suffix: str, path: Path) -> Iterator[tuple[int, dict[str, Any] | PartitaError]]:
    """The rows of a table with a line of names, which spreadsheets separate by semicolons in half of the world."""
    head = file.readline()
    file.seek(0)
    separator = "\t" if suffix == ".tsv" else max(",;", key=head.count)
    rows = csv.reader(file, delimiter=separator)
    names: list[str] | None = None
    while True:
        try:
            cells = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            yield rows.line_num, PartitaError(f"not a row of a table: {error}")
            continue
        if names is None:
            names = [name.strip().lower() for name in cells]
            _check_columns(names, path)
        elif len(cells) > len(names):
            yield rows.line_num, PartitaError("more cells than columns: put text with commas in quotes")
        elif cells:
            yield rows.line_num, {name: cell for name, cell in zip(names, cells, strict=False) if name and cell}


def _check_columns(names: Sequence[str], path: Path) -> None:
    """See that a table says which file each row is about, and nothing twice.

    Raises:
        PartitaError: It does not.
    """
    if not set(FILE_KEYS) & set(names):
        there = ", ".join(printable(name) for name in names[:10])
        raise PartitaError(f"{path}: none of its columns is called {' or '.join(FILE_KEYS)}; they are called {there}")
    meant = [_ALIASES.get(name, name) for name in names if name]
    if twice := sorted({name for name in meant if meant.count(name) > 1}):
        raise PartitaError(f"{path}: several of its columns are called {printable(twice[0])}: keep one")


def _json_object(text: str) -> dict[str, Any] | PartitaError:
    try:
        return json_mapping(text)
    except ValueError as error:
        return PartitaError(str(error))


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    value.encode()  # half a character that JSON can spell fits into no file
    return " ".join(value.split())


def _names(value: Any) -> list[str]:
    if isinstance(value, str):
        value = value.replace(";", ",").split(",")
    return [name for name in map(_text, value) if name]


def _number(value: Any) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError
    return number


def _times(value: Any) -> list[float]:
    return [_number(time) for time in (json.loads(value) if isinstance(value, str) else value)]


def _chords(value: Any) -> list[tuple[float, float, str]]:
    rows = json.loads(value) if isinstance(value, str) else value
    return [(_number(start), _number(end), _text(label)) for start, end, label in rows]


def _melody(value: Any) -> list[tuple[float, float, int]]:
    rows = json.loads(value) if isinstance(value, str) else value
    return [(_number(start), _number(end), int(pitch)) for start, end, pitch in rows]


_PARSERS = {
    "text": _text,
    "instruments": _names,
    "key": _text,
    "tempo": _number,
    "beats": _times,
    "downbeats": _times,
    "chords": _chords,
    "melody": _melody,
}
