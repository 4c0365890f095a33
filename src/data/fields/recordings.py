"""What fields share whose values are audio: a path, samples or an excerpt."""

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


class Recording(Field):
    """A field of audio. A path, :class:`partita.Excerpt`, array or tensor is read when somebody hears it."""

    kind: ClassVar[str] = "audio"
    expected: ClassVar[str] = "the path of an audio file, samples [C, T], or a partita.Excerpt"

    def parse(self, value: Any) -> Any:
        """The same; a path of text as a ``Path``.

        Raises:
            ValueError: The value is neither.
        """
        if isinstance(value, str | os.PathLike):
            if not str(value).strip():
                raise ValueError
            return Path(value)
        if not isinstance(value, Excerpt) and getattr(value, "ndim", 0) not in (1, 2, 3):
            raise TypeError
        return value

    def heard(self, value: Any, sample_rate: int, channels: int, own_rate: int) -> Tensor:
        """The audio ``[channels, T]`` float32.

        Raises:
            PartitaError: There is no such file, or it is not one recording.
        """
        if isinstance(value, Tensor) and value.dim() == 2 and value.is_floating_point():
            return convert(samples_of(value), own_rate, sample_rate, channels)[0]
        excerpt = value if isinstance(value, Excerpt) else Excerpt(value)
        if excerpt.sample_rate is None and not isinstance(excerpt.audio, str | Path):
            excerpt = replace(excerpt, sample_rate=own_rate)
        audio = excerpt.read(sample_rate, channels)
        if len(audio) != 1:
            raise PartitaError(f"each clip takes one recording, not {len(audio)}")
        return audio[0]
