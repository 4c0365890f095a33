"""The tempo."""

from __future__ import annotations

from typing import Any, ClassVar

from ...core.registry import register
from .base import Field
from .values import parse_positive


@register("field", "tempo")
class Tempo(Field):
    """Tempo in beats per minute."""

    kind: ClassVar[str] = "number"
    expected: ClassVar[str] = "beats per minute, a number above 0"

    def parse(self, value: Any) -> float:
        """Return the number."""
        return parse_positive(value)
