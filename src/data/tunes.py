"""Families of pieces with a common tune, which must not be divided between training and test splits."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import sparse

from .scores import Piece, find_melody

RUN_LENGTH = 7
"""Number of successive intervals in a run."""
MIN_RUNS = 12
"""Minimum number of distinct runs of a line that is compared; shorter lines are figures rather than tunes."""
MIN_SIMILARITY = 0.25
"""Minimum number of runs that lines of a common tune share, relative to the geometric mean of their numbers of runs."""
_LARGEST_LEAP = 12
_BLOCK = 512


def tune_families(pieces: Sequence[Piece]) -> list[str]:
    """Return the family of each piece, named after its first piece.

    Two pieces are related if a line of one and a line of the other share enough runs of intervals; families are the
    connected components of this relation. All parts are compared in full, because a tune may start late or lie below an
    obbligato. Transposition, repeated notes, fermatas, note values and most passing notes make no difference.

    Args:
        pieces: Pieces of any collections. Their order affects the names of the families only.
    """
    owners: list[int] = []
    lines: list[np.ndarray] = []
    for number, piece in enumerate(pieces):
        for part in np.unique(piece.part).tolist():
            runs = interval_runs(piece, part)
            if len(runs) >= MIN_RUNS:
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
            alike = (one < other) & (shared.data >= MIN_SIMILARITY * np.sqrt(size[one] * size[other]))
            for a, b in zip(owner[one[alike]].tolist(), owner[other[alike]].tolist(), strict=True):
                low, high = sorted((head(a), head(b)))
                family[high] = low
    return [pieces[head(number)].id for number in range(len(pieces))]


def interval_runs(piece: Piece, part: int) -> np.ndarray:
    """Return the distinct runs of :data:`RUN_LENGTH` intervals in the top line of a part, encoded as int64 ``[runs]``.

    They are taken from the line itself and from its notes on beats, which excludes passing notes; both without repeated
    notes.
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
        if len(steps) >= RUN_LENGTH:
            base = (2 * _LARGEST_LEAP + 1) ** np.arange(RUN_LENGTH)
            found.append(np.lib.stride_tricks.sliding_window_view(steps, RUN_LENGTH) @ base)
    return np.unique(np.concatenate(found)) if found else np.zeros(0, np.int64)
