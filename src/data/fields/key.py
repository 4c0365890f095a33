"""The key."""

from __future__ import annotations

from typing import ClassVar

from ...core.registry import register
from .values import TextField


@register("field", "key")
class Key(TextField):
    """Tonic and mode, such as ``G minor``."""

    expected: ClassVar[str] = "a key, such as G minor"
