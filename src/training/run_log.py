"""The log of a run: what was logged while it trained, with the time of each line."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from ..core.logs import shared_logger

EVERYTHING = logging.getLogger(__package__.partition(".")[0])
"""What all of Partita logs to."""

FILE_ALONE = shared_logger(f"{__name__}.file")
"""For lines that the file of a run keeps, but nobody else needs, such as steps that a bar shows."""
FILE_ALONE.propagate = False
FILE_ALONE.setLevel(logging.INFO)


class RunLog(logging.Handler):
    """Keeps lines in a file, each with its time.

    Args:
        path: The file, appended to; its folder is made when the first line comes.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(logging.INFO)
        self.path = path

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a line. A disk that is full does not end a training here."""
        time = datetime.fromtimestamp(record.created).astimezone()
        with suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(f"{time:%Y-%m-%d %H:%M:%S} {record.getMessage()}\n")


@contextmanager
def kept(path: Path) -> Iterator[None]:
    """While this lasts, what Partita logs (INFO and above) is kept in a file, too.

    Where nobody wanted to hear these lines before, nobody but the file hears them.
    """
    handler, level, propagate = RunLog(path), EVERYTHING.level, EVERYTHING.propagate
    if not EVERYTHING.isEnabledFor(logging.INFO):
        EVERYTHING.setLevel(logging.INFO)
        EVERYTHING.propagate = False
    for logger in (EVERYTHING, FILE_ALONE):
        logger.addHandler(handler)
    try:
        yield
    finally:
        for logger in (EVERYTHING, FILE_ALONE):
            logger.removeHandler(handler)
        EVERYTHING.setLevel(level)
        EVERYTHING.propagate = propagate


@contextmanager
def unlogged() -> Iterator[None]:
    """While this lasts, Partita logs nothing below a warning."""
    level = EVERYTHING.level
    EVERYTHING.setLevel(logging.WARNING)
    try:
        yield
    finally:
        EVERYTHING.setLevel(level)
