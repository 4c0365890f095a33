"""The tune."""

from __future__ import annotations

from typing import Any, ClassVar

from ...core.registry import register
from .values import Spans, rows_of, span_of


@register("field", "melody")
class Melody(Spans):
    """Notes of the tune as rows (start, end, MIDI pitch), in seconds."""

    expected: ClassVar[str] = "rows of start, end and MIDI pitch, such as [[0, 0.5, 60], [0.5, 1, 62]]"

    def parse(self, value: Any) -> list[tuple[float, float, int]]:
        """The rows; of a text, as JSON."""
        return [span_of(row, int) for row in rows_of(value)]
