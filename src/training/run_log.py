"""The log file of a run, with the time of each line."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from ..core.logs import shared_logger

PACKAGE_LOGGER = logging.getLogger(__package__.partition(".")[0])
"""The parent of all loggers of Partita."""

FILE_ONLY = shared_logger(f"{__name__}.file")
"""Logger of lines for the log file only, such as steps that a progress bar shows."""
FILE_ONLY.propagate = False
FILE_ONLY.setLevel(logging.INFO)


class RunLog(logging.Handler):
    """Appends log lines to a file, each with its time.

    Args:
        path: The file. Its folder is created at the first line.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(logging.INFO)
        self.path = path

    def emit(self, record: logging.LogRecord) -> None:
        """Append a line. Errors, such as a full disk, are ignored."""
        time = datetime.fromtimestamp(record.created).astimezone()
        with suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(f"{time:%Y-%m-%d %H:%M:%S} {record.getMessage()}\n")


@contextmanager
def log_to_file(path: Path) -> Iterator[None]:
    """Also write the log messages of Partita (INFO and above) to a file within this context.

    If INFO was disabled before, the messages go to the file only.
    """
    handler, level, propagate = RunLog(path), PACKAGE_LOGGER.level, PACKAGE_LOGGER.propagate
    if not PACKAGE_LOGGER.isEnabledFor(logging.INFO):
        PACKAGE_LOGGER.setLevel(logging.INFO)
        PACKAGE_LOGGER.propagate = False
    for logger in (PACKAGE_LOGGER, FILE_ONLY):
        logger.addHandler(handler)
    try:
        yield
    finally:
        for logger in (PACKAGE_LOGGER, FILE_ONLY):
            logger.removeHandler(handler)
        PACKAGE_LOGGER.setLevel(level)
        PACKAGE_LOGGER.propagate = propagate


@contextmanager
def quiet() -> Iterator[None]:
    """Log only warnings and errors of Partita within this context."""
    level = PACKAGE_LOGGER.level
    PACKAGE_LOGGER.setLevel(logging.WARNING)
    try:
        yield
    finally:
        PACKAGE_LOGGER.setLevel(level)
