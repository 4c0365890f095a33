"""Parsers and base classes of fields by kind: text, numbers, times and spans."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike

from .base import Field, Segment


def parse_line(value: Any) -> str:
    """Return a string as one line with single spaces."""
    if not isinstance(value, str):
        raise TypeError
    value.encode()  # raises an error for lone surrogates, which JSON allows but no file can hold
    return " ".join(value.split())


def parse_number(value: Any) -> float:
    """Return a finite number."""
    if isinstance(value, bool):
        raise TypeError
    number = float(value)
    if not math.isfinite(number):
        raise ValueError
    return number


def parse_positive(value: Any) -> float:
    """Return a finite number above 0."""
    number = parse_number(value)
    if not number > 0:
        raise ValueError
    return number


def parse_rows(value: Any) -> Any:
    """Return a list; a string is parsed as JSON."""
    return json.loads(value) if isinstance(value, str) else value


def parse_spans(value: Any, label: Callable[[Any], Any]) -> list[tuple[float, float, Any]]:
    """Return rows (start, end, label) in the order of their starts; a string is parsed as JSON."""
    return sorted((parse_span(row, label) for row in parse_rows(value)), key=lambda row: row[:2])


def parse_span(row: Any, label: Callable[[Any], Any]) -> tuple[float, float, Any]:
    """Return a row (start, end, label), with the label parsed by ``label``."""
    start, end, value = row
    start, end = parse_number(start), parse_number(end)
    if not start < end:
        raise ValueError
    return start, end, label(value)


class TextField(Field):
    """A field of text in one line."""

    kind: ClassVar[str] = "text"
    expected: ClassVar[str] = "text"

    def parse(self, value: Any) -> str:
        """Return the text, with single spaces."""
        return parse_line(value)


class TimesField(Field):
    """A field of times."""

    kind: ClassVar[str] = "times"
    expected: ClassVar[str] = "a list of times in seconds, such as [0.5, 1.0]"
    timed: ClassVar[bool] = True

    def parse(self, value: Any) -> list[float]:
        """Return the times in seconds, in ascending order; a string is parsed as JSON."""
        return sorted(parse_number(time) for time in parse_rows(value))

    def crop(self, value: ArrayLike, start: float, seconds: float) -> np.ndarray:
        """Return the times within the clip.

        >>> TimesField.crop(None, np.array([0.5, 1.0, 1.5, 2.0]), 1.0, 1.0)
        array([0. , 0.5])
        """
        times = np.asarray(value, np.float64) - start
        return times[(times >= -1e-9) & (times < seconds)].clip(0)

    def join(self, segments: Sequence[Segment]) -> np.ndarray | None:
        """Return the times of all segments; times outside their own segment are dropped."""
        known = [s for s in segments if s.value is not None]
        if not known:
            return None
        return np.concatenate([self.crop(s.value, 0.0, s.stop - s.start) + s.start for s in known])


class SpansField(Field):
    """A field of spans, as rows (start, end, label)."""

    kind: ClassVar[str] = "spans"
    timed: ClassVar[bool] = True

    def crop(
        self, value: Iterable[tuple[float, float, Any]], start: float, seconds: float
    ) -> list[tuple[float, float, Any]]:
        """Return the spans within the clip, cropped to it.

        >>> SpansField.crop(None, [(0.0, 1.5, "C:maj"), (1.5, 3.0, "G:7")], 1.0, 1.0)
        [(0.0, 0.5, 'C:maj'), (0.5, 1.0, 'G:7')]
        """
        found = []
        for begin, end, label in value:
            begin, end = max(0.0, begin - start), min(seconds, end - start)
            if end - begin > 1e-6:
                found.append((begin, end, label))
        return found

    def join(self, segments: Sequence[Segment]) -> list[tuple[float, float, Any]] | None:
        """Return the spans of all segments, cropped to their segments."""
        known = [s for s in segments if s.value is not None]
        if not known:
            return None
        return [
            (begin + s.start, end + s.start, label)
            for s in known
            for begin, end, label in self.crop(s.value, 0.0, s.stop - s.start)
        ]
