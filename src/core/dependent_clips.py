"""Which clips are not independent of each other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def group_of(fields: Mapping[str, Any]) -> str | None:
    """Return the name that clips have in common if they are not independent: that of their tune, or of their piece.

    Args:
        fields: The fields of a clip.

    Returns:
        The name; ``None`` if neither is known.
    """
    name = next((fields[key] for key in ("tune", "id") if fields.get(key) is not None), None)
    return None if name is None else str(name)
