"""The scores of the music21 corpus, which are parsed once and stored in one file."""

from __future__ import annotations

import hashlib
import json
import warnings
import zipfile
from collections.abc import Sequence
from dataclasses import fields
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import PartitaError
from ..storage.cache import default_cache_dir
from ..storage.files import replacing_file
from .licenses import restriction
from .parsing import parse_scores
from .scores import Piece
from .tunes import tune_families

FORMAT = 3
"""Version of the file format. Increase it whenever the contents change."""

GENRES = {
    "bach": "chorale",
    "palestrina": "Renaissance mass movement",
    "monteverdi": "madrigal",
    "trecento": "medieval song",
    "haydn": "string quartet",
    "mozart": "string quartet",
    "beethoven": "string quartet",
    "essenFolksong": "folk song",
    "ryansMammoth": "fiddle tune",
    "oneills1850": "Irish folk tune",
    "airdsAirs": "Scottish folk tune",
}
"""The genre of each collection, which is a folder of the music21 corpus."""

_EXCEPTIONS = {"bach/bwv846": "prelude"}
_SUFFIXES = (".mxl", ".musicxml", ".xml", ".krn", ".abc")
"""Suffixes of scores, best first: of several files of a piece, only the first is read. Analyses are not scores."""


def genre(piece_id: str) -> str:
    """Return the genre of a piece.

    >>> genre("bach/bwv66.6"), genre("airdsAirs/book1#12")
    ('chorale', 'Scottish folk tune')
    """
    return _EXCEPTIONS.get(piece_id) or GENRES[piece_id.split("/")[0]]


def load_pieces(
    collections: Sequence[str], limit: int | None, cache_dir: Path | None, restricted: bool = False
) -> tuple[list[Piece], list[str]]:
    """Return the pieces of collections, and a line for each unreadable score. Only the first call parses scores.

    Args:
        collections: Names from :data:`GENRES`.
        limit: Number of scores to read, drawn at random. ``None`` reads all.
        cache_dir: Folder of the parsed scores. ``None`` uses :func:`default_cache_dir`.
        restricted: Whether to include scores that are not free to use.

    Raises:
        PartitaError: music21 or its corpus is missing, or no score could be read.
    """
    paths = {name: path for name, path in score_files(collections).items() if restricted or not restriction(name)}
    # The hash must differ from that of the splits, or the first pieces would all be in one split.
    names = sorted(paths, key=lambda name: hashlib.sha256(f"draw/{name}".encode()).digest())[:limit]
    folder = cache_dir or default_cache_dir()
    selection = hashlib.sha256(json.dumps([version("music21"), names]).encode()).hexdigest()[:12]
    file = folder / f"scores-v{FORMAT}-{selection}.npz"
    stored = _load(file)
    if stored is None:
        pieces, skipped = parse_scores([(name, paths[name]) for name in names])
        if not pieces:
            raise PartitaError("no score of the music21 corpus could be read:\n  " + "\n  ".join(skipped[:5]))
        # In the order of the draw, so that the name of a family does not depend on the limit.
        for piece, tune in zip(pieces, tune_families(pieces), strict=True):
            piece.tune = tune
        stored = sorted(pieces, key=lambda piece: piece.id.partition("#")[0]), skipped
        try:
            with replacing_file(file) as new, new.open("wb") as stream:
                np.savez_compressed(stream, allow_pickle=False, **_pack(*stored))
        except OSError as error:
            warnings.warn(f"cannot store the parsed scores in {file} ({error}): set PARTITA_CACHE", stacklevel=2)
    return stored


def count_restricted(collections: Sequence[str]) -> int:
    """Return the number of scores of collections that are not free to use."""
    return sum(restriction(name) is not None for name in score_files(collections))


def score_files(collections: Sequence[str]) -> dict[str, Path]:
    """Return the score files of collections by name, which is the path in the corpus without suffix.

    Raises:
        PartitaError: music21 or its corpus is missing.
    """
    spec = find_spec("music21")
    if spec is None or spec.origin is None:
        raise PartitaError("the corpus needs music21: pip install music21")
    root = Path(spec.origin).parent / "corpus"
    found: dict[str, Path] = {}
    for suffix in _SUFFIXES:
        for collection in collections:
            for path in (root / collection).rglob(f"*{suffix}"):
                found.setdefault(path.relative_to(root).with_suffix("").as_posix(), path)
    if not found:
        raise PartitaError(f"no scores of {', '.join(collections)} in {root}: is music21 installed with its corpus?")
    return dict(sorted(found.items()))


def _pack(pieces: list[Piece], skipped: list[str]) -> dict[str, np.ndarray]:
    """Pack pieces into one array per field, with the length of each piece."""
    table = {"skipped": np.array(skipped, dtype=str)}
    for name in _table_fields():
        rows = [np.asarray(getattr(piece, name)) for piece in pieces]
        if rows[0].ndim:
            table[f"{name}.lengths"] = np.array([len(row) for row in rows])
            table[name] = np.concatenate([row.reshape(len(row), -1) for row in rows if len(row)] or [np.zeros((0, 1))])
        else:
            table[name] = np.array(rows)
    return table


def _unpack(table: dict[str, np.ndarray]) -> tuple[list[Piece], list[str]]:
    count = len(table["id"])
    columns: dict[str, Sequence[Any]] = {}
    for name in _table_fields():
        column = table[name]
        if f"{name}.lengths" in table:
            bounds = np.cumsum(table[f"{name}.lengths"])
            columns[name] = [part.squeeze(1) if part.shape[1] == 1 else part for part in np.split(column, bounds[:-1])]
        else:
            columns[name] = column.tolist()
    pieces = [_from_rows({name: column[i] for name, column in columns.items()}) for i in range(count)]
    return pieces, table["skipped"].tolist()


def _from_rows(row: dict[str, Any]) -> Piece:
    chords = [(start, end, int(root), int(quality)) for start, end, root, quality in row["chords"].tolist()]
    melody = [(start, end, int(pitch)) for start, end, pitch in row["melody"].tolist()]
    return Piece(**{**row, "chords": chords, "melody": melody, "key": tuple(row["key"].tolist())})


@cache
def _table_fields() -> tuple[str, ...]:
    return tuple(field.name for field in fields(Piece))


def _load(file: Path) -> tuple[list[Piece], list[str]] | None:
    """Return the contents of a file; ``None`` if it is missing or damaged, so that it is written again."""
    try:
        with np.load(file, allow_pickle=False) as table:
            return _unpack(dict(table))
    except (OSError, ValueError, KeyError, IndexError, EOFError, zipfile.BadZipFile, zipfile.LargeZipFile):
        return None
