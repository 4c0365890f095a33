"""Key and chords of a score, from its notes alone.

Notes are given as arrays: onset and duration in quarter notes, MIDI pitch.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np

PITCH_CLASSES = ("C", "C#", "D", "Eb", "E", "F", "F#", "G", "Ab", "A", "Bb", "B")
MODES = ("major", "minor")
QUALITIES = {
    "maj": (0, 4, 7),
    "min": (0, 3, 7),
    "dim": (0, 3, 6),
    "aug": (0, 4, 8),
    "7": (0, 4, 7, 10),
    "maj7": (0, 4, 7, 11),
    "min7": (0, 3, 7, 10),
    "hdim7": (0, 3, 6, 10),
    "dim7": (0, 3, 6, 9),
    "sus4": (0, 5, 7),
}
"""Chord qualities, in the notation of Harte et al. (ISMIR 2005), with their semitones above the root."""

NO_CHORD = "N"

# Probe-tone ratings of C. Krumhansl and E. Kessler, Psychological Review 89 (1982), for major and minor.
_PROFILES = np.array(
    [
        [6.35, 2.23, 3.48, 2.33, 4.38, 4.09, 2.52, 5.19, 2.39, 3.66, 2.29, 2.88],
        [6.33, 2.68, 3.52, 5.38, 2.60, 3.53, 2.54, 4.75, 3.98, 2.69, 3.34, 3.17],
    ]
)
_FINAL_BASS = 0.25
"""How much of a correlation it is worth that a piece ends on its tonic."""


def key_name(tonic: int, mode: int) -> str:
    """A key in words.

    >>> key_name(6, 1)
    'F# minor'
    """
    return f"{PITCH_CLASSES[tonic % 12]} {MODES[mode]}"


def find_key(onset: np.ndarray, duration: np.ndarray, pitch: np.ndarray) -> tuple[int, int]:
    """Tonic (pitch class) and mode (0 major, 1 minor) of a piece.

    The histogram of pitch classes is correlated with the profile of each key (C. Krumhansl, Cognitive Foundations of
    Musical Pitch, 1990, ch. 4); the last bass note speaks for its own keys.
    """
    histogram = np.bincount(pitch % 12, weights=duration, minlength=12)
    end = (onset + duration).max()
    final = pitch[onset + duration > end - 1e-3].min() % 12
    scores = np.array(
        [[np.corrcoef(np.roll(profile, tonic), histogram)[0, 1] for tonic in range(12)] for profile in _PROFILES]
    )
    scores[:, final] += _FINAL_BASS
    mode, tonic = np.unravel_index(scores.argmax(), scores.shape)
    return int(tonic), int(mode)


def find_chords(
    onset: np.ndarray, duration: np.ndarray, pitch: np.ndarray, edges: np.ndarray
) -> list[tuple[float, float, int, int]]:
    """Chords between consecutive ``edges`` (beats): start, end, root and index in :data:`QUALITIES`; −1, −1 for none.

    What sounds in a segment, weighted by how long, is compared with each chord: tones of the chord count for it, other
    tones and absent ones against it. Equal neighbors are merged.
    """
    templates = np.zeros((len(QUALITIES), 12))
    for row, intervals in zip(templates, QUALITIES.values(), strict=True):
        row[list(intervals)] = 1
    chords = np.stack([np.roll(templates, root, axis=1) for root in range(12)])  # [12, qualities, 12]
    rare = np.array([0.0, 0.0, 0.05, 0.15, 0.05, 0.1, 0.1, 0.1, 0.1, 0.15])
    found: list[tuple[float, float, int, int]] = []
    for start, end in pairwise(edges.tolist()):
        overlap = np.minimum(onset + duration, end) - np.maximum(onset, start)
        sounding = overlap > 1e-6
        root, quality = -1, -1
        if sounding.any():
            weight = np.bincount(pitch[sounding] % 12, weights=overlap[sounding], minlength=12)
            weight = np.minimum(weight / (end - start), 1.0)
            inside = chords @ weight
            absent = (chords * (weight < 0.2)).sum(axis=-1)
            score = inside - (weight.sum() - inside) - 0.5 * absent - rare
            score[pitch[sounding].min() % 12] += 0.25
            root, quality = (int(i) for i in np.unravel_index(score.argmax(), score.shape))
        if found and found[-1][2:] == (root, quality):
            found[-1] = (found[-1][0], end, root, quality)
        else:
            found.append((start, end, root, quality))
    return found


def chord_name(root: int, quality: int, transposition: int = 0) -> str:
    """A chord in the notation mir_eval reads.

    >>> chord_name(9, 1), chord_name(9, 1, transposition=3), chord_name(-1, -1)
    ('A:min', 'C:min', 'N')
    """
    if root < 0:
        return NO_CHORD
    return f"{PITCH_CLASSES[(root + transposition) % 12]}:{list(QUALITIES)[quality]}"
