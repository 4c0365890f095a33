"""Where the clip begins in its piece."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from ...core.registry import register
from .base import Field, Segment
from .values import number_of


@register("field", "seconds_start")
class SecondsStart(Field):
    """Seconds of the piece before the clip."""

    kind: ClassVar[str] = "number"
    expected: ClassVar[str] = "seconds"
    timed: ClassVar[bool] = True

    def parse(self, value: Any) -> float:
        """The number."""
        return number_of(value)

    def crop(self, value: float, start: float, seconds: float) -> float:
        """Later by as much as the clip begins later."""
        return value + start

    def join(self, segments: Sequence[Segment]) -> float | None:
        """That of the beginning."""
        return segments[0].value

    def unknown(self, seconds: float) -> float:
        """A clip whose place is not known is the beginning of a piece."""
        return 0.0
