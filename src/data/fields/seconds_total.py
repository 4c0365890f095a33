"""The length of the piece."""

from __future__ import annotations

from typing import Any, ClassVar

from ...core.registry import register
from .base import Field
from .values import parse_positive


@register("field", "seconds_total")
class SecondsTotal(Field):
    """Length of the whole piece, in seconds."""

    kind: ClassVar[str] = "number"
    expected: ClassVar[str] = "seconds, a number above 0"

    def parse(self, value: Any) -> float:
        """Return the number."""
        return parse_positive(value)

    def default(self, seconds: float) -> float:
        """Return the length of the clip: an unknown clip is taken as a whole piece."""
        return seconds
