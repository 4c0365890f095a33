"""Key and chords: estimated from audio, and compared with labels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from torch import Tensor

from ..core.harmony import KEY_PROFILES, NO_CHORD, QUALITIES, UNNAMED, chord_name, key_name
from ..errors import PartitaError
from ..layers.chroma import CLASSES, Chroma, chroma_window
from .piece_means import LabelMeans

_UNKNOWN_KEY = "X"
_TRIADS = (0, 1)  # indices of major and minor in QUALITIES
_THIRD_HARMONIC = 0.3
"""Strength of a tone's third harmonic, a fifth above it, relative to the tone and its octaves."""
_NO_CHORD_SIMILARITY = 0.4
"""Minimum correlation with a chord; below it, there is no chord."""
_CHANGE = 0.4
"""Cost of a chord change, in frames of perfect correlation."""
_GAP = 1e-3
"""Seconds between two chords that are a rounding error rather than a gap."""
_SILENCE = 1e-2
"""Level relative to the loudest frame below which softer frames get less weight."""


def harmonic_chroma(sample_rate: int) -> Chroma:
    """Return the chroma for keys and chords: magnitudes from 60 to 2000 Hz, in 10 frames per second of about 0.26 s."""
    return Chroma(
        sample_rate,
        window=chroma_window(sample_rate) // 2,
        hop=round(sample_rate / 10),
        normalize=False,
        power=1.0,
        octave_width=None,
        band=(60.0, 2000.0),
    )


def estimate_key(chroma: np.ndarray) -> str:
    """Return the key of chroma ``[frames, 12]``, such as ``"F# minor"``; ``"X"`` for silence.

    It is the key whose profile correlates most with the mean (C. Krumhansl, Cognitive Foundations of Musical Pitch,
    1990, ch. 4), with the third harmonic of each tone included (E. Gómez, INFORMS Journal on Computing 18, 2006).

    >>> estimate_key(np.array([[1, 0, 1, 0, 1, 1, 0, 1, 0, 1, 0, 1.0], [1, 0, 0, 0, 1, 0, 0, 1, 0, 0, 0, 0]]))
    'C major'
    """
    correlation = _standard(_in_all_keys(KEY_PROFILES)) @ _standard(chroma.mean(0))
    if not correlation.any():
        return _UNKNOWN_KEY
    mode, tonic = divmod(int(correlation.argmax()), CLASSES)
    return key_name(tonic, mode)


def estimate_chords(chroma: np.ndarray, frame_rate: float, seconds: float) -> list[tuple[float, float, str]]:
    """Return start, end and name of chords: major and minor triads, or ``N`` for no chord, without gaps.

    Each frame is correlated with each chord, including the third harmonics of its tones. The result is the sequence
    with the highest total correlation, minus the cost of its changes (as A. Sheh and D. Ellis, ISMIR 2003, with
    templates instead of trained models).

    Args:
        chroma: ``[frames, 12]``; frame ``i`` is centered on ``i / frame_rate`` seconds.
        frame_rate: Frames per second.
        seconds: End of the last chord.

    >>> c_major, a_minor = np.eye(12)[[0, 4, 7]].sum(0), np.eye(12)[[9, 0, 4]].sum(0)
    >>> estimate_chords(np.stack([c_major] * 10 + [a_minor] * 11), 10.0, 2.0)
    [(0.0, 0.95, 'C:maj'), (0.95, 2.0, 'A:min')]
    """
    tones = np.zeros((len(_TRIADS), CLASSES))
    for row, quality in zip(tones, _TRIADS, strict=True):
        row[list(list(QUALITIES.values())[quality])] = 1
    loudest = np.linalg.norm(chroma, axis=1).max(initial=0)
    similarity = _standard(chroma, least=_SILENCE * loudest) @ _standard(_in_all_keys(tones)).T
    similarity = np.pad(similarity, ((0, 0), (0, 1)), constant_values=_NO_CHORD_SIMILARITY)
    found: list[tuple[float, float, str]] = []
    for i, state in enumerate(_smoothest(similarity, change=_CHANGE)):
        quality, root = divmod(state, CLASSES)
        name = chord_name(root, _TRIADS[quality]) if quality < len(_TRIADS) else NO_CHORD
        start, end = max(0.0, (i - 0.5) / frame_rate), min(seconds, (i + 0.5) / frame_rate)
        if found and found[-1][2] == name:
            found[-1] = (found[-1][0], end, name)
        elif start < end:
            found.append((start, end, name))
    if found:
        found[-1] = (found[-1][0], seconds, found[-1][2])
    return found


class KeyAgreement(LabelMeans):
    """Agreement of the key of audio with its label.

    The estimate is robust to noise down to 0 dB, low-pass filters down to 500 Hz and changes of tempo, so this metric
    does not measure sound quality.

    Args:
        sample_rate: Sample rate of the audio, in Hz.
        confidence: Confidence level of the intervals.
    """

    higher_is_better = True
    names = rates = ("key", "key_exact")

    def __init__(self, sample_rate: int, *, confidence: float = 0.95) -> None:
        super().__init__(confidence=confidence)
        self.chroma = harmonic_chroma(sample_rate)

    def compare(self, clip: Tensor, labels: Mapping[str, Any]) -> tuple[ArrayLike, ArrayLike] | None:
        """Compare the estimated key with the field ``key``, such as ``"F# minor"``.

        Raises:
            PartitaError: The key is not in this notation.
        """
        import mir_eval

        if not labels.get("key"):
            return None
        key = estimate_key(_numpy(self.chroma, clip))
        try:
            score = mir_eval.key.weighted_score(labels["key"].lower(), key)
        except ValueError:
            raise PartitaError(f"{labels['key']!r} is not a key: write it like 'F# minor'") from None
        return (score, score == 1), (1, 1)

    def compute(self) -> dict[str, Tensor]:
        """Return means over the clips with a key, in [0, 1]; NaN without such clips.

        ``key`` is the mean MIREX score: 1 for the same key, 0.5 for the key a fifth above, 0.3 for the relative key and
        0.2 for the parallel key. ``key_exact`` is the fraction in exactly this key. Each has bounds ``…_low`` and
        ``…_high``; ``…_clips`` and ``…_pieces`` are the numbers with a key.
        """
        return super().compute()


class ChordAgreement(LabelMeans):
    """Agreement of the chords of audio with their labels.

    Args:
        sample_rate: Sample rate of the audio, in Hz.
        confidence: Confidence level of the intervals.
    """

    higher_is_better = True
    names = rates = ("chord_root", "chord_majmin", "chord_segmentation")

    def __init__(self, sample_rate: int, *, confidence: float = 0.95) -> None:
        super().__init__(confidence=confidence)
        self.chroma = harmonic_chroma(sample_rate)

    def compare(self, clip: Tensor, labels: Mapping[str, Any]) -> tuple[ArrayLike, ArrayLike] | None:
        """Compare the estimated chords with the field ``chords``: start, end and name of each, in order.

        Raises:
            PartitaError: A chord is not in the notation of Harte et al. (``"F#:min7"``).
        """
        import mir_eval

        if not labels.get("chords"):
            return None
        seconds = clip.shape[-1] / self.chroma.sample_rate
        estimated = estimate_chords(_numpy(self.chroma, clip), self.chroma.frame_rate, seconds)
        try:
            return chord_agreement(labels["chords"], estimated)
        except mir_eval.chord.InvalidChordException as error:
            raise PartitaError(f"{error}: chords are written like 'F#:min7'") from None

    def compute(self) -> dict[str, Tensor]:
        """Return fractions of the time with comparable labels, in [0, 1]; NaN without such time.

        ``chord_root`` is the fraction with the correct root. ``chord_majmin`` is the fraction with the correct root and
        third, where the label is major, minor or no chord (sevenths are ignored). ``chord_segmentation`` is the worse
        of over- and undersegmentation (MIREX), 1 if all changes coincide. Each has bounds ``…_low`` and ``…_high``;
        ``…_clips`` and ``…_pieces`` are the numbers with comparable labels.
        """
        return super().compute()


def chord_agreement(
    reference: Sequence[tuple[float, float, str]], estimated: Sequence[tuple[float, float, str]]
) -> tuple[np.ndarray, np.ndarray]:
    """Return agreeing and comparable seconds, ``[3]`` each: for root, for major or minor, and for segmentation.

    Time without an estimate counts as no chord. Time between the chords of the reference is not comparable, and a
    chord of the reference ends where the next one starts.
    """
    from mir_eval import chord, util

    spans, names = _labeled(_contiguous(reference))
    estimated_spans, estimated_names = util.adjust_intervals(
        *_labeled(estimated), spans.min(), spans.max(), NO_CHORD, NO_CHORD
    )
    common, expected, found = util.merge_labeled_intervals(spans, names, estimated_spans, estimated_names)
    seconds = util.intervals_to_durations(common)
    agreeing, comparable = np.zeros(3), np.zeros(3)
    for i, compare in enumerate((chord.root, chord.majmin)):
        score = compare(expected, found)
        counted = score >= 0
        agreeing[i], comparable[i] = (score * seconds)[counted].sum(), seconds[counted].sum()
    segmentation = chord.seg(
        chord.merge_chord_intervals(spans, names), chord.merge_chord_intervals(estimated_spans, estimated_names)
    )
    comparable[2] = seconds.sum()
    agreeing[2] = segmentation * comparable[2]
    return agreeing, comparable


def _in_all_keys(tones: np.ndarray) -> np.ndarray:
    """Transpose tone strengths ``[N, 12]``, with their third harmonics, to all pitch classes: ``[N · 12, 12]``."""
    sounding = tones + _THIRD_HARMONIC * np.roll(tones, 7, axis=1)
    return np.stack([np.roll(row, root) for row in sounding for root in range(CLASSES)])


def _contiguous(chords: Sequence[tuple[float, float, str]]) -> list[tuple[float, float, str]]:
    """Return chords without gaps and overlaps, as mir_eval needs them; gaps become :data:`UNNAMED`."""
    ordered = sorted(chords, key=lambda row: row[:2])
    found: list[tuple[float, float, str]] = []
    ends = [start for start, _, _ in ordered[1:]] + [math.inf]
    for (start, end, name), following in zip(ordered, ends, strict=True):
        if found and start - found[-1][1] > _GAP:
            found.append((found[-1][1], start, UNNAMED))
        start = found[-1][1] if found else start
        if min(end, following) > start:
            found.append((start, min(end, following), name))
    return found


def _labeled(chords: Sequence[tuple[float, float, str]]) -> tuple[np.ndarray, list[str]]:
    """Return spans ``[chords, 2]`` and names, in the format of mir_eval."""
    spans = np.array([(start, end) for start, end, _ in chords], np.float64).reshape(-1, 2)
    return spans, [name for _, _, name in chords]


def _numpy(chroma: Chroma, clip: Tensor) -> np.ndarray:
    """Return the chroma ``[frames, 12]`` of one clip ``[C, T]``."""
    return chroma(clip[None])[0].detach().double().cpu().numpy()


def _standard(x: np.ndarray, least: float = 0.0) -> np.ndarray:
    """Center ``[..., 12]`` and divide by the norm, or by ``least`` if the norm is smaller."""
    x = x - x.mean(-1, keepdims=True)
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), max(least, 1e-9))


def _smoothest(score: np.ndarray, change: float) -> list[int]:
    """Return the states with the highest sum of scores ``[frames, states]``, minus ``change`` per change (Viterbi)."""
    best = score[0]
    before = []
    for now in score[1:]:
        other = best.argmax()
        stays = best >= best[other] - change
        before.append(np.where(stays, np.arange(len(best)), other))
        best = np.where(stays, best, best[other] - change) + now
    path = [int(best.argmax())]
    for previous in reversed(before):
        path.append(int(previous[path[-1]]))
    return path[::-1]
