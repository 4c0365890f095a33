"""The notes of the melody."""

from __future__ import annotations

from typing import Any, ClassVar

from ...core.registry import register
from .values import SpansField, parse_number, parse_spans


@register("field", "melody")
class Melody(SpansField):
    """Notes of the melody as rows (start, end, MIDI pitch), in seconds."""

    expected: ClassVar[str] = "rows of start, end and MIDI pitch, such as [[0, 0.5, 60], [0.5, 1, 62]]"

    def parse(self, value: Any) -> list[tuple[float, float, int]]:
        """Return the rows in the order of their starts, with the nearest MIDI pitch; a string is parsed as JSON."""
        return parse_spans(value, _pitch)


def _pitch(value: Any) -> int:
    pitch = round(parse_number(value))
    if not 0 <= pitch <= 127:
        raise ValueError
    return pitch
