"""The start of the clip within its piece."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from ...core.registry import register
from .base import Field, Segment
from .values import parse_number


@register("field", "seconds_start")
class SecondsStart(Field):
    """Start of the clip within its piece, in seconds."""

    kind: ClassVar[str] = "number"
    expected: ClassVar[str] = "seconds"
    timed: ClassVar[bool] = True

    def parse(self, value: Any) -> float:
        """Return the number."""
        return parse_number(value)

    def crop(self, value: float, start: float, seconds: float) -> float:
        """Return the start of the clip within the piece."""
        return value + start

    def join(self, segments: Sequence[Segment]) -> float | None:
        """Return the start of the first segment."""
        return segments[0].value

    def default(self, seconds: float) -> float:
        """Return 0: an unknown clip is taken as the beginning of a piece."""
        return 0.0
