"""Another excerpt of the same piece."""

from __future__ import annotations

from ...core.registry import register
from .recordings import AudioField


@register("field", "excerpt")
class SecondExcerpt(AudioField):
    """A second excerpt of the same piece, as a style reference. Drawn at random unless a manifest names a file."""
