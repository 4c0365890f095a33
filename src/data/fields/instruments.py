"""Who plays."""

from __future__ import annotations

from typing import Any, ClassVar

from ...core.registry import register
from .base import Field
from .values import text_of


@register("field", "instruments")
class Instruments(Field):
    """Names of instruments."""

    kind: ClassVar[str] = "names"
    expected: ClassVar[str] = "names with commas between them, or a list of names"

    def parse(self, value: Any) -> list[str]:
        """The names; of a text, what commas or semicolons separate."""
        if isinstance(value, str):
            value = value.replace(";", ",").split(",")
        return [name for name in map(text_of, value) if name]
