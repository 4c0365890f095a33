"""What is known of audio files: rows of a JSONL or CSV manifest, and side-car files."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import PartitaError
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
        with path.open(encoding="utf-8-sig", newline="") as file:
            if suffix == ".jsonl":
                for number, line in enumerate(file, 1):
                    if line.strip():
                        yield number, _json_object(line)
            else:
                rows = csv.DictReader(file, delimiter="\t" if suffix == ".tsv" else ",")
                if not set(FILE_KEYS) & set(rows.fieldnames or ()):
                    raise PartitaError(f"{path}: none of its columns is called {' or '.join(FILE_KEYS)}")
                for row in rows:
                    cells = {key: value for key, value in row.items() if key is not None and value not in ("", None)}
                    yield rows.line_num, cells
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise PartitaError(f"cannot read the manifest {path}: {error}") from None


def read_sidecar(audio: Path) -> dict[str, Any]:
    """What ``song.json`` or else ``song.txt`` says of ``song.wav``; nothing where there is neither.

    Raises:
        PartitaError: The file is damaged; the message does not name the audio.
    """
    for suffix in (".json", ".txt"):
        path = audio.with_suffix(suffix)
        if not path.is_file():
            continue
        try:
            content = path.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise PartitaError(f"{path.name} beside it cannot be read: {error}") from None
        found = _json_object(content) if suffix == ".json" else {"text": content}
        if isinstance(found, PartitaError):
            raise PartitaError(f"{path.name} beside it: {found}")
        return found
    return {}


def known_fields(raw: dict[str, Any]) -> tuple[dict[str, Any], Split | None]:
    """The fields of an example out of a row, in their types, and the split it names; keys of no meaning are left out.

    In a CSV, ``instruments`` are separated by commas or semicolons, and ``beats``, ``chords`` … are JSON.

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
                fields[name] = parsed
        except (KeyError, TypeError, ValueError):
            raise PartitaError(f"{key} cannot be {str(value)[:60]!r}") from None
    return fields, split


def _json_object(text: str) -> dict[str, Any] | PartitaError:
    try:
        found = json.loads(text)
    except ValueError as error:
        return PartitaError(f"not valid JSON: {error}")
    return found if isinstance(found, dict) else PartitaError("not a JSON object")


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
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
