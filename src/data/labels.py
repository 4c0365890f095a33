"""Labels in time: cut to a clip, in seconds from its start."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike


def clip_labels(fields: Mapping[str, Any], start: float, seconds: float) -> dict[str, Any]:
    """Fields of a piece as fields of a clip: those in time are cut to it, the others stay.

    Args:
        fields: Of the piece; times are in seconds from its start.
        start: Of the clip, in seconds.
        seconds: Its length.
    """
    cuts: dict[str, Callable[..., Any]] = {
        "beats": clip_times,
        "downbeats": clip_times,
        "chords": clip_spans,
        "melody": clip_spans,
    }
    return {name: cuts[name](value, start, seconds) if name in cuts else value for name, value in fields.items()}


def clip_times(times: ArrayLike, start: float, seconds: float) -> np.ndarray:
    """The moments in a clip.

    >>> clip_times(np.array([0.5, 1.0, 1.5, 2.0]), 1.0, 1.0)
    array([0. , 0.5])
    """
    moments = np.asarray(times, np.float64) - start
    return moments[(moments >= -1e-9) & (moments < seconds)].clip(0)


def clip_spans(
    spans: Iterable[tuple[float, float, Any]], start: float, seconds: float
) -> list[tuple[float, float, Any]]:
    """What lasts, cut where the clip begins and ends.

    >>> clip_spans([(0.0, 1.5, "C:maj"), (1.5, 3.0, "G:7")], 1.0, 1.0)
    [(0.0, 0.5, 'C:maj'), (0.5, 1.0, 'G:7')]
    """
    found = []
    for begin, end, label in spans:
        begin, end = max(0.0, begin - start), min(seconds, end - start)
        if end - begin > 1e-6:
            found.append((begin, end, label))
    return found
