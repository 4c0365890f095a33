"""One training at a time in a run folder."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from lightning.pytorch.utilities import rank_zero_only

from ..errors import PartitaError
from ..storage.files import replacing_file, runs_here
from ..storage.untrusted import read_json

LOCK, OWNER = ".training.lock", ".training.json"
"""The file that is locked, and the one that says by whom."""

PATIENCE = 60.0
"""Seconds that what a killed training left running, such as its data workers, may still hold its lock."""


def is_first() -> bool:
    """Whether this is the first of the processes that train together, or there is only one."""
    node = os.environ.get("NODE_RANK") or os.environ.get("GROUP_RANK") or "0"
    return getattr(rank_zero_only, "rank", 0) == 0 and node == "0"


@contextmanager
def training_alone(run: Path) -> Iterator[None]:
    """Hold a run folder, so that no other training writes into it. Of processes that train together, the first does.

    Raises:
        PartitaError: Another training holds it; the message says which.
    """
    if not is_first():
        yield
        return
    run.mkdir(parents=True, exist_ok=True)
    lock, begun = FileLock(run / LOCK), time.monotonic()
    while True:
        try:
            lock.acquire(timeout=0)
            break
        except Timeout:
            owner = _owner(run)
            if owner is not None and (_runs(owner) or time.monotonic() - begun > PATIENCE):
                raise PartitaError(
                    f"{run}: process {owner['process']} on {owner['machine']} has been training here since "
                    f"{owner['since']}: wait for it, end it, or choose another folder with -o"
                ) from None
            if time.monotonic() - begun > PATIENCE:
                raise PartitaError(f"{run}: another process is training here: choose another folder with -o") from None
            time.sleep(0.1)
        except OSError as error:
            raise PartitaError(f"{run} cannot be locked for training: {error.strerror or error}") from None
    try:
        owner = {
            "process": os.getpid(),
            "machine": socket.gethostname(),
            "since": time.strftime("%Y-%m-%d %H:%M:%S"),
        }
        with replacing_file(run / OWNER) as new:  # whatever is there: to a pipe, nothing could be written
            new.write_text(json.dumps(owner), encoding="utf-8")
        yield
    finally:
        (run / OWNER).unlink(missing_ok=True)
        lock.release()


def _owner(run: Path) -> dict[str, Any] | None:
    """Who holds the lock; none while they have not said so yet."""
    try:
        owner = read_json(run / OWNER)
        return owner if {"machine", "since"} <= owner.keys() and type(owner["process"]) is int else None
    except (PartitaError, KeyError):
        return None


def _runs(owner: dict[str, Any]) -> bool:
    """Whether the process that holds the lock is still there, as far as can be seen from here."""
    return owner["machine"] != socket.gethostname() or runs_here(owner["process"])
