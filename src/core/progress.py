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
