"""The caption."""

from __future__ import annotations

from typing import ClassVar

from ...core.registry import register
from .values import TextField


@register("field", "text")
class Text(TextField):
    """Caption or prompt."""

    aliases: ClassVar[tuple[str, ...]] = ("caption",)
