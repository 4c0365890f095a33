"""The clip itself, as something that is read."""

from __future__ import annotations

from ...core.registry import register
from .recordings import Recording


@register("field", "audio")
class Audio(Recording):
    """The clip itself. In training every clip has it; in generation somebody may supply a recording."""
