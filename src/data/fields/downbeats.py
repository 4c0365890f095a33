"""The first beats of bars."""

from __future__ import annotations

from ...core.registry import register
from .values import Times


@register("field", "downbeats")
class Downbeats(Times):
    """When bars begin, in seconds."""
