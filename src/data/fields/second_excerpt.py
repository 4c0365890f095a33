"""Another clip of the same piece."""

from __future__ import annotations

from ...core.registry import register
from .recordings import Recording


@register("field", "excerpt")
class SecondExcerpt(Recording):
    """A second excerpt of the same piece: its style. Sources draw one at random unless a manifest names a file."""
