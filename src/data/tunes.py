"""Which pieces have a tune in common: what must not be divided between training and test."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import sparse

from .scores import Piece, find_melody

GRAM = 7
"""Intervals in a row that are compared."""
FEWEST = 12
"""Distinct runs of intervals that a line must have to be compared at all; fewer are a figure, not a tune."""
ALIKE = 0.25
"""How many runs two lines of a tune share, over the geometric mean of how many they have."""
_LARGEST_LEAP = 12
_BLOCK = 512


def tune_families(pieces: Sequence[Piece]) -> list[str]:
    """The family of each piece, under the name of the first piece in it.

    Pieces are kin if a line of the one and a line of the other share their intervals to a large part; a family is
    everybody who is kin to somebody in it. Whole pieces count rather than openings, and every part, since a tune may
    be below an obbligato. Transposition, repeated notes, fermatas and note values make no difference, nor do most
    passing notes.

    Args:
        pieces: Of any collections; which piece gives its name depends on their order, the families do not.
    """
    owners: list[int] = []
    lines: list[np.ndarray] = []
    for number, piece in enumerate(pieces):
        for part in np.unique(piece.part).tolist():
            runs = interval_runs(piece, part)
            if len(runs) >= FEWEST:
                owners.append(number)
                lines.append(runs)
    family = list(range(len(pieces)))

    def head(number: int) -> int:
        while family[number] != number:
            family[number] = number = family[family[number]]
        return number

    if lines:
        owner, size = np.array(owners), np.array([len(runs) for runs in lines])
        column = np.unique(np.concatenate(lines), return_inverse=True)[1]
        rows = np.concatenate([[0], np.cumsum(size)])
        has = sparse.csr_matrix((np.ones(len(column), np.float32), column, rows))
        for first in range(0, len(lines), _BLOCK):
            shared = (has[first : first + _BLOCK] @ has.T).tocoo()
            one, other = shared.row + first, shared.col
            alike = (one < other) & (shared.data >= ALIKE * np.sqrt(size[one] * size[other]))
            for a, b in zip(owner[one[alike]].tolist(), owner[other[alike]].tolist(), strict=True):
                low, high = sorted((head(a), head(b)))
                family[high] = low
    return [pieces[head(number)].id for number in range(len(pieces))]


def interval_runs(piece: Piece, part: int) -> np.ndarray:
    """The distinct runs of :data:`GRAM` intervals in the top line of a part, each as one number: int64 ``[runs]``.

    They are taken from the line as it is and from what sounds on its beats, where passing notes are gone, both without
    repeated notes.
    """
    mine = piece.part == part
    line = find_melody(piece.onset[mine], piece.duration[mine], piece.pitch[mine])
    start, pitch = np.array([note[0] for note in line]), np.array([note[2] for note in line])
    beats = piece.beats[piece.beats > start[0] - 1e-6]
    on_beats = pitch[np.searchsorted(start, beats + 1e-6, side="right") - 1]
    found = []
    for tones in (pitch, on_beats):
        steps = np.diff(tones)
        steps = steps[steps != 0].clip(-_LARGEST_LEAP, _LARGEST_LEAP) + _LARGEST_LEAP
        if len(steps) >= GRAM:
            base = (2 * _LARGEST_LEAP + 1) ** np.arange(GRAM)
            found.append(np.lib.stride_tricks.sliding_window_view(steps, GRAM) @ base)
    return np.unique(np.concatenate(found)) if found else np.zeros(0, np.int64)
