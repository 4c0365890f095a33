"""Splitting a clip that is longer than a stage's window into overlapping windows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import lcm
from typing import NamedTuple

from ..core.rates import exact


class Window(NamedTuple):
    """A range of frames: those from ``known`` to ``stop`` are generated, given those from ``start`` to ``known``."""

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
    """Yield the windows that cover ``total`` frames, each as long as ``window`` if possible.

    >>> list(windows(10, 4, 2))
    [Window(start=0, known=0, stop=4), Window(start=2, known=4, stop=6), Window(start=4, known=6, stop=8), \
Window(start=6, known=8, stop=10)]

    Args:
        total: Total number of frames.
        window: Maximum number of frames in a window, at least 1.
        overlap: Minimum number of known frames at the start of a window, limited so that one new frame remains.
        known: Number of frames that already exist.
        grid: Windows start at multiples of this number if that leaves the overlap and a new frame, so that inputs with
            another frame rate start at the same time.
        changes: Frames at which the conditions change. No window generates frames on both sides of a change.
        transition: Maximum overlap with the frames before a change. ``None`` uses ``overlap``.
    """
    if window < 1 or overlap < 0 or grid < 1:
        raise ValueError(f"cannot make windows of {window} frames with an overlap of {overlap} on a grid of {grid}")
    least, ends = 0, [*sorted(change for change in changes if known < change < total), total]
    if known and known in changes and transition is not None:
        least = max(0, known - transition)
    while known < total:
        stop_before = next(end for end in ends if end > known)
        # At least one frame of the window is new, however long the overlap.
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


def common_grid(frame_rate: float, others: Sequence[float], longest: int) -> int:
    """Return the number of frames at ``frame_rate`` after which frames start at other frame rates, too.

    If it exceeds ``longest``, only frames at the lowest of the other rates do, and the others are off by up to half of
    one of their frames, as in training on stored tokens. If that is too seldom as well, the grid is one frame.

    >>> common_grid(50.0, [25.0, 12.5], 100), common_grid(25.0, [12.5, 1.0], 30), common_grid(25.0, [1.0], 20)
    (4, 25, 1)
    """
    for rates in (others, [min(others)] if others else []):
        grid = lcm(*((exact(other) / exact(frame_rate)).denominator for other in rates))
        if grid <= longest:
            return grid
    return 1
