"""The harmony over time."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Any, ClassVar

from ...core.registry import register
from .values import SpansField, parse_line, parse_spans

_CHORD = re.compile(r"N|X|[A-G][b#]*(:[A-Za-z0-9#*,()+-]+)?(/[b#]*\d+)?")
"""The syntax of C. Harte et al. (ISMIR 2005): root, quality, bass; ``N`` for no chord, ``X`` for an unnamed chord."""

_ROUNDING = 0.01
"""Overlap of two chords, in seconds, that counts as rounding."""


@register("field", "chords")
class Chords(SpansField):
    """Chords as rows (start, end, chord), such as ``[0, 1.5, "G:min"]``, in seconds; ``N`` is no chord."""

    expected: ClassVar[str] = (
        'rows of start, end and chord that do not overlap, such as [[0, 1.5, "C:maj"], [1.5, 2, "G:7"]]'
    )

    def parse(self, value: Any) -> list[tuple[float, float, str]]:
        """Return the rows in the order of their starts; a string is parsed as JSON.

        A chord that ends slightly after the next one starts, as rounding makes it, ends there.
        """
        rows = parse_spans(value, _chord)
        for i, ((start, end, label), (following, _, _)) in enumerate(pairwise(rows)):
            if end - following > _ROUNDING or not start < following:
                raise ValueError
            rows[i] = start, min(end, following), label
        return rows


def _chord(label: Any) -> str:
    name = parse_line(label)
    if not _CHORD.fullmatch(name):
        raise ValueError
    return name
