"""Generating more than a stage sees at once: which stretches, in which order, each going on from the one before."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import lcm
from typing import NamedTuple

from ..core.rates import exact


class Window(NamedTuple):
    """One stretch of frames: those from ``known`` to ``stop`` are generated, those from ``start`` on are seen."""

    start: int
    known: int
    stop: int


def windows(
    total: int,
    window: int,
    overlap: int,
    *,
    known: int = 0,
    grid: int = 1,
    changes: Sequence[int] = (),
    transition: int | None = None,
) -> Iterator[Window]:
    """The windows that make ``total`` frames, each as long as ``window`` where it can be.

    >>> list(windows(10, 4, 2))
    [Window(start=0, known=0, stop=4), Window(start=2, known=4, stop=6), Window(start=4, known=6, stop=8), \
Window(start=6, known=8, stop=10)]

    Args:
        total: Frames in all.
        window: Most frames of one window, at least 1.
        overlap: Frames of what is known that a window starts with, or more; as many as leave one new frame, at most.
        known: Frames that are there already.
        grid: Windows start at multiples of this where that leaves the overlap and a new frame, so that what is given at
            another rate starts with them.
        changes: Frames at which no window may go over from known to new, because something else is given from there on.
        transition: The overlap at a change, as long as a window at most.
    """
    if window < 1 or overlap < 0 or grid < 1:
        raise ValueError(f"no windows of {window} frames with an overlap of {overlap} on a grid of {grid}")
    least, ends = 0, [*sorted(change for change in changes if known < change < total), total]
    if known and known in changes and transition is not None:
        least = max(0, known - transition)
    while known < total:
        stop_before = next(end for end in ends if end > known)
        # never so far back that nothing new has room, however long the overlap
        earliest = max(least, known - window + 1, 0)
        latest = max(earliest, known - overlap)
        start = max(earliest, min(latest, stop_before - window))
        above, below = start + -start % grid, start - start % grid
        if above <= latest:
            start = above
        elif below >= earliest:
            start = below
        stop = min(start + window, stop_before)
        yield Window(start, known, stop)
        known = stop
        if known in ends and transition is not None:
            least = max(least, known - transition)


def common_grid(frame_rate: float, others: Sequence[float]) -> int:
    """Frames at ``frame_rate`` after which frames at all the ``others`` begin anew, too.

    >>> common_grid(50.0, [25.0, 12.5])
    4
    """
    return lcm(*((exact(other) / exact(frame_rate)).denominator for other in others))
