"""What conditioners are told of clips that are generated: prompts and stories as clips, whole or in stretches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from ..conditioners.base import Conditioner
from ..core.contracts import Clip
from ..data.clips import clip_for, completed
from ..data.fields.base import Segment, cropped, field
from .request import Story


@dataclass(frozen=True)
class ClipInputs:
    """What is asked of a batch whose prompts change at the same times.

    Args:
        inputs: By field, a value or story for each sample, as its parser has it.
        times: When each segment begins, in seconds.
        seconds: Length of the clips.
        sample_rate: Rate of samples that do not tell theirs, in Hz.
    """

    inputs: Mapping[str, Sequence[Any]]
    times: tuple[float, ...]
    seconds: float
    sample_rate: int

    def clips(self, conditioner: Conditioner, batch: int, segment: int, stretch: tuple[float, float]) -> list[Clip]:
        """What a conditioner is told of each sample.

        Fields in time are one timeline over the whole clip, however many segments a story has. Of any other field,
        the value of the segment counts.

        Args:
            conditioner: That is told.
            batch: Number of samples.
            segment: The segment of the story.
            stretch: Start and length in seconds of what the conditioner is told of; (0, :attr:`seconds`) for all.
        """
        clips = []
        for i in range(batch):
            fields = {name: self._value(name, values[i], segment) for name, values in self.inputs.items()}
            fields = cropped(completed(fields, conditioner.inputs, self.seconds), *stretch)
            audio = fields.pop("audio", None)
            clips.append(clip_for(conditioner, Clip(fields, stretch[1], audio, self.sample_rate)))
        return clips

    def _value(self, name: str, value: Any, segment: int) -> Any:
        one = field(name)
        if not isinstance(value, Story):
            return value
        if not one.timed:
            return value.segments[segment][1]
        ends = pairwise([*value.times, max(self.seconds, value.times[-1])])
        return one.join([Segment(*t, said) for t, (_, said) in zip(ends, value.segments, strict=True)])


def changes_in_time(conditioner: Conditioner) -> bool:
    """Whether it reads fields of which a stretch of a clip has another value than the whole."""
    return any(field(name).timed for name in conditioner.inputs)
