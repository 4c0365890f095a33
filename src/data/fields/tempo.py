"""How fast it is."""

from __future__ import annotations

from typing import Any, ClassVar

from ...core.registry import register
from .base import Field
from .values import positive_number_of


@register("field", "tempo")
class Tempo(Field):
    """Beats per minute."""

    kind: ClassVar[str] = "number"
    expected: ClassVar[str] = "beats per minute, a number above 0"

    def parse(self, value: Any) -> float:
        """The number."""
        return positive_number_of(value)
