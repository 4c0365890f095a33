"""Mastering of clips: fades, loudness normalization (ITU-R BS.1770-4) and a true-peak limiter."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import soxr
from scipy.ndimage import minimum_filter1d

from ..errors import PartitaError

_OVERSAMPLING = 4
_BLOCK = 0.4
"""Length of a gating block in seconds (BS.1770-4, annex 1)."""
_LOOK_AHEAD = 0.005
"""Time before a peak in which the gain of the limiter falls, in seconds."""
_RELEASE = 60.0
"""Rate at which the gain of the limiter recovers after a peak, in decibels per second."""


class Mastered(NamedTuple):
    """Mastered audio and its measurements.

    Args:
        audio: Audio ``[C, T]``.
        loudness: Integrated loudness in LUFS. ``None`` for silence, and if neither loudness nor peaks are processed.
        true_peak: True peak in dBTP; minus infinity if ``loudness`` is ``None``.
        reduction: Amount by which the limiter lowered the highest peak, in decibels.
    """

    audio: np.ndarray
    loudness: float | None = None
    true_peak: float = -math.inf
    reduction: float = 0.0

    def __str__(self) -> str:
        if self.loudness is None:
            return "silent, so the loudness is unchanged"
        limit = f", peaks lowered by {self.reduction:.1f} dB" if self.reduction else ""
        return f"{self.loudness:.1f} LUFS, {self.true_peak:.1f} dBTP{limit}"


@dataclass(frozen=True)
class Mastering:
    """Processing of a clip before it is written: fades, then loudness normalization, then limiting.

    Args:
        loudness: Target loudness in LUFS, above -70 and at most 0. Streaming services use -14, broadcasters -23
            (EBU R 128). The loss of loudness in the limiter is not compensated. ``None`` keeps the level.
        peak: Maximum true peak in dBTP, above -70 and at most 0. ``None`` uses -1 if ``loudness`` is set, and no limit
            otherwise.
        fade: Length of the fade-in and of the fade-out in seconds, each limited to half the clip.

    Raises:
        PartitaError: A number is out of range.
    """

    loudness: float | None = None
    peak: float | None = None
    fade: float = 0.0

    def __post_init__(self) -> None:
        if self.loudness is not None and not -70 < self.loudness <= 0:
            raise PartitaError(
                f"loudness must be in LUFS, above -70 and at most 0 (such as -14), not {self.loudness:g}"
            )
        if self.peak is not None and not -70 < self.peak <= 0:
            raise PartitaError(f"peak must be in dBTP, above -70 and at most 0 (such as -1), not {self.peak:g}")
        if not 0 <= self.fade < math.inf:
            raise PartitaError(f"fade must be a number of seconds, 0 or more, not {self.fade:g}")

    @property
    def measures(self) -> bool:
        """Whether the clip is normalized or limited, and therefore measured."""
        return self.loudness is not None or self.peak is not None

    def __call__(self, audio: np.ndarray, sample_rate: int) -> Mastered:
        """Master audio ``[C, T]``. The level of silence is unchanged.

        Raises:
            PartitaError: The audio contains NaN or infinity, or has too many channels to measure.
        """
        done = faded(audio, sample_rate, self.fade)
        if not self.measures:
            return Mastered(done)
        level = loudness(done, sample_rate)
        if level is None:
            return Mastered(done)
        if self.loudness is not None:
            done = done * np.float32(_ratio(self.loudness - level))
        ceiling = -1.0 if self.peak is None else self.peak
        peak, reduction = true_peak(done, sample_rate), 0.0
        if peak > ceiling:
            done = limited(done, sample_rate, ceiling)
            reduction, peak = peak - ceiling, true_peak(done, sample_rate)
        return Mastered(done, loudness(done, sample_rate), peak, reduction)


def loudness(audio: np.ndarray, sample_rate: int) -> float | None:
    """Return the integrated loudness of audio ``[C, T]`` in LUFS (ITU-R BS.1770-4).

    A clip shorter than a gating block of 0.4 s is measured as one block.

    Returns:
        ``None`` if no block is louder than -70 LUFS, since the loudness of silence is undefined.

    Raises:
        PartitaError: The audio contains NaN or infinity, or has more than five channels.
    """
    import pyloudnorm

    if not np.isfinite(audio).all():
        raise PartitaError("the audio contains samples that are NaN or infinite, so its loudness cannot be measured")
    if len(audio) > 5:
        raise PartitaError(f"loudness is defined for up to five channels (ITU-R BS.1770), not {len(audio)}")
    if not audio.any():
        return None
    # Rounding down keeps a block of the whole clip from being longer than the clip.
    block = min(_BLOCK, math.nextafter(audio.shape[1] / sample_rate, 0))
    level = float(pyloudnorm.Meter(sample_rate, block_size=block).integrated_loudness(audio.T.astype(np.float64)))
    return level if math.isfinite(level) else None


def true_peak(audio: np.ndarray, sample_rate: int) -> float:
    """Return the true peak of audio ``[C, T]`` in dBTP, measured with 4× oversampling (BS.1770-4, annex 2)."""
    peak = max(float(np.abs(audio).max(initial=0)), float(np.abs(_oversampled(audio, sample_rate)).max(initial=0)))
    return 20 * math.log10(peak) if peak else -math.inf


def limited(audio: np.ndarray, sample_rate: int, ceiling: float) -> np.ndarray:
    """Limit the true peaks of audio ``[C, T]`` to ``ceiling`` in dBTP.

    All channels have the same gain. It falls before a peak and recovers at a constant rate. The gain at a peak is an
    average of values that are all low enough for the peak, so it never exceeds the gain that the peak requires.
    """
    high = np.abs(_oversampled(audio, sample_rate)).max(axis=0)
    # Highest oversampled value from half a sample before to half a sample after each sample.
    half = _OVERSAMPLING // 2
    around = np.pad(high, (half, half + 1))
    near = np.max([around[i : i + len(high) : _OVERSAMPLING] for i in range(2 * half + 1)], axis=0)[: audio.shape[1]]
    peaks = np.maximum(np.abs(audio).max(axis=0), near)
    needed = np.minimum(0.0, ceiling - 20 * np.log10(np.maximum(peaks, 1e-9)))
    ahead = max(2, round(_LOOK_AHEAD * sample_rate))
    held = minimum_filter1d(np.pad(needed, (ahead, ahead)), ahead + 1, origin=-((ahead + 1) // 2))
    climb = np.arange(len(held)) * (_RELEASE / sample_rate)
    released = np.minimum(0.0, np.minimum.accumulate(held - climb) + climb)
    window = np.hanning(ahead + 2)[1:-1]
    gain = np.convolve(released, window / window.sum(), mode="full")[ahead : ahead + audio.shape[1]]
    done = audio * (10 ** (gain / 20)).astype(audio.dtype)
    # The varying gain slightly changes the signal between samples. A constant gain removes the remaining excess.
    return done * np.float32(min(1.0, _ratio(ceiling - true_peak(done, sample_rate) - 1e-6)))


def faded(audio: np.ndarray, sample_rate: int, seconds: float) -> np.ndarray:
    """Fade audio ``[C, T]`` in and out with raised cosines of ``seconds``, or of half the clip if that is shorter."""
    length = min(round(seconds * sample_rate), audio.shape[1] // 2)
    if length == 0:
        return audio
    rise = (0.5 - 0.5 * np.cos(np.pi * np.arange(length) / length)).astype(audio.dtype)
    done = audio.copy()
    done[:, :length] *= rise
    done[:, audio.shape[1] - length :] *= rise[::-1]
    return done


def _oversampled(audio: np.ndarray, sample_rate: int) -> np.ndarray:
    """Return audio ``[C, 4 T]``, filtered as if silence surrounded it; the filter falls off above 91 % of the band."""
    if audio.shape[1] == 0:
        return np.zeros((len(audio), 0))
    return soxr.resample(audio.T.astype(np.float64), sample_rate, _OVERSAMPLING * sample_rate, quality="VHQ").T


def _ratio(decibels: float) -> float:
    return 10 ** (decibels / 20)
