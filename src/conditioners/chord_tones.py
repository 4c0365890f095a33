"""The chords over time as pitch classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from ..core.chord_names import pitch_classes
from ..core.contracts import Clip, Condition, ConditionSpec
from ..core.rates import nearest
from ..core.registry import register
from .base import Conditioner
from .frames import check_frames

CLASSES = 12


@register("conditioner", "chords")
class Chords(Conditioner):
    """The pitch classes of the chord that sounds in each frame (MusiConGen, arXiv 2407.15060).

    Each frame is twelve numbers, C first: 1 for each tone of the chord at its center, bass included, and 0 for the
    others. ``N``, no chord, has no tones. Frames without a chord that is known, such as ``X`` and those after the last
    one, are masked; so is the null condition.

    Args:
        frame_rate: Frames per second. With that of the target, the chord of a frame is added to this frame alone.
        at_least: Seconds that every condition has at least, however short the clip: 30 for MusiConGen's prefix.
        inputs: Name of the field of chords that the conditioner reads.

    Raises:
        ValueError: A value is out of range.
    """

    inputs: tuple[str, ...] = ("chords",)
    kinds: ClassVar[tuple[str, ...]] = ("spans",)
    reads_one: ClassVar[bool] = True
    trainable: ClassVar[bool] = False
    weightless: ClassVar[bool] = True

    def __init__(
        self, *, frame_rate: float = 50.0, at_least: float = 0.0, inputs: tuple[str, ...] = ("chords",)
    ) -> None:
        super().__init__(inputs)
        check_frames(frame_rate, at_least)
        self.frame_rate, self.at_least = frame_rate, at_least

    @property
    def spec(self) -> ConditionSpec:
        """Twelve numbers per frame."""
        return ConditionSpec(CLASSES, self.frame_rate)

    def positions(self, seconds: float) -> int:
        """Number of frames of the condition for a clip of this many seconds."""
        return super().positions(max(self.at_least, seconds))

    def prepare(self, clips: Sequence[Clip]) -> dict[str, Tensor]:
        """``tones`` ``[B, L, 12]`` bool, and ``mask`` ``[B, L]`` bool, true where the chord is known."""
        lengths = [self.positions(clip.seconds) for clip in clips]
        tones = torch.zeros(len(clips), max(lengths), CLASSES, dtype=torch.bool)
        mask = torch.zeros(tones.shape[:2], dtype=torch.bool)
        for own, known, clip, length in zip(tones, mask, clips, lengths, strict=True):
            spans = next((clip.fields[name] for name in self.inputs if clip.fields.get(name) is not None), ())
            for start, end, label in spans:
                # the frames whose center is in the span
                first, last = (min(length, max(0, nearest(time, self.frame_rate))) for time in (start, end))
                classes = pitch_classes(str(label))
                if classes is not None:
                    known[first:last] = True
                    own[first:last, sorted(classes)] = True
        return {"tones": tones, "mask": mask}

    def forward(self, prepared: dict[str, Tensor]) -> Condition:
        """Frames ``[B, L, 12]``, zero where masked."""
        return Condition(prepared["tones"].float(), prepared["mask"])
