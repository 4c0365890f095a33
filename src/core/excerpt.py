"""Audio as people have it: files and arrays of any rate and number of channels, whole or in part."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import PartitaError
from ..storage.audio_file import MARGIN, inspect_audio, read_clip
from .contracts import finite
from .resample import convert

FADE = 0.1
"""Seconds over which audio that is continued goes over into what a codec made of it."""

MOST_CHANNELS = 64
LOUDEST = 10.0
"""Beyond this, samples are not in [-1, 1] but whole numbers that somebody made floating-point numbers of."""


@dataclass(frozen=True)
class Excerpt:
    """Part of a recording. Of a long file, only this part is read.

    Args:
        audio: The path of a file, or samples ``[T]``, ``[C, T]`` or ``[B, C, T]`` as an array or tensor: floating-point
            numbers in [-1, 1], or whole numbers of 8, 16 or 32 bits.
        sample_rate: Of the samples, in Hz; where none is given, the rate of whatever takes them. A file knows its own.
        start: Seconds into the recording at which the excerpt begins.
        seconds: Its length; to the end of the recording where none is given.
        last: Take the last so many seconds of the recording, in place of ``start`` and ``seconds``.

    Raises:
        PartitaError: A number is out of range, or ``last`` is given with another.
    """

    audio: Any
    sample_rate: int | None = None
    start: float = 0.0
    seconds: float | None = None
    last: float | None = None

    def __post_init__(self) -> None:
        if self.last is not None and (self.start or self.seconds is not None):
            raise PartitaError("an excerpt is the last seconds of a recording, or has a start and a length: not both")
        for name, least in (("start", 0.0), ("seconds", 1e-9), ("last", 1e-9)):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, int | float) and least <= value < math.inf):
                raise PartitaError(
                    f"{name} of an excerpt is {'more than 0' if least else '0 or more'} seconds: {value!r}"
                )
        rate = self.sample_rate
        if rate is not None and (isinstance(self.audio, str | Path) or not isinstance(rate, int) or rate < 1):
            raise PartitaError(f"sample_rate is that of an array, a whole number of Hz, not {rate!r} for {self._name}")

    def length(self, sample_rate: int) -> float:
        """How long the excerpt is, in seconds; of samples without a rate of their own, at ``sample_rate``.

        Raises:
            PartitaError: There is no such recording, or nothing of it at that time.
        """
        start, whole = self._begin(sample_rate)
        return min(whole - start, math.inf if self.seconds is None else self.seconds)

    def read(self, sample_rate: int, channels: int) -> Tensor:
        """The excerpt ``[B, channels, T]`` float32 in [-1, 1] at ``sample_rate``; of a file, ``B`` is one.

        Raises:
            PartitaError: There is no such recording, or nothing of it at that time.
        """
        start, seconds = self._begin(sample_rate)
        start = min(start, max(0.0, seconds - 1 / sample_rate))  # one sample at least
        if isinstance(self.audio, str | Path):
            length = None if self.seconds is None else min(self.seconds, self.length(sample_rate))
            return torch.from_numpy(read_clip(Path(self.audio), start, length, sample_rate, channels)[0][None])
        samples, rate = samples_of(self.audio), self.sample_rate or sample_rate
        whole = -(-samples.shape[-1] * sample_rate // rate)
        first = min(round(start * sample_rate), whole - 1)
        last = whole if self.seconds is None else min(whole, first + max(1, round(self.seconds * sample_rate)))
        # What is before and after it is resampled, too, from a moment on at which both rates have a sample.
        margin = 0 if rate == sample_rate else math.ceil(MARGIN * rate)
        common = math.gcd(rate, sample_rate)
        steps = max(0, first * rate // sample_rate - margin) // (rate // common)
        heard = samples[..., steps * (rate // common) : -(-last * rate // sample_rate) + margin]
        before = steps * (sample_rate // common)
        return convert(heard, rate, sample_rate, channels)[..., first - before : last - before].clamp(-1, 1)

    def _begin(self, sample_rate: int) -> tuple[float, float]:
        """Where the excerpt begins, and the length of the whole recording, in seconds."""
        if isinstance(self.audio, str | Path):
            try:
                whole = inspect_audio(Path(self.audio)).seconds
            except PartitaError as error:
                raise PartitaError(f"{self._name}: {error}") from None
        else:
            whole = samples_of(self.audio).shape[-1] / (self.sample_rate or sample_rate)
        asked = self.start if self.last is None else self.last
        if asked > whole or (self.last is None and asked == whole):
            what = f"it has no last {self.last:g} s" if self.last is not None else f"nothing follows {self.start:g} s"
            raise PartitaError(f"{self._name} lasts {whole:g} s: {what}")
        return (self.start if self.last is None else whole - self.last), whole

    @property
    def _name(self) -> str:
        return str(self.audio) if isinstance(self.audio, str | Path) else "the audio"


def samples_of(audio: Any) -> Tensor:
    """Samples ``[T]``, ``[C, T]`` or ``[B, C, T]`` of any type that means audio as ``[B, C, T]`` float32.

    Raises:
        PartitaError: They are of another shape or type, not finite, or far outside [-1, 1].
    """
    try:
        samples = audio.detach() if isinstance(audio, Tensor) else torch.as_tensor(np.asarray(audio))
    except (TypeError, ValueError, RuntimeError):
        raise PartitaError(f"audio is a path, an array or a tensor, not {type(audio).__name__}") from None
    if samples.dim() not in (1, 2, 3) or not samples.numel():
        raise PartitaError(f"audio has the shape [T], [C, T] or [B, C, T], not {list(samples.shape)}")
    samples = samples.reshape(*[1] * (3 - samples.dim()), *samples.shape)
    if samples.shape[1] > MOST_CHANNELS:
        hint = ": turn it round with .T" if samples.shape[2] <= MOST_CHANNELS else ""
        raise PartitaError(f"audio [C, T] with {samples.shape[1]:,} channels of {samples.shape[2]:,} samples{hint}")
    if samples.dtype == torch.uint8:
        return (samples.float() - 128) / 128
    if samples.dtype in (torch.int16, torch.int32):
        return (samples.double() / -torch.iinfo(samples.dtype).min).float()
    if not samples.is_floating_point():
        raise PartitaError(
            f"samples are floating-point numbers, or whole ones of 8, 16 or 32 bits, not {samples.dtype}"
        )
    samples = samples.float()
    if not finite(samples):
        raise PartitaError("the audio holds samples that are not finite numbers (NaN or infinite)")
    loudest = float(samples.abs().max())
    if loudest > LOUDEST:
        raise PartitaError(f"samples are in [-1, 1], and these reach {loudest:g}: divide them by their full scale")
    return samples


def spliced(made: Tensor, original: Tensor, known: int, sample_rate: int) -> Tensor:
    """Generated audio that starts with the original in the place of what a codec made of it.

    The last :data:`FADE` seconds of what is known go over from one to the other by half a cosine. As the two are
    versions of the same, their weights add up to one.

    Args:
        made: ``[B, C, T]``, which continues the original.
        original: ``[B, C, T]``.
        known: Samples that ``made`` has from the original; what follows was generated.
        sample_rate: Of both, in Hz.
    """
    known = min(known, original.shape[-1], made.shape[-1])
    fade = min(round(FADE * sample_rate), known)
    steps = (torch.arange(fade, device=made.device) + 0.5) / fade
    result = made.clone()
    result[..., : known - fade] = original[..., : known - fade]
    result[..., known - fade : known] = torch.lerp(
        original[..., known - fade : known], made[..., known - fade : known], 0.5 - 0.5 * torch.cos(math.pi * steps)
    )
    return result


def excerpt_of(audio: Any) -> Excerpt:
    """The audio as an excerpt, where it is none yet."""
    return audio if isinstance(audio, Excerpt) else Excerpt(audio)
