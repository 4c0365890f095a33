"""The harmony over time."""

from __future__ import annotations

import re
from typing import Any, ClassVar

from ...core.registry import register
from .values import SpansField, parse_line, parse_spans

_CHORD = re.compile(r"N|X|[A-G][b#]*(:[A-Za-z0-9#*,()+-]+)?(/[b#]*\d+)?")
"""The syntax of C. Harte et al. (ISMIR 2005): root, quality, bass; ``N`` for no chord, ``X`` for an unnamed chord."""


@register("field", "chords")
class Chords(SpansField):
    """Chords as rows (start, end, chord), such as ``[0, 1.5, "G:min"]``, in seconds; ``N`` is no chord."""

    expected: ClassVar[str] = 'rows of start, end and chord, such as [[0, 1.5, "C:maj"], [1.5, 2, "G:7"]]'

    def parse(self, value: Any) -> list[tuple[float, float, str]]:
        """Return the rows in the order of their starts; a string is parsed as JSON."""
        return parse_spans(value, _chord)


def _chord(label: Any) -> str:
    name = parse_line(label)
    if not _CHORD.fullmatch(name):
        raise ValueError
    return name
