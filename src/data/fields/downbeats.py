"""The times of the first beats of bars."""

from __future__ import annotations

from ...core.registry import register
from .values import TimesField


@register("field", "downbeats")
class Downbeats(TimesField):
    """Times at which bars begin, in seconds."""
