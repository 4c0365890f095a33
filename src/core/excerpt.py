"""Excerpts of audio files and arrays of any sample rate and number of channels."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import PartitaError
from ..storage.audio_file import MARGIN, SAMPLE_RATES, inspect_audio, read_clip
from .contracts import finite
from .resample import convert

FADE = 0.1
"""Length of the crossfade from continued audio to the codec's version of it, in seconds."""

LONGEST = 1e9
"""Number of seconds that no recording exceeds."""

MOST_CHANNELS = 64
LOUDEST = 10.0
"""Peak above which samples are taken to be whole numbers that were converted to floating point without scaling."""


@dataclass(frozen=True)
class Excerpt:
    """Part of a recording. Of a long file, only this part is read.

    Args:
        audio: The path of a file, or samples ``[T]``, ``[C, T]`` or ``[B, C, T]`` as an array or tensor: floating-point
            numbers in [-1, 1], or whole numbers of 8, 16 or 32 bits.
        sample_rate: Sample rate of an array, in Hz. ``None`` means the rate at which it is read.
        start: Start of the excerpt in the recording, in seconds.
        seconds: Length of the excerpt. ``None`` reads to the end of the recording.
        last: Take this many seconds at the end of the recording, instead of ``start`` and ``seconds``.

    Raises:
        PartitaError: A number is out of range, or ``last`` is combined with ``start`` or ``seconds``.
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
            if value is not None and not (isinstance(value, int | float) and least <= value <= LONGEST):
                raise PartitaError(
                    f"{name} of an excerpt is {'more than 0' if least else '0 or more'} seconds: {value!r:.80}"
                )
        rate = self.sample_rate
        if rate is not None and (isinstance(self.audio, str | Path) or not isinstance(rate, int)):
            raise PartitaError(f"sample_rate is that of an array, a whole number of Hz, not {rate!r} for {self._name}")
        if rate is not None and not 1 <= rate <= SAMPLE_RATES[1]:
            raise PartitaError(f"sample_rate is between 1 and {SAMPLE_RATES[1]} Hz, not {rate:.4g}")

    def length(self, sample_rate: int) -> float:
        """Length of the excerpt in seconds. Samples without a rate of their own are taken to be at ``sample_rate``.

        Raises:
            PartitaError: The recording does not exist, or ends before the excerpt starts.
        """
        start, whole = self._begin(sample_rate)
        return min(whole - start, math.inf if self.seconds is None else self.seconds)

    def read(self, sample_rate: int, channels: int) -> Tensor:
        """The excerpt ``[B, channels, T]`` float32 in [-1, 1] at ``sample_rate``; ``B`` is 1 for a file.

        Raises:
            PartitaError: The recording does not exist, or ends before the excerpt starts.
        """
        start, seconds = self._begin(sample_rate)
        start = min(start, max(0.0, seconds - 1 / sample_rate))  # at least one sample
        if isinstance(self.audio, str | Path):
            length = None if self.seconds is None else max(1 / sample_rate, min(self.seconds, self.length(sample_rate)))
            return torch.from_numpy(read_clip(Path(self.audio), start, length, sample_rate, channels)[0][None])
        samples, rate = samples_of(self.audio), self.sample_rate or sample_rate
        whole = -(-samples.shape[-1] * sample_rate // rate)
        first = min(round(start * sample_rate), whole - 1)
        last = whole if self.seconds is None else min(whole, first + max(1, round(self.seconds * sample_rate)))
        # The audio just before and after the excerpt is resampled too, from a moment at which both rates have a sample.
        margin = 0 if rate == sample_rate else math.ceil(MARGIN * rate)
        common = math.gcd(rate, sample_rate)
        steps = max(0, first * rate // sample_rate - margin) // (rate // common)
        kept = samples[..., steps * (rate // common) : -(-last * rate // sample_rate) + margin]
        before = steps * (sample_rate // common)
        return convert(kept, rate, sample_rate, channels)[..., first - before : last - before].clamp(-1, 1)

    def _begin(self, sample_rate: int) -> tuple[float, float]:
        """Start of the excerpt and length of the whole recording, in seconds."""
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
    """Samples ``[T]``, ``[C, T]`` or ``[B, C, T]`` of any audio data type as ``[B, C, T]`` float32.

    Raises:
        PartitaError: The samples have another shape or type, are not finite, or lie far outside [-1, 1].
    """
    try:
        samples = audio.detach() if isinstance(audio, Tensor) else torch.as_tensor(np.asarray(audio))
    except (TypeError, ValueError, RuntimeError):
        raise PartitaError(f"audio must be a path, an array or a tensor, not {type(audio).__name__}") from None
    if samples.dim() not in (1, 2, 3) or not samples.numel():
        raise PartitaError(f"audio must have the shape [T], [C, T] or [B, C, T], not {list(samples.shape)}")
    samples = samples.reshape(*[1] * (3 - samples.dim()), *samples.shape)
    if samples.shape[1] > MOST_CHANNELS:
        hint = ": transpose it with .T" if samples.shape[2] <= MOST_CHANNELS else ""
        raise PartitaError(f"audio [C, T] with {samples.shape[1]:,} channels of {samples.shape[2]:,} samples{hint}")
    if samples.dtype == torch.uint8:
        return (samples.float() - 128) / 128
    if samples.dtype in (torch.int16, torch.int32):
        return (samples.double() / -torch.iinfo(samples.dtype).min).float()
    if not samples.is_floating_point():
        raise PartitaError(
            f"samples must be floating-point numbers, or whole numbers of 8, 16 or 32 bits, not {samples.dtype}"
        )
    samples = samples.float()
    if not finite(samples):
        raise PartitaError("the audio holds samples that are not finite numbers (NaN or infinite)")
    loudest = float(samples.abs().max())
    if loudest > LOUDEST:
        raise PartitaError(f"samples must be in [-1, 1]; these reach {loudest:g}: divide them by their full scale")
    return samples


def spliced(made: Tensor, original: Tensor, known: int, sample_rate: int) -> Tensor:
    """Generated audio in which the codec's version of the known start is replaced by the original.

    In the last :data:`FADE` seconds of the known start, a crossfade with half a cosine leads from the original to the
    codec's version. As both are versions of the same sound, their weights add up to one.

    Args:
        made: Generated audio ``[B, C, T]``, which continues the original.
        original: The original audio ``[B, C, T]``.
        known: Number of samples of ``made`` that come from the original; the rest was generated.
        sample_rate: Sample rate of both, in Hz.
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
    """The audio as an :class:`Excerpt`; an excerpt is returned as it is."""
    return audio if isinstance(audio, Excerpt) else Excerpt(audio)
