"""The pulse."""

from __future__ import annotations

from ...core.registry import register
from .values import Times


@register("field", "beats")
class Beats(Times):
    """When beats fall, in seconds."""
