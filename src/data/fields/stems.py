"""The stems of a mix."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...core.excerpt import Excerpt
from ...core.registry import register
from .base import Segment
from .recordings import AudioField


@register("field", "stems")
class Stems(AudioField):
    """Audio of each stem of the mix, by name; in a manifest, paths of files that begin at the same time as the mix."""

    expected: ClassVar[str] = 'audio by name, such as {"drums": "drums.wav"}'
    timed: ClassVar[bool] = True

    def parse(self, value: Any) -> dict[str, Any]:
        """Return the recordings by name; a string is parsed as JSON."""
        stems = json.loads(value) if isinstance(value, str) else value
        if not isinstance(stems, Mapping):
            raise TypeError
        return {str(name): super(Stems, self).parse(audio) for name, audio in stems.items()}

    def crop(self, value: dict[str, Any], start: float, seconds: float) -> dict[str, Any]:
        """Return the same excerpt of each stem."""

        def part(audio: Any) -> Excerpt:
            whole = audio if isinstance(audio, Excerpt) else Excerpt(audio)
            left = seconds if whole.seconds is None else min(seconds, whole.seconds - start)
            return replace(whole, start=whole.start + start, seconds=left)

        return {name: part(audio) for name, audio in value.items()}

    def join(self, segments: Sequence[Segment]) -> dict[str, Any] | None:
        """Return the stems of the first segment that has any."""
        return next((segment.value for segment in segments if segment.value is not None), None)

    def to_audio(self, value: dict[str, Any], sample_rate: int, channels: int, own_rate: int) -> dict[str, Tensor]:  # type: ignore[override]
        """Return each stem ``[channels, T]`` float32 by name; silence for a stem that ends before the clip starts."""

        def read(audio: Any) -> Tensor:
            if isinstance(audio, Excerpt) and audio.seconds is not None and audio.start:
                whole = replace(audio, start=0.0, seconds=None)
                if audio.start >= whole.length(own_rate):
                    return torch.zeros(channels, round(audio.seconds * sample_rate))
            return super(Stems, self).to_audio(audio, sample_rate, channels, own_rate)

        return {name: read(audio) for name, audio in value.items()}
