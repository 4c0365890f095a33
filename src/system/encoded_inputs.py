"""Conditions of what a user supplies, as stages are given them in generation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..conditioners.base import Conditioner
from ..core.contracts import Clip, Condition
from ..core.registry import did_you_mean, lookup
from ..data.clips import clip_for, prepare_clips
from ..data.fields.base import parse_value
from ..errors import PartitaError


@torch.inference_mode()
def encode_inputs(conditioner: Conditioner, seconds: float = 10.0, **inputs: Any) -> Condition:
    """Return the condition of what a user supplies, as a stage is given it in generation.

    Its ``values`` are embeddings ``[B, L, D]`` or codes ``[B, K, L]``, and its ``mask`` ``[B, L]`` says which of them
    are known.

    Args:
        conditioner: The conditioner, with its weights.
        seconds: Length of the clips. Only conditions that change in time depend on it.
        inputs: Values by the name of an input, one or a list with one for each clip, such as
            ``text=["a waltz", "a tango"]`` or ``audio="song.flac"``. A recording is a file, or a
            :class:`partita.Excerpt` of a file or an array.

    Raises:
        PartitaError: The conditioner does not read an input, a value is invalid, or their numbers differ.
    """
    for name in inputs:
        if name not in conditioner.inputs:
            hint = did_you_mean(name, conditioner.inputs)
            raise PartitaError(f"{conditioner.registered_name} does not read {name!r}{hint}")
    columns = {name: value if isinstance(value, list | tuple) else [value] for name, value in inputs.items()}
    if len({len(column) for column in columns.values()}) != 1 or not all(columns.values()):
        raise PartitaError("give each input a value for each clip, and at least one")
    if not isinstance(seconds, int | float) or not 0 < seconds < math.inf:
        raise PartitaError(f"seconds must be above 0, not {seconds!r}")
    clips = []
    for row in zip(*columns.values(), strict=True):
        fields = {name: _parsed(name, value) for name, value in zip(columns, row, strict=True)}
        audio = fields.pop("audio", None)
        clips.append(clip_for(conditioner, Clip(fields, seconds, audio), conditioner.longest_audio))
    return encode_clips(conditioner, clips, seconds)


def encode_clips(conditioner: Conditioner, clips: Sequence[Clip], seconds: float) -> Condition:
    """Return the condition of clips in the form of :func:`~partita.data.clips.clip_for`, of this many seconds."""
    # One clip at a time: in a batch, a sample would depend on the others by rounding errors, which grow.
    ready, device = [prepare_clips(conditioner, [clip]) for clip in clips], conditioner.device
    condition = Condition.cat([conditioner({k: t.to(device) for k, t in tensors.items()}) for tensors in ready])
    return condition if conditioner.spec.frame_rate is None else condition.lasting(conditioner.positions(seconds))


def _parsed(name: str, value: Any) -> Any:
    """Return the parsed value of an input.

    Raises:
        PartitaError: The value is invalid, or an array without a sample rate.
    """
    if lookup("field", name).kind == "audio" and isinstance(value, Tensor | np.ndarray):
        raise PartitaError(
            f"{name}: an array has no sample rate of its own: give partita.Excerpt(array, sample_rate=44100)"
        )
    try:
        return parse_value(name, value)
    except ValueError as error:
        raise PartitaError(f"{name} {error}") from None
