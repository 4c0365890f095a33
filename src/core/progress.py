"""Progress of long work: the code that does the work reports it, and a listener displays it.

>>> with reporting(lambda name, done, total: print(f"{name}: {done} of {total}")):
...     progress("clips", 3, 8)
clips: 3 of 8
>>> progress("clips", 4, 8)  # without a listener
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

Listener = Callable[[str, int, int | None], None]
"""Gets the name of the work, how much of it is done, and how much there is (``None`` if unknown)."""

_listener: ContextVar[Listener | None] = ContextVar("progress listener")


@contextmanager
def reporting(listener: Listener | None) -> Iterator[None]:
    """Send the progress of everything inside to ``listener``, such as :class:`~partita.core.console.Bars`.

    ``None`` silences it. Inside another ``reporting``, the innermost one listens.
    """
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


def progress(name: str, done: int, total: int | None = None) -> None:
    """Say that ``done`` of ``total`` units of some work are done. Without a listener this does nothing."""
    listener = _listener.get(None)
    if listener is not None:
        listener(name, done, total)


def listening() -> bool:
    """Whether this is inside a :func:`reporting`, even one that silences."""
    try:
        _listener.get()
    except LookupError:
        return False
    return True


def duration(seconds: float) -> str:
    """Format a duration with one or two units.

    >>> [duration(s) for s in (8, 95, 3 * 3600 + 600, 50 * 3600)]
    ['8 s', '1 min 35 s', '3 h 10 min', '2 d 2 h']
    """
    for unit, smaller, length in (("d", "h", 3600), ("h", "min", 60), ("min", "s", 1)):
        ratio = {"d": 24, "h": 60, "min": 60}[unit]
        whole, rest = divmod(round(seconds / length), ratio)
        if whole:
            return f"{whole} {unit} {rest} {smaller}" if rest else f"{whole} {unit}"
    return f"{round(seconds)} s"
