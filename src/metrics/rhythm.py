"""Tempo and beats: estimated from audio, and compared with labels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from torch import Tensor

from ..core.resample import convert
from .piece_means import LabelMeans

_RATE = 22050
_HOP = 256
_LAG = 4
"""Lag of the onset strength in frames: 46 ms, because many instruments have a slow attack."""


def estimate_beats(audio: Tensor, sample_rate: int, expected_tempo: float = 90.0) -> tuple[float, np.ndarray]:
    """Estimate tempo and beats with the dynamic programming of D. Ellis (JNMR 36, 2007), as in librosa.

    Args:
        audio: Audio ``[C, T]``.
        sample_rate: Sample rate in Hz.
        expected_tempo: Most likely tempo in beats per minute; half and double of it are ``exp(-1/2)`` times as likely.

    Returns:
        Beats per minute, and beats ``[beats]`` in seconds, in order; 0 and none for silence.
    """
    import librosa

    mono = convert(audio[None].detach().float(), sample_rate, _RATE, 1)[0, 0].cpu().numpy()
    strength = librosa.onset.onset_strength(y=mono, sr=_RATE, hop_length=_HOP, lag=_LAG)
    if not strength.any():
        return 0.0, np.zeros(0)
    tempo = librosa.feature.tempo(onset_envelope=strength, sr=_RATE, hop_length=_HOP, start_bpm=expected_tempo)
    # Padding prevents the tracker from placing a beat on the last frame.
    _, beats = librosa.beat.beat_track(
        onset_envelope=np.pad(strength, (0, _RATE // _HOP)),
        sr=_RATE,
        hop_length=_HOP,
        bpm=tempo,
        units="time",
        trim=False,
    )
    # An onset lies between a frame and the frame one lag earlier.
    beats = np.asarray(beats, np.float64) - _LAG / 2 * _HOP / _RATE
    return float(tempo.item()), beats[(beats >= 0) & (beats < len(mono) / _RATE)]


class RhythmAgreement(LabelMeans):
    """Agreement of the tempo and beats of audio with their labels.

    It does not measure sound quality: a mild low-pass filter or a trained codec even improves the tempo estimate
    slightly.

    Args:
        sample_rate: Sample rate of the audio, in Hz.
        expected_tempo: Most likely tempo of the estimator in beats per minute. The mean of the corpus is about 90,
            that of popular music about 120.
        trim: Seconds at the start in which beats are ignored. MIREX uses 5, which is too long for short clips.
        confidence: Confidence level of the intervals.
    """

    higher_is_better = True
    names = rates = ("tempo_accuracy_1", "tempo_accuracy_2", "beat_f_measure")

    def __init__(
        self,
        sample_rate: int,
        expected_tempo: float = 90.0,
        trim: float = 0.0,
        *,
        confidence: float = 0.95,
    ) -> None:
        super().__init__(confidence=confidence)
        if expected_tempo <= 0:
            raise ValueError(f"expected_tempo must be above 0 beats per minute, not {expected_tempo}")
        if trim < 0:
            raise ValueError(f"trim must be at least 0 seconds, not {trim}")
        self.sample_rate, self.expected_tempo, self.trim = sample_rate, expected_tempo, trim

    def compare(self, clip: Tensor, labels: Mapping[str, Any]) -> tuple[ArrayLike, ArrayLike] | None:
        """Compare estimated tempo and beats with the fields ``tempo`` and ``beats``, of which one may be missing."""
        from mir_eval.beat import f_measure, trim_beats

        expected = trim_beats(np.asarray(labels.get("beats", ()), np.float64), self.trim)
        target = labels.get("tempo")
        if not target and not len(expected):
            return None
        tempo, beats = estimate_beats(clip, self.sample_rate, self.expected_tempo)
        first = second = f = 0.0
        if target:
            first = same_tempo(tempo, target)
            second = any(same_tempo(tempo, octave * target) for octave in (0.5, 1, 2))
        estimated = trim_beats(beats, self.trim)
        if len(expected) and len(estimated):
            f = f_measure(expected, estimated, f_measure_threshold=0.07)
        return (first, second, f), (bool(target), bool(target), len(expected) > 0)

    def compute(self) -> dict[str, Tensor]:
        """Return means over clips with the label, in [0, 1]; NaN without such clips.

        ``tempo_accuracy_1`` is the fraction within 4 % of the tempo. ``tempo_accuracy_2`` also accepts half and double
        the tempo (F. Gouyon et al., IEEE TASLP 14, 2006, also accept three times and a third). ``beat_f_measure`` is
        the F-measure of beats within 70 ms, after which all instruments of the corpus reach half of their level. Each
        has bounds ``…_low`` and ``…_high``; ``…_clips`` and ``…_pieces`` are the numbers with the label.
        """
        return super().compute()


def same_tempo(tempo: float, target: float) -> bool:
    """Return whether a tempo is within 4 % of a target.

    >>> same_tempo(124.0, 120.0), same_tempo(115.0, 120.0)
    (True, False)
    """
    return abs(tempo - target) <= 0.04 * target
