"""The audio of the clip itself, as an input of conditioners."""

from __future__ import annotations

from ...core.registry import register
from .recordings import AudioField


@register("field", "audio")
class Audio(AudioField):
    """Audio of the clip itself: always known in training, an optional recording in generation."""
