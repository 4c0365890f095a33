"""The caption."""

from __future__ import annotations

from typing import ClassVar

from ...core.registry import register
from .values import Words


@register("field", "text")
class Text(Words):
    """A caption, or a prompt."""

    aliases: ClassVar[tuple[str, ...]] = ("caption",)
