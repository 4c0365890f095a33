"""Clips as conditioners read them: only the fields that they read, with audio at their sample rate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from ..core.contracts import Clip, Example
from ..core.excerpt import Excerpt, excerpt_of
from ..errors import PartitaError
from .fields.base import field

ALWAYS_SUPPLIED = frozenset({"audio", "excerpt", "style_streams"})
"""Fields that no source needs to supply for training: the clip itself, another excerpt of the same piece, and what only
says how a clip is generated."""


class ClipReader(Protocol):
    """Anything that reads clips, such as a conditioner."""

    inputs: tuple[str, ...]
    sample_rate: int | None
    channels: int

    def prepare(self, clips: Sequence[Clip]) -> dict[str, Tensor]:
        """Return the clips as tensors."""
        ...


def clip_for(reader: ClipReader, clip: Clip, longest: float | None = None) -> Clip:
    """Return a clip in the form that a reader takes.

    Audio that the reader takes is converted to its sample rate and channels, and other audio is removed. Unknown fields
    get the value that stands for an unknown one, if they have one.

    Args:
        reader: The reader.
        clip: The clip.
        longest: Seconds to read of each file, from its start, so that a long one takes no more memory. ``None`` reads
            all of it.

    Raises:
        PartitaError: An audio file cannot be read. The message names the field.
    """
    fields = fill_defaults(clip.fields, reader.inputs, clip.seconds)
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
            value = _beginning(value, longest)
            value = field(name).to_audio(value, reader.sample_rate, reader.channels, own_rate)
        except PartitaError as error:
            raise PartitaError(f"{name}: {error}") from None
        if name == "audio":
            clip = replace(clip, audio=value)
        else:
            fields[name] = value
    return replace(
        clip, fields=fields, audio=clip.audio if "audio" in audible else None, sample_rate=reader.sample_rate
    )


def _beginning(recording: Any, seconds: float | None) -> Any:
    """Return at most the first seconds of a recording; all of it if it is in memory anyway."""
    if seconds is None or not isinstance(recording, str | Path | Excerpt):
        return recording
    excerpt = excerpt_of(recording)
    whole = excerpt.last is not None or (excerpt.seconds is not None and excerpt.seconds <= seconds)
    return excerpt if whole else replace(excerpt, seconds=seconds)


def tokenizer_audio(example: Example, reads: str | None, sample_rate: int) -> Tensor | None:
    """Return the audio ``[C, T]`` of an example that a tokenizer encodes; ``None`` if the example has none.

    Args:
        example: The example.
        reads: A field of audio, or a stem (``stems.drums``). ``None`` reads the mix. A stem that the example lacks is
            silence.
        sample_rate: Sample rate of the example, in Hz.
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
    found = field(name).to_audio({stem: value[stem]} if stem else value, sample_rate, len(mix), sample_rate)
    audio = (found[stem] if stem else found)[:, : mix.shape[-1]]
    return F.pad(audio, (0, mix.shape[-1] - audio.shape[-1]))


def fill_defaults(fields: Mapping[str, Any], inputs: Sequence[str], seconds: float) -> dict[str, Any]:
    """Return the fields of a clip, with default values for missing ``inputs``."""
    unknown = {name: field(name).default(seconds) for name in inputs if fields.get(name) is None}
    return {**fields, **{name: value for name, value in unknown.items() if value is not None}}


def prepare_clips(reader: ClipReader, clips: Sequence[Clip]) -> dict[str, Tensor]:
    """Return the tensors that a reader prepares from its clips, which have the format of :func:`clip_for`.

    Raises:
        PartitaError: The reader cannot read one of them. The message names its fields.
    """
    try:
        return reader.prepare(clips)
    except (TypeError, ValueError) as error:
        raise PartitaError(f"{', '.join(reader.inputs)}: {error}") from None
