"""The parts of a mix."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

from torch import Tensor

from ...core.excerpt import Excerpt
from ...core.registry import register
from .base import Segment
from .recordings import Recording


@register("field", "stems")
class Stems(Recording):
    """The audio of each part of the mix, by name; in a manifest, paths of files that begin with the mix."""

    expected: ClassVar[str] = 'audio by name, such as {"drums": "drums.wav"}'
    timed: ClassVar[bool] = True

    def parse(self, value: Any) -> dict[str, Any]:
        """The recordings by name; of a text, as JSON."""
        stems = json.loads(value) if isinstance(value, str) else value
        if not isinstance(stems, Mapping):
            raise TypeError
        return {str(name): super(Stems, self).parse(audio) for name, audio in stems.items()}

    def crop(self, value: dict[str, Any], start: float, seconds: float) -> dict[str, Any]:
        """The same stretch of each stem."""

        def part(audio: Any) -> Excerpt:
            whole = audio if isinstance(audio, Excerpt) else Excerpt(audio)
            left = seconds if whole.seconds is None else min(seconds, whole.seconds - start)
            return replace(whole, start=whole.start + start, seconds=left)

        return {name: part(audio) for name, audio in value.items()}

    def join(self, segments: Sequence[Segment]) -> dict[str, Any] | None:
        """Those of the first segment that has some."""
        return next((segment.value for segment in segments if segment.value is not None), None)

    def heard(self, value: dict[str, Any], sample_rate: int, channels: int, own_rate: int) -> dict[str, Tensor]:  # type: ignore[override]
        """Each stem ``[channels, T]`` float32."""
        return {name: super(Stems, self).heard(audio, sample_rate, channels, own_rate) for name, audio in value.items()}
