"""What fields of one kind share: how texts, names, numbers and rows in time are read and cut."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike

from .base import Field, Segment


def text_of(value: Any) -> str:
    """One line of text."""
    if not isinstance(value, str):
        raise TypeError
    value.encode()  # half a character that JSON can spell fits into no file
    return " ".join(value.split())


def number_of(value: Any) -> float:
    """A finite number."""
    if isinstance(value, bool):
        raise TypeError
    number = float(value)
    if not math.isfinite(number):
        raise ValueError
    return number


def positive_number_of(value: Any) -> float:
    """A finite number above 0."""
    number = number_of(value)
    if not number > 0:
        raise ValueError
    return number


def rows_of(value: Any) -> Any:
    """A list, or the list that a text spells as JSON."""
    return json.loads(value) if isinstance(value, str) else value


def span_of(row: Any, label: Callable[[Any], Any]) -> tuple[float, float, Any]:
    """A row (start, end, label)."""
    start, end, said = row
    start, end = number_of(start), number_of(end)
    if not start < end:
        raise ValueError
    return start, end, label(said)


class Words(Field):
    """A field of text on one line."""

    kind: ClassVar[str] = "text"
    expected: ClassVar[str] = "text"

    def parse(self, value: Any) -> str:
        """The text, with single spaces."""
        return text_of(value)


class Times(Field):
    """A field of moments."""

    kind: ClassVar[str] = "times"
    expected: ClassVar[str] = "a list of times in seconds, such as [0.5, 1.0]"
    timed: ClassVar[bool] = True

    def parse(self, value: Any) -> list[float]:
        """The moments in seconds; of a text, as JSON."""
        return [number_of(time) for time in rows_of(value)]

    def crop(self, value: ArrayLike, start: float, seconds: float) -> np.ndarray:
        """The moments in the clip.

        >>> Times.crop(None, np.array([0.5, 1.0, 1.5, 2.0]), 1.0, 1.0)
        array([0. , 0.5])
        """
        moments = np.asarray(value, np.float64) - start
        return moments[(moments >= -1e-9) & (moments < seconds)].clip(0)

    def join(self, segments: Sequence[Segment]) -> np.ndarray | None:
        """The moments of every segment, each within its own time."""
        known = [s for s in segments if s.value is not None]
        if not known:
            return None
        return np.concatenate([self.crop(s.value, 0.0, s.stop - s.start) + s.start for s in known])


class Spans(Field):
    """A field of things that last, as rows (start, end, label)."""

    kind: ClassVar[str] = "spans"
    timed: ClassVar[bool] = True

    def crop(
        self, value: Iterable[tuple[float, float, Any]], start: float, seconds: float
    ) -> list[tuple[float, float, Any]]:
        """What sounds in the clip, cut where the clip begins and ends.

        >>> Spans.crop(None, [(0.0, 1.5, "C:maj"), (1.5, 3.0, "G:7")], 1.0, 1.0)
        [(0.0, 0.5, 'C:maj'), (0.5, 1.0, 'G:7')]
        """
        found = []
        for begin, end, label in value:
            begin, end = max(0.0, begin - start), min(seconds, end - start)
            if end - begin > 1e-6:
                found.append((begin, end, label))
        return found

    def join(self, segments: Sequence[Segment]) -> list[tuple[float, float, Any]] | None:
        """What sounds in every segment, cut where the segment ends."""
        known = [s for s in segments if s.value is not None]
        if not known:
            return None
        return [
            (begin + s.start, end + s.start, label)
            for s in known
            for begin, end, label in self.crop(s.value, 0.0, s.stop - s.start)
        ]
