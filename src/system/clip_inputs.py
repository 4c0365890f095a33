"""Prompts and stories of a batch as clips, the input of conditioners in generation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from ..conditioners.base import Conditioner
from ..core.contracts import Clip
from ..data.clips import clip_for, fill_defaults
from ..data.fields.base import Segment, crop_fields, field
from .request import Story


@dataclass(frozen=True)
class ClipInputs:
    """Prompts of a batch of samples whose prompts change at the same times.

    Args:
        inputs: Parsed value or story of each sample, by field.
        times: Start of each segment of the stories, in seconds.
        seconds: Length of the clips, in seconds.
        sample_rate: Sample rate of audio tensors, in Hz.
    """

    inputs: Mapping[str, Sequence[Any]]
    times: tuple[float, ...]
    seconds: float
    sample_rate: int

    def clips(self, conditioner: Conditioner, batch: int, segment: int, time_range: tuple[float, float]) -> list[Clip]:
        """Return a clip for each sample as input of a conditioner.

        The segments of a story are joined to one value over the whole clip for fields that vary in time. Other fields
        have the value of one segment.

        Args:
            conditioner: Conditioner that reads the clips.
            batch: Number of samples.
            segment: Index of the story's segment.
            time_range: Start and length of the excerpt that the clips cover, in seconds; (0, :attr:`seconds`) for all.
        """
        clips = []
        for i in range(batch):
            fields = {name: self._value(name, values[i], segment) for name, values in self.inputs.items()}
            fields = crop_fields(fill_defaults(fields, conditioner.inputs, self.seconds), *time_range)
            audio = fields.pop("audio", None)
            clip = Clip(fields, time_range[1], audio, self.sample_rate)
            clips.append(clip_for(conditioner, clip, conditioner.longest_audio))
        return clips

    def _value(self, name: str, value: Any, segment: int) -> Any:
        one = field(name)
        if not isinstance(value, Story):
            return value
        if not one.timed:
            return value.segments[segment][1]
        ends = pairwise([*value.times, max(self.seconds, value.times[-1])])
        return one.join([Segment(*t, part) for t, (_, part) in zip(ends, value.segments, strict=True)])


def changes_in_time(conditioner: Conditioner) -> bool:
    """Return whether a conditioner reads fields that vary in time, whose value depends on the excerpt of the clip."""
    return any(field(name).timed for name in conditioner.inputs)
