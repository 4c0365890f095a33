"""The melody of a recording as its strongest pitch class over time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from ..core.contracts import Clip, Condition, ConditionSpec
from ..core.registry import register
from ..layers.chroma import CLASSES, Chroma
from .base import Conditioner
from .frames import LONGEST_SECONDS


@register("conditioner", "melody-chroma")
class MelodyChroma(Conditioner):
    """The strongest pitch class of each frame of a recording (MusicGen, arXiv 2306.05284 §2.3).

    Each frame is twelve numbers, C first, of which one is 1 and the others are 0. So instruments and octaves make no
    difference, and a stage that is given the frames takes melody and harmony from a recording. Frames are computed by
    the processes that read the data.

    If the stems of a clip are known, those in ``without`` are left out, as MusicGen leaves out drums and bass. Where
    there is no recording, each frame is a C, as in a silent one; that is also the null condition, and nothing of it is
    masked. The frames of a recording that is shorter than the clip are repeated.

    Args:
        sample_rate: Sample rate of the audio, in Hz.
        window: Samples per frame, Hann windowed. ``None`` takes the power of two nearest to 0.512 s.
        hop: Samples between frames. ``None`` takes a quarter of the window.
        at_least: Seconds that every condition has at least, however short the clip. MusicGen's prefix is always of 30
            seconds, as in its training.
        without: Names of the stems that are left out.
        inputs: Names of the fields of audio that the conditioner reads. If a clip has several, the one that is named
            first is its condition.

    Raises:
        ValueError: A value is out of range.
    """

    inputs: tuple[str, ...] = ("stems", "audio", "cover")
    kinds: ClassVar[tuple[str, ...]] = ("audio",)
    reads_one: ClassVar[bool] = True
    trainable: ClassVar[bool] = False
    weightless: ClassVar[bool] = True

    def __init__(
        self,
        *,
        sample_rate: int = 32000,
        window: int | None = None,
        hop: int | None = None,
        at_least: float = 0.0,
        without: tuple[str, ...] = ("drums", "bass"),
        inputs: tuple[str, ...] = ("stems", "audio", "cover"),
    ) -> None:
        super().__init__(inputs)
        for name, value in (("sample_rate", sample_rate), ("window", window), ("hop", hop)):
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")
        if not 0 <= at_least <= LONGEST_SECONDS:
            raise ValueError(f"at_least must be from 0 to {LONGEST_SECONDS:g} seconds, not {at_least}")
        self.sample_rate, self.at_least, self.without = sample_rate, at_least, tuple(without)
        self.chroma = Chroma(sample_rate, window=window, hop=hop, one_hot=True)

    @property
    def spec(self) -> ConditionSpec:
        """Twelve numbers per frame. Frames are centered on multiples of the hop."""
        return ConditionSpec(CLASSES, self.chroma.frame_rate)

    def positions(self, seconds: float) -> int:
        """Number of frames of the condition for a clip of this many seconds."""
        return super().positions(max(self.at_least, seconds))

    def prepare(self, clips: Sequence[Clip]) -> dict[str, Tensor]:
        """``classes`` ``[B, L]`` int64, the strongest pitch class of each frame, and ``mask`` ``[B, L]`` bool.

        A class is from C = 0 to B = 11. The mask is false where a clip is shorter than the longest of the batch.
        """
        lengths = [self.positions(clip.seconds) for clip in clips]
        classes = torch.zeros(len(clips), max(lengths), dtype=torch.long)
        for row, clip, length in zip(classes, clips, lengths, strict=True):
            audio = self._recording(clip)
            if audio is not None and audio.numel():
                frames = self.chroma(audio[None])[0].argmax(-1)
                row[:length] = frames.repeat(math.ceil(length / len(frames)))[:length]
        return {"classes": classes, "mask": torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]}

    def forward(self, prepared: dict[str, Tensor]) -> Condition:
        """Frames ``[B, L, 12]``, zero where masked."""
        mask = prepared["mask"]
        return Condition(F.one_hot(prepared["classes"], CLASSES) * mask[..., None].float(), mask)

    def null(self, condition: Condition) -> Condition:
        """A C in each frame, which is the melody of silence."""
        silent = F.one_hot(torch.zeros_like(condition.mask, dtype=torch.long), CLASSES).to(condition.values.dtype)
        return Condition(silent * condition.mask[..., None], condition.mask)

    def _recording(self, clip: Clip) -> Tensor | None:
        """The audio ``[1, T]`` of which the melody is taken; ``None`` if a clip has none."""
        for name in self.inputs:
            value: Any = clip.audio if name == "audio" else clip.fields.get(name)
            if value is None:
                continue
            if name != "stems":
                return value
            kept = [audio for stem, audio in value.items() if stem not in self.without]
            if kept:
                longest = max(audio.shape[-1] for audio in kept)
                return torch.stack([F.pad(audio, (0, longest - audio.shape[-1])) for audio in kept]).sum(0)
        return None
