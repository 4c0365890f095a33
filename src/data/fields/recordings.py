"""The base class of fields whose values are audio: a path, samples or an excerpt."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from ...core.excerpt import Excerpt, samples_of
from ...core.resample import convert
from ...errors import PartitaError
from .base import Field


class AudioField(Field):
    """A field of audio: a path, :class:`partita.Excerpt`, array or tensor, which is loaded when it is used."""

    kind: ClassVar[str] = "audio"
    expected: ClassVar[str] = "the path of an audio file, samples [C, T], or a partita.Excerpt"

    def parse(self, value: Any) -> Any:
        """Return the value unchanged, or a string as a ``Path``.

        Raises:
            ValueError: The value is an empty string.
            TypeError: The value is neither a path nor audio.
        """
        if isinstance(value, str | os.PathLike):
            if not str(value).strip():
                raise ValueError
            return Path(value)
        if not isinstance(value, Excerpt) and getattr(value, "ndim", 0) not in (1, 2, 3):
            raise TypeError
        return value

    def to_audio(self, value: Any, sample_rate: int, channels: int, own_rate: int) -> Tensor:
        """Return the audio ``[channels, T]`` float32.

        Raises:
            PartitaError: The file cannot be read, or the value is not a single recording.
        """
        if isinstance(value, Tensor) and value.dim() == 2 and value.is_floating_point():
            return convert(samples_of(value), own_rate, sample_rate, channels)[0]
        excerpt = value if isinstance(value, Excerpt) else Excerpt(value)
        if excerpt.sample_rate is None and not isinstance(excerpt.audio, str | Path):
            excerpt = replace(excerpt, sample_rate=own_rate)
        audio = excerpt.read(sample_rate, channels)
        if len(audio) != 1:
            raise PartitaError(f"each clip needs one recording, not {len(audio)}")
        return audio[0]
