"""Writing files atomically: they are complete or absent, even if the process or the machine is stopped."""

from __future__ import annotations

import errno
import os
import re
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from ..errors import PartitaError

FULL = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the quota of the disk is used up",
    errno.EFBIG: "the file would be larger than is allowed",
}
"""Errors of the file system that mean that there is no room left."""


def kind(path: str | Path) -> Literal["file", "folder", "other", ""]:
    """What is at a path: ``other`` for a pipe or a device, empty for nothing or an invalid name."""
    try:
        mode = Path(path).stat().st_mode
    except (OSError, ValueError):
        return ""
    return "file" if stat.S_ISREG(mode) else "folder" if stat.S_ISDIR(mode) else "other"


@contextmanager
def replacing_file(path: Path) -> Iterator[Path]:
    """A temporary file beside ``path`` that replaces it if the block succeeds and is deleted otherwise.

    Raises:
        PartitaError: The disk is full; the previous file is untouched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.{os.getpid()}.part")
    with saying_when_full(path):
        try:
            yield new
            _sync(new)
            new.replace(path)
            _sync(path.parent)
        finally:
            new.unlink(missing_ok=True)


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """A temporary folder that replaces the folder ``path``: at any moment, either the old or the new one is complete.

    Raises:
        PartitaError: The disk is full; the previous folder is untouched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    new, old = (path.with_name(f".{path.name}.{os.getpid()}.{suffix}") for suffix in ("part", "old"))
    shutil.rmtree(new, ignore_errors=True)
    with saying_when_full(path):
        new.mkdir()
        try:
            yield new
            umask = os.umask(0)
            os.umask(umask)
            for file in new.rglob("*"):  # safetensors writes files that only their owner may read
                file.chmod((0o777 if file.is_dir() else 0o666) & ~umask)
                _sync(file)
            _sync(new)
            if path.exists():
                path.replace(old)
            new.replace(path)
            _sync(path.parent)
        finally:
            if old.exists() and not path.exists():
                old.replace(path)
            shutil.rmtree(new, ignore_errors=True)
            shutil.rmtree(old, ignore_errors=True)


def recover(folder: Path) -> None:
    """Clean up files and folders below ``folder`` that processes which no longer run were replacing.

    A folder that was moved away, and whose replacement was never completed, is moved back.
    """
    for left in sorted(folder.rglob(".*")):
        found = re.fullmatch(r"\.(.+)\.(\d+)\.(part|old)", left.name)
        if found is None or not left.exists() or runs_here(int(found[2])):
            continue
        if found[3] == "old" and not left.with_name(found[1]).exists():
            left.replace(left.with_name(found[1]))
        elif left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


@contextmanager
def saying_when_full(path: Path) -> Iterator[None]:
    """Turn the errors that libraries raise when there is no room for ``path`` into one message.

    Raises:
        PartitaError: There is no room.
    """
    try:
        yield
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None:  # torch and safetensors wrap the error of the file system
            told = re.search(r"\(os error (\d+)\)", str(cause))
            number = cause.errno if isinstance(cause, OSError) else int(told[1]) if told else None
            if number in FULL:
                raise PartitaError(
                    f"{path} cannot be written: {FULL[number]}. What was there before is kept: free some space and "
                    "run the same command again"
                ) from None
            cause = cause.__cause__ or cause.__context__
        raise


def runs_here(process: int) -> bool:
    """Whether another process with this number runs on this machine. This process may have the number of a dead one."""
    if process == os.getpid():
        return False
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True
    return True


def _sync(path: Path) -> None:
    """Flush a file, or the entries of a folder, to the disk, before anything relies on it."""
    try:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError:
        if not path.is_dir():  # not every file system can do this with folders
            raise
