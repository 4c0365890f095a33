"""What is sung."""

from __future__ import annotations

from typing import Any, ClassVar

from ...core.registry import register
from .base import Field
from .values import text_of


@register("field", "lyrics")
class Lyrics(Field):
    """The words that are sung, with their line breaks."""

    kind: ClassVar[str] = "text"
    expected: ClassVar[str] = "text"

    def parse(self, value: Any) -> str:
        """The lines, each with single spaces."""
        if not isinstance(value, str):
            raise TypeError
        return "\n".join(text_of(line) for line in value.splitlines()).strip()
