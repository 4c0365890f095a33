"""Iterating over what a function hands out while it runs in a thread of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from contextvars import copy_context
from queue import Full, Queue
from threading import Event, Thread
from typing import Any, TypeVar

Item = TypeVar("Item")

MOST_AHEAD = 8
"""Maximum number of items that the function is ahead of the loop over them."""


class Abandoned(Exception):
    """Nobody reads further items: the function should end."""


class Handing:
    """How a function in another thread hands out items."""

    def __init__(self) -> None:
        self.queue: Queue[tuple[Any, BaseException | None, bool]] = Queue(MOST_AHEAD)
        self.abandoned = Event()

    def check(self) -> None:
        """Check that items are still read.

        Raises:
            Abandoned: They are not.
        """
        if self.abandoned.is_set():
            raise Abandoned

    def hand_out(self, item: Any, error: BaseException | None = None, last: bool = False) -> None:
        """Hand out an item. Wait if the function is too far ahead.

        Raises:
            Abandoned: Nobody reads it.
        """
        while True:
            self.check()
            try:
                return self.queue.put((item, error, last), timeout=0.05)
            except Full:
                continue


def in_background(work: Callable[[Handing], None]) -> Iterator[Any]:
    """Yield the items that a function hands out. It runs in a thread, which starts with the first item.

    >>> list(in_background(lambda handing: [handing.hand_out(i) for i in range(3)] and None))
    [0, 1, 2]

    If the loop over the items ends early, the function gets :class:`Abandoned` the next time it hands out an item or
    checks.

    Args:
        work: The function, which gets a :class:`Handing`.
    """
    handing = Handing()

    def run() -> None:
        error: BaseException | None = None
        try:
            work(handing)
        except BaseException as raised:
            error = raised
        with suppress(Abandoned):
            handing.hand_out(None, error, True)

    thread = Thread(target=copy_context().run, args=(run,), daemon=True)
    thread.start()
    try:
        while True:
            item, error, last = handing.queue.get()
            if error is not None:
                raise error
            if last:
                return
            yield item
    finally:
        handing.abandoned.set()
        thread.join()
