"""Reading scores with music21 in worker processes, one per core.

A worker (``python -m partita.data.parsing``) reads paths and writes a line of JSON per score. So no process with
threads is forked, and a score that crashes its worker is merely skipped. Workers import neither torch nor Lightning,
which would take longer to import than most scores to read.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track

from .scores import Piece, read_pieces


def parse_scores(scores: list[tuple[str, Path]]) -> tuple[list[Piece], list[str]]:
    """Return the pieces of scores, and a line for each score that cannot be read.

    Args:
        scores: Name and path of each score.
    """
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
        [sys.executable, "-P", "-m", __name__],  # no module of the working directory stands for one of Python's
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


if __name__ == "__main__":
    _serve()
