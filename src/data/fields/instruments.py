"""The names of the instruments."""

from __future__ import annotations

from typing import Any, ClassVar

from ...core.registry import register
from .base import Field
from .values import parse_line


@register("field", "instruments")
class Instruments(Field):
    """Names of instruments."""

    kind: ClassVar[str] = "names"
    expected: ClassVar[str] = "names separated by commas, or a list of names"

    def parse(self, value: Any) -> list[str]:
        """Return the names; a string is split at commas and semicolons."""
        if isinstance(value, str):
            value = value.replace(";", ",").split(",")
        return [name for name in map(parse_line, value) if name]
