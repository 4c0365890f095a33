"""Iterating over what a function in a thread hands out."""

import threading
from contextvars import ContextVar

import pytest

from partita.core.background import MOST_AHEAD, Abandoned, in_background

WHO = ContextVar("who", default="nobody")


def test_items_come_in_order_from_a_thread_in_the_same_context():
    WHO.set("somebody")

    def work(handing):
        for i in range(20):
            handing.hand_out((i, WHO.get(), threading.current_thread() is threading.main_thread()))

    assert list(in_background(work)) == [(i, "somebody", False) for i in range(20)]


def test_the_function_is_only_a_few_items_ahead_and_ends_with_the_loop():
    made, ended = [], threading.Event()

    def work(handing):
        try:
            for i in range(1000):
                handing.hand_out(i)
                made.append(i)
        except Abandoned:
            ended.set()
            raise

    items = in_background(work)
    assert next(items) == 0
    items.close()
    assert ended.is_set()
    assert len(made) <= MOST_AHEAD + 1


def test_errors_come_after_the_items_before_them():
    def work(handing):
        handing.hand_out(1)
        raise KeyError("broken")

    items = in_background(work)
    assert next(items) == 1
    with pytest.raises(KeyError, match="broken"):
        next(items)
