"""The notes of the melody."""

from __future__ import annotations

from typing import Any, ClassVar

from ...core.registry import register
from .values import SpansField, parse_rows, parse_span


@register("field", "melody")
class Melody(SpansField):
    """Notes of the melody as rows (start, end, MIDI pitch), in seconds."""

    expected: ClassVar[str] = "rows of start, end and MIDI pitch, such as [[0, 0.5, 60], [0.5, 1, 62]]"

    def parse(self, value: Any) -> list[tuple[float, float, int]]:
        """Return the rows; a string is parsed as JSON."""
        return [parse_span(row, int) for row in parse_rows(value)]
