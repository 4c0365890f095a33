"""Pairs of clips from different pieces, which chance levels are computed from."""

from __future__ import annotations

from collections.abc import Hashable, Sequence


def other_pieces(pieces: Sequence[Hashable], shift: int = 1) -> list[int] | None:
    """Return for each clip the index of a clip from another piece; ``None`` if all clips are from one piece.

    Args:
        pieces: Id of the piece that each clip is from.
        shift: Distance to the other piece, in pieces, from 1 to the number of pieces minus one.

    >>> other_pieces(["a", "a", "b", "c"]), other_pieces(["a", "a"])
    ([2, 2, 3, 0], None)
    """
    clips: dict[Hashable, list[int]] = {}
    for i, piece in enumerate(pieces):
        clips.setdefault(piece, []).append(i)
    groups, found = list(clips.values()), dict[int, int]()
    if not 0 < shift < len(groups):
        return None
    for group, others in zip(groups, groups[shift:] + groups[:shift], strict=True):
        found |= {i: others[number % len(others)] for number, i in enumerate(group)}
    return [found[i] for i in range(len(pieces))]
