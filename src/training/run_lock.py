"""A lock that allows one training at a time in a run folder."""

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
"""Names of the locked file, and of the file that describes the owner of the lock."""

LOCK_TIMEOUT = 60.0
"""Seconds to wait for remaining processes of a killed training, such as data workers, to release the lock."""


def is_first_process() -> bool:
    """Return whether this is the first, or only, process of a training."""
    node = os.environ.get("NODE_RANK") or os.environ.get("GROUP_RANK") or "0"
    return getattr(rank_zero_only, "rank", 0) == 0 and node == "0"


@contextmanager
def exclusive_training(run: Path) -> Iterator[None]:
    """Lock a run folder against other trainings. In a distributed training, only the first process locks it.

    Raises:
        PartitaError: Another training has locked it. The message says which.
    """
    if not is_first_process():
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
            if owner is not None and (_runs(owner) or time.monotonic() - begun > LOCK_TIMEOUT):
                raise PartitaError(
                    f"{run}: process {owner['process']} on {owner['machine']} has been training here since "
                    f"{owner['since']}: wait for it, end it, or choose another folder with -o"
                ) from None
            if time.monotonic() - begun > LOCK_TIMEOUT:
                raise PartitaError(f"{run}: another process is training here: choose another folder with -o") from None
            time.sleep(0.1)
        except OSError as error:
            raise PartitaError(f"cannot lock {run} for training: {error.strerror or error}") from None
    try:
        owner = {
            "process": os.getpid(),
            "machine": socket.gethostname(),
            "since": time.strftime("%Y-%m-%d %H:%M:%S"),
        }
        with replacing_file(run / OWNER) as new:  # replaces any existing file, even a pipe
            new.write_text(json.dumps(owner), encoding="utf-8")
        yield
    finally:
        (run / OWNER).unlink(missing_ok=True)
        lock.release()


def _owner(run: Path) -> dict[str, Any] | None:
    """Return the owner of the lock; ``None`` if it is not recorded yet."""
    try:
        owner = read_json(run / OWNER)
        return owner if {"machine", "since"} <= owner.keys() and type(owner["process"]) is int else None
    except (PartitaError, KeyError):
        return None


def _runs(owner: dict[str, Any]) -> bool:
    """Return whether the owner of the lock is still running; assumed for other machines."""
    return owner["machine"] != socket.gethostname() or runs_here(owner["process"])
