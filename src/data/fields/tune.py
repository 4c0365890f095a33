"""The tune, by which clips that are not independent of each other are known."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from ...core.registry import register
from .values import TextField


@register("field", "tune")
class Tune(TextField):
    """Name of the tune, song or work that several recordings share."""

    expected: ClassVar[str] = "the name of a tune"


def group_of(fields: Mapping[str, Any]) -> str | None:
    """Return the name that clips have in common if they are not independent: that of their tune, or of their piece.

    Args:
        fields: The fields of a clip.

    Returns:
        The name; ``None`` if neither is known.
    """
    name = next((fields[key] for key in ("tune", "id") if fields.get(key) is not None), None)
    return None if name is None else str(name)
