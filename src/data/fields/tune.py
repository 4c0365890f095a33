"""The tune, by which clips that are not independent of each other are known."""

from __future__ import annotations

from typing import ClassVar

from ...core.registry import register
from .values import TextField


@register("field", "tune")
class Tune(TextField):
    """Name of the tune, song or work that several recordings share."""

    expected: ClassVar[str] = "the name of a tune"
