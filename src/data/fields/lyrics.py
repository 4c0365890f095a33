"""The lyrics."""

from __future__ import annotations

from typing import Any, ClassVar

from ...core.registry import register
from .base import Field
from .values import parse_line


@register("field", "lyrics")
class Lyrics(Field):
    """Lyrics, with line breaks."""

    kind: ClassVar[str] = "text"
    expected: ClassVar[str] = "text"

    def parse(self, value: Any) -> str:
        """Return the lines, with single spaces."""
        if not isinstance(value, str):
            raise TypeError
        return "\n".join(parse_line(line) for line in value.splitlines()).strip()
