"""The scores of the music21 corpus, which are parsed once and stored in one file.

Worker processes (``python -m partita.data.library``) parse the scores. Each reads paths and writes a line of JSON per
score. So no process with threads is forked, and a score that crashes its worker is merely skipped.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, fields
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track

from ..errors import PartitaError
from ..storage.files import replacing_file
from .licenses import restriction
from .scores import Piece, read_pieces
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


def default_cache_dir() -> Path:
    """Return ``$PARTITA_CACHE``, or ``partita`` in the user's cache folder."""
    if os.environ.get("PARTITA_CACHE"):
        return Path(os.environ["PARTITA_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "partita"


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
        pieces, skipped = _parse([(name, paths[name]) for name in names])
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


def _parse(scores: list[tuple[str, Path]]) -> tuple[list[Piece], list[str]]:
    todo: SimpleQueue[tuple[str, Path]] = SimpleQueue()
    for score in scores:
        todo.put(score)
    pieces: dict[str, list[Piece]] = {}
    skipped: list[str] = []
    workers = max(1, min(_cores(), len(scores) // 8))
    with ThreadPoolExecutor(workers) as pool:
        answers: SimpleQueue[tuple[str, dict]] = SimpleQueue()
        jobs = [pool.submit(_feed, todo, answers) for _ in range(workers)]
        console = Console(stderr=True)
        try:
            for _ in track(range(len(scores)), "Parsing scores (once)", console=console, disable=len(scores) < 32):
                name, answer = _next(answers, jobs)
                if "error" in answer:
                    skipped.append(f"{name}: {answer['error']}")
                else:
                    pieces[name] = [_from_json(piece) for piece in answer["pieces"]]
        finally:
            while not todo.empty():  # after an interrupt, leave no work for the workers
                todo.get()
    return [piece for name, _ in scores for piece in pieces.get(name, ())], sorted(skipped)


def _next(answers: SimpleQueue[tuple[str, dict]], jobs: list) -> tuple[str, dict]:
    """Return the next answer. If a feeding thread failed, raise its error instead of waiting forever."""
    while True:
        try:
            return answers.get(timeout=1)
        except Empty:
            for job in jobs:
                if job.done():
                    job.result()


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _feed(todo: SimpleQueue[tuple[str, Path]], answers: SimpleQueue[tuple[str, dict]]) -> None:
    """Feed scores to a worker process until none are left. Replace the worker if it dies."""
    worker: subprocess.Popen | None = None
    try:
        while True:
            try:
                name, path = todo.get_nowait()
            except Empty:
                return
            worker = worker or _start_worker()
            assert worker.stdin is not None
            assert worker.stdout is not None
            try:
                worker.stdin.write(json.dumps([name, str(path)]) + "\n")
                worker.stdin.flush()
                line = worker.stdout.readline()
            except OSError:
                line = ""
            if line:
                answers.put((name, json.loads(line)))
            else:
                answers.put((name, {"error": f"the process that read it ended with status {worker.wait()}"}))
                worker = None
    finally:
        if worker is not None:
            worker.communicate()


def _start_worker() -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    return subprocess.Popen(
        [sys.executable, "-m", __name__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        encoding="utf-8",
        env=environment,
    )


def _serve() -> None:
    """Run a worker: for each input line with name and path, write a line with the pieces or an error."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # keep the output of parsers out of the answers
    warnings.simplefilter("ignore")
    for line in sys.stdin:
        name, path = json.loads(line)
        try:
            pieces = [_to_json(piece) for piece in read_pieces(Path(path), name)]
            answer: dict[str, Any] = {"pieces": pieces}
        except Exception as error:  # parsers can raise anything; the score is then skipped
            answer = {"error": f"{type(error).__name__}: {error}".split("\n")[0][:200]}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _to_json(piece: Piece) -> dict[str, Any]:
    return {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in asdict(piece).items()}


def _from_json(plain: dict[str, Any]) -> Piece:
    times = {name: np.array(plain[name], np.float64) for name in ("onset", "duration", "beats", "downbeats")}
    counts = {name: np.array(plain[name], np.int64) for name in ("pitch", "part")}
    rows = {name: [tuple(row) for row in plain[name]] for name in ("chords", "melody")}
    return Piece(**{**plain, **times, **counts, **rows, "key": tuple(plain["key"])})


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


if __name__ == "__main__":
    _serve()
