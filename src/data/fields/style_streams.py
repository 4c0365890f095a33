"""How closely the style of a recording is followed."""

from __future__ import annotations

from typing import Any, ClassVar

from ...core.registry import register
from .base import Field
from .values import parse_number


@register("field", "style_streams")
class StyleStreams(Field):
    """Number of codebooks that describe the style of a recording: more of them follow it more closely."""

    kind: ClassVar[str] = "number"
    expected: ClassVar[str] = "the number of codebooks of the style, a whole number from 1"

    def parse(self, value: Any) -> int:
        """Return the number."""
        number = parse_number(value)
        if number < 1 or number != int(number):
            raise ValueError
        return int(number)
