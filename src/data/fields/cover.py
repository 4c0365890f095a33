"""The same passage, played differently."""

from __future__ import annotations

from ...core.registry import register
from .recordings import AudioField


@register("field", "cover")
class Cover(AudioField):
    """The same passage, played differently: on other instruments, in another tempo and key, sung or hummed.

    It begins and ends with the passage in musical time, so its length in seconds follows from its own tempo. In a
    manifest, it is a file that plays the same as the whole file of its row.
    """
