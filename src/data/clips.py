"""Clips as conditioners read them: only the fields that they read, with audio at their sample rate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from ..core.contracts import Clip, Example
from ..errors import PartitaError
from .fields.base import field

ALWAYS = frozenset({"audio", "excerpt"})
"""Fields that every source supplies in training: the clip itself, and another clip of the same piece."""


class Reader(Protocol):
    """What reads clips, as conditioners do."""

    inputs: tuple[str, ...]
    sample_rate: int | None
    channels: int

    def prepare(self, clips: Sequence[Clip]) -> dict[str, Tensor]:
        """Clips to tensors."""
        ...


def clip_for(reader: Reader, clip: Clip) -> Clip:
    """Return a clip in the form that a reader takes.

    Audio that the reader takes is converted to its sample rate and channels, and other audio is removed. Unknown fields
    get the value that stands for an unknown one, if they have one.

    Raises:
        PartitaError: An audio file cannot be read. The message names the field.
    """
    fields = completed(clip.fields, reader.inputs, clip.seconds)
    audible = [name for name in reader.inputs if field(name).kind == "audio"]
    if not audible:
        return replace(clip, fields=fields, audio=None, sample_rate=None)
    if reader.sample_rate is None:
        raise PartitaError(f"{', '.join(audible)} is audio, and what reads it declares no sample rate")
    for name in audible:
        value: Any = clip.audio if name == "audio" else fields.get(name)
        if value is None:
            continue
        own_rate = clip.sample_rate or reader.sample_rate
        try:
            value = field(name).heard(value, reader.sample_rate, reader.channels, own_rate)
        except PartitaError as error:
            raise PartitaError(f"{name}: {error}") from None
        if name == "audio":
            clip = replace(clip, audio=value)
        else:
            fields[name] = value
    return replace(
        clip, fields=fields, audio=clip.audio if "audio" in audible else None, sample_rate=reader.sample_rate
    )


def recording_of(example: Example, reads: str | None, sample_rate: int) -> Tensor | None:
    """What a tokenizer encodes of an example, ``[C, T]`` as its recording; ``None`` where it is not there.

    Args:
        example: The example.
        reads: A field of audio, or a stem (``stems.drums``); ``None`` for the mix. An instrument that is not among the
            stems of a clip is silent there.
        sample_rate: Rate of the recording, in Hz.
    """
    mix = example.recording
    name, _, stem = (reads or "audio").partition(".")
    if mix is None or name == "audio":
        return mix
    value = example.fields.get(name)
    if value is None:
        return None
    if stem and stem not in value:
        return torch.zeros_like(mix)
    found = field(name).heard({stem: value[stem]} if stem else value, sample_rate, len(mix), sample_rate)
    audio = (found[stem] if stem else found)[:, : mix.shape[-1]]
    return F.pad(audio, (0, mix.shape[-1] - audio.shape[-1]))


def completed(fields: Mapping[str, Any], inputs: Sequence[str], seconds: float) -> dict[str, Any]:
    """What is known of a clip, with what stands for unknown values of some fields in a clip of so many seconds."""
    unknown = {name: field(name).unknown(seconds) for name in inputs if fields.get(name) is None}
    return {**fields, **{name: value for name, value in unknown.items() if value is not None}}


def prepared(reader: Reader, clips: Sequence[Clip]) -> dict[str, Tensor]:
    """Return the tensors that a reader prepares from clips that :func:`clip_for` returns.

    Raises:
        PartitaError: The reader cannot read a clip. The message names its fields.
    """
    try:
        return reader.prepare(clips)
    except (TypeError, ValueError) as error:
        raise PartitaError(f"{', '.join(reader.inputs)}: {error}") from None
