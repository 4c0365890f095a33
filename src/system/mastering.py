"""Finishing audio for listening: fades, loudness (ITU-R BS.1770-4), and peaks that no converter clips."""

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
"""Seconds of a gating block (BS.1770-4, annex 1)."""
_LOOK_AHEAD = 0.005
"""Seconds before a peak in which the gain of the limiter falls."""
_RELEASE = 60.0
"""Decibels per second by which it rises again."""


class Mastered(NamedTuple):
    """Mastered audio and what is true of it.

    Args:
        audio: ``[C, T]``.
        loudness: In LUFS; none where there is nothing to measure (silence), and where nothing was asked for.
        true_peak: In dBTP; minus infinity where there is no loudness, either.
        reduction: Decibels by which the limiter lowered the highest peak.
    """

    audio: np.ndarray
    loudness: float | None = None
    true_peak: float = -math.inf
    reduction: float = 0.0

    def __str__(self) -> str:
        if self.loudness is None:
            return "silent: there is no loudness to bring to a level, it is left as it is"
        limit = f", peaks lowered by {self.reduction:.1f} dB" if self.reduction else ""
        return f"{self.loudness:.1f} LUFS, {self.true_peak:.1f} dBTP{limit}"


@dataclass(frozen=True)
class Mastering:
    """What is done to a clip before it is written: fades, then loudness, then the limit of its peaks.

    Args:
        loudness: Target in LUFS, between -70 and 0; none to leave the level. Streaming services use -14, broadcasters
            -23 (EBU R 128). What the limiter takes is not made up for.
        peak: Highest true peak in dBTP, not above 0; none for -1 where a loudness is set, and for no limit else.
        fade: Seconds of fading in and of fading out; at most half a clip each.

    Raises:
        PartitaError: A number is out of range.
    """

    loudness: float | None = None
    peak: float | None = None
    fade: float = 0.0

    def __post_init__(self) -> None:
        if self.loudness is not None and not -70 < self.loudness <= 0:
            raise PartitaError(f"loudness is in LUFS, above -70 and not above 0 (such as -14), not {self.loudness:g}")
        if self.peak is not None and not -70 < self.peak <= 0:
            raise PartitaError(f"peak is in dBTP, above -70 and not above 0 (such as -1), not {self.peak:g}")
        if not 0 <= self.fade < math.inf:
            raise PartitaError(f"fade is a number of seconds, not {self.fade:g}")

    @property
    def measures(self) -> bool:
        """Whether level or peaks are seen to, and so measured."""
        return self.loudness is not None or self.peak is not None

    def __call__(self, audio: np.ndarray, sample_rate: int) -> Mastered:
        """Finish audio ``[C, T]``; silence stays as it is.

        Raises:
            PartitaError: It holds samples that are not numbers, or too many channels to measure.
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
    """Integrated loudness of audio ``[C, T]`` in LUFS (ITU-R BS.1770-4).

    A clip shorter than a gating block of 0.4 s is measured as one block.

    Returns:
        None where no block is louder than -70 LUFS: of silence there is no loudness.

    Raises:
        PartitaError: It holds samples that are not numbers, or more than five channels.
    """
    import pyloudnorm

    if not np.isfinite(audio).all():
        raise PartitaError("the audio holds samples that are not numbers: its loudness cannot be measured")
    if len(audio) > 5:
        raise PartitaError(f"loudness is defined for up to five channels (ITU-R BS.1770), not {len(audio)}")
    if not audio.any():
        return None
    # Rounded down, a block is never longer than the clip that it is.
    block = min(_BLOCK, math.nextafter(audio.shape[1] / sample_rate, 0))
    level = float(pyloudnorm.Meter(sample_rate, block_size=block).integrated_loudness(audio.T.astype(np.float64)))
    return level if math.isfinite(level) else None


def true_peak(audio: np.ndarray, sample_rate: int) -> float:
    """The highest peak between the samples of audio ``[C, T]`` in dBTP, 4× oversampled (BS.1770-4, annex 2)."""
    peak = max(float(np.abs(audio).max(initial=0)), float(np.abs(_oversampled(audio, sample_rate)).max(initial=0)))
    return 20 * math.log10(peak) if peak else -math.inf


def limited(audio: np.ndarray, sample_rate: int, ceiling: float) -> np.ndarray:
    """Audio ``[C, T]`` whose true peaks are not above ``ceiling`` in dBTP.

    The gain is the same for all channels, falls ahead of a peak, and rises again at a constant rate. It is exact by
    construction: every value it is averaged from is low enough for the peak.
    """
    high = np.abs(_oversampled(audio, sample_rate)).max(axis=0)
    # Of each sample: the highest point from half a sample before to half a sample after.
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
    # A gain that changes moves what is between the samples by a hair: what is left over goes evenly.
    return done * np.float32(min(1.0, _ratio(ceiling - true_peak(done, sample_rate) - 1e-6)))


def faded(audio: np.ndarray, sample_rate: int, seconds: float) -> np.ndarray:
    """Audio ``[C, T]`` faded in and out by half a cosine, over ``seconds`` or half the clip, whichever is shorter."""
    length = min(round(seconds * sample_rate), audio.shape[1] // 2)
    if length == 0:
        return audio
    rise = (0.5 - 0.5 * np.cos(np.pi * np.arange(length) / length)).astype(audio.dtype)
    done = audio.copy()
    done[:, :length] *= rise
    done[:, audio.shape[1] - length :] *= rise[::-1]
    return done


def _oversampled(audio: np.ndarray, sample_rate: int) -> np.ndarray:
    """Audio ``[C, 4 T]``; what is before and after it is silence. Above 91 % of the band it falls off."""
    if audio.shape[1] == 0:
        return np.zeros((len(audio), 0))
    return soxr.resample(audio.T.astype(np.float64), sample_rate, _OVERSAMPLING * sample_rate, quality="VHQ").T


def _ratio(decibels: float) -> float:
    return 10 ** (decibels / 20)
