"""How long the piece is."""

from __future__ import annotations

from typing import Any, ClassVar

from ...core.registry import register
from .base import Field
from .values import positive_number_of


@register("field", "seconds_total")
class SecondsTotal(Field):
    """Seconds of the whole piece."""

    kind: ClassVar[str] = "number"
    expected: ClassVar[str] = "seconds, a number above 0"

    def parse(self, value: Any) -> float:
        """The number."""
        return positive_number_of(value)

    def unknown(self, seconds: float) -> float:
        """A clip of a piece whose length is not known is the whole piece."""
        return seconds
