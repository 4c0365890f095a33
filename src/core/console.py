"""The console of the commands. Printed text is data: nothing in it is interpreted as markup or control codes."""

from __future__ import annotations

import io
import logging
import sys
import threading
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.segment import Segment
from rich.table import Table

from ..errors import printable
from .progress import listening, reporting


class PlainConsole(Console):
    """A console that prints text verbatim: without markup and emoji codes, and with control characters escaped.

    Text comes from recipes, file names, prompts and messages of others. Everything that is printed passes
    :meth:`render`, including tables and text beside progress bars.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, soft_wrap=True, **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """The segments of a printed object, with control characters escaped."""
        for text, style, control in super().render(renderable, options):
            yield Segment(text if control else printable(text), style, control)


WIDTH = 160
"""Width, in columns, of tables that are written to a file or a pipe. The default of 80 would squeeze them."""

out = PlainConsole(width=None if sys.stdout is not None and sys.stdout.isatty() else WIDTH)
err = PlainConsole(stderr=True)


def written(thing: RenderableType) -> str:
    """What :data:`out` would print to a file, as text."""
    stream = io.StringIO()
    PlainConsole(file=stream, width=WIDTH, color_system=None).print(thing)
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines())


def columns(*names: str, right: Iterable[str] = ()) -> Table:
    """An empty table without lines. The columns in ``right`` are aligned to the right, for numbers."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for i, name in enumerate(names):
        table.add_column(name, justify="right" if name in right else "left", no_wrap=i == 0, overflow="fold")
    return table


class Bars:
    """Progress bars on a terminal, one for each task.

    Args:
        progress: The display that shows the bars.
    """

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._tasks: dict[str, TaskID] = {}

    def __call__(self, name: str, done: int, total: int | None) -> None:
        """Show that ``done`` of ``total`` units of the task ``name`` are done."""
        if name not in self._tasks:
            self._tasks[name] = self._progress.add_task(name, total=total)
        self._progress.update(self._tasks[name], completed=done, total=total)


_showing = False


@contextmanager
def bars(show: bool = True) -> Iterator[Bars]:
    """Progress bars inside the block. They are invisible without a terminal, or if other bars are shown already."""
    global _showing
    seen = show and not _showing and (err.is_terminal or err.is_jupyter)
    texts = [TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn(), TimeRemainingColumn()]
    before, _showing = _showing, _showing or seen
    try:
        with Progress(*texts, console=err, transient=True, disable=not seen) as progress:
            yield Bars(progress)
    finally:
        _showing = before


@contextmanager
def showing_progress(show: bool = True) -> Iterator[None]:
    """While this lasts, progress is shown as bars, unless somebody else listens to it; without ``show``, not at all."""
    if show and listening():
        yield
    elif not show:
        with reporting(None):
            yield
    else:
        with bars() as shown, reporting(shown):
            yield


class _Printed(logging.Handler):
    def __init__(self, console: Console) -> None:
        super().__init__(logging.INFO)
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        self._console.print(record.getMessage())


@contextmanager
def logged(console: Console) -> Iterator[None]:
    """Print what Partita logs (``partita.…``, INFO and above) as lines, inside the block."""
    logger, handler = logging.getLogger(__package__.partition(".")[0]), _Printed(console)
    before = logger.level, logger.propagate
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before[0])
        logger.propagate = before[1]


@contextmanager
def as_messages() -> Iterator[None]:
    """Print warnings as messages, and escape characters that a stream cannot write, inside the block.

    An error in a logger's thread also becomes a warning, because a command should not fail for its log.
    """

    def show(message: Warning | str, *where: Any, **more: Any) -> None:
        err.print(f"warning: {message}", style="yellow")

    def ended(thread: threading.ExceptHookArgs) -> None:
        if isinstance(thread.exc_value, OSError):
            show(f"a log cannot be written any more: {thread.exc_value}")
        else:
            threading.__excepthook__(thread)

    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    with warnings.catch_warnings():
        warnings.showwarning = show
        before, threading.excepthook = threading.excepthook, ended
        try:
            yield
        finally:
            threading.excepthook = before
