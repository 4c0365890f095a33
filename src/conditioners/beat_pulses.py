"""The beats over time as pulses."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from ..core.contracts import Clip, Condition, ConditionSpec
from ..core.rates import exact
from ..core.registry import register
from .base import Conditioner
from .frames import check_frames

SHAPE = (0.05, 0.1, 0.3, 0.9, 0.3, 0.1, 0.05)
"""The pulse of a beat, frame by frame."""

BEATS_PER_BAR = 4
FASTEST = 1000.0
"""Beats per minute above which a tempo has no grid of beats."""


@register("conditioner", "beats")
class Beats(Conditioner):
    """A pulse for each beat, and another one for the first beat of each bar (MusiConGen, arXiv 2407.15060).

    Each frame is one number. A beat adds 0.9 to its frame and 0.3, 0.1 and 0.05 to the frames beside it, and a downbeat
    adds 1 to its frame alone. A frame holds the times from its start up to its end. In generation, a ``tempo`` without
    beats stands for a regular grid in 4/4 from the start of the clip; in training it does not, because the first beat
    is unknown. Clips without any of them are masked, as is the null condition.

    Args:
        frame_rate: Frames per second. With that of the target, a pulse is added to the frames around its beat.
        inputs: Names of the fields that the conditioner reads, of ``beats``, ``downbeats`` and ``tempo``.

    Raises:
        ValueError: A value is out of range.
    """

    inputs: tuple[str, ...] = ("beats", "downbeats", "tempo")
    kinds: ClassVar[tuple[str, ...]] = ("times", "number")
    trainable: ClassVar[bool] = False
    weightless: ClassVar[bool] = True

    def __init__(self, *, frame_rate: float = 50.0, inputs: tuple[str, ...] = ("beats", "downbeats", "tempo")) -> None:
        super().__init__(inputs)
        check_frames(frame_rate)
        if others := [name for name in self.inputs if name not in Beats.inputs]:
            raise ValueError(f"inputs: beats reads {', '.join(Beats.inputs)}, not {others[0]}")
        self.frame_rate = frame_rate

    @property
    def spec(self) -> ConditionSpec:
        """One number per frame."""
        return ConditionSpec(1, self.frame_rate)

    def prepare(self, clips: Sequence[Clip]) -> dict[str, Tensor]:
        """``pulses`` ``[B, L, 1]`` float, and ``mask`` ``[B, L]`` bool, true where beats are known."""
        lengths = [self.positions(clip.seconds) for clip in clips]
        pulses = torch.zeros(len(clips), max(lengths), 1)
        mask = torch.zeros(pulses.shape[:2], dtype=torch.bool)
        for row, known, clip, length in zip(pulses, mask, clips, lengths, strict=True):
            found = self._times(clip)
            if found is not None:
                beats, downbeats = (self._impulses(times, length) for times in found)
                row[:length, 0] = F.conv1d(beats[None, None], torch.tensor(SHAPE)[None, None], padding=3)[0, 0]
                row[:length, 0] += downbeats
                known[:length] = True
        return {"pulses": pulses, "mask": mask}

    def forward(self, prepared: dict[str, Tensor]) -> Condition:
        """Pulses ``[B, L, 1]``, zero where masked."""
        return Condition(prepared["pulses"], prepared["mask"])

    def _times(self, clip: Clip) -> tuple[Sequence[float], Sequence[float]] | None:
        """Beats and downbeats in seconds; ``None`` if neither is known."""
        beats, downbeats, tempo = (self._field(clip, name) for name in Beats.inputs)
        if beats is None and downbeats is None:
            if tempo is None or clip.seed is not None:
                return None
            grid = regular_beats(tempo, clip.seconds)
            return grid, grid[::BEATS_PER_BAR]
        return (downbeats if beats is None else beats), (() if downbeats is None else downbeats)

    def _field(self, clip: Clip, name: str) -> Any:
        return clip.fields.get(name) if name in self.inputs else None

    def _impulses(self, times: Iterable[float], length: int) -> Tensor:
        """``[length]``, 1 in each frame in which there is a time."""
        impulses = torch.zeros(length)
        for time in times:
            frame = int(exact(float(time)) * exact(self.frame_rate))
            if time >= 0 and frame < length:
                impulses[frame] = 1
        return impulses


def regular_beats(tempo: float, seconds: float) -> list[float]:
    """The times of beats at a tempo in beats per minute, from 0 and before ``seconds``.

    >>> regular_beats(120, 2)
    [0.0, 0.5, 1.0, 1.5]

    Raises:
        ValueError: The tempo is not above 0, or too fast.
    """
    if not 0 < tempo <= FASTEST:
        raise ValueError(f"a tempo must be above 0 and at most {FASTEST:g} beats per minute, not {tempo:g}")
    return [beat * 60 / tempo for beat in range(math.ceil(exact(seconds) * exact(tempo) / 60))]
