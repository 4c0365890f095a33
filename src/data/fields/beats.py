"""The times of the beats."""

from __future__ import annotations

from ...core.registry import register
from .values import TimesField


@register("field", "beats")
class Beats(TimesField):
    """Times of the beats, in seconds."""
