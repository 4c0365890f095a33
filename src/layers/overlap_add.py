"""Joining overlapping pieces of audio."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def overlap_add(pieces: Sequence[Tensor], stride: int) -> Tensor:
    """Join pieces ``[..., n]`` of audio, each ``stride`` samples after the one before, with linear cross-fades.

    Each piece has a triangular weight, as in EnCodec (arXiv 2210.13438), and weights are normalized at each sample, so
    that where only one piece is, it is unchanged.

    Args:
        pieces: Pieces of the same length, except for the last one, which may be shorter.
        stride: Distance between the beginnings of neighboring pieces, at most their length.
    """
    length, last = pieces[0].shape[-1], pieces[-1].shape[-1]
    places = torch.linspace(0, 1, length + 2, device=pieces[0].device, dtype=pieces[0].dtype)[1:-1]
    weight = 0.5 - (places - 0.5).abs()
    total = pieces[0].new_zeros(*pieces[0].shape[:-1], stride * (len(pieces) - 1) + last)
    weights = total.new_zeros(total.shape[-1])
    for number, piece in enumerate(pieces):
        start, stop = number * stride, number * stride + piece.shape[-1]
        total[..., start:stop] += weight[: piece.shape[-1]] * piece
        weights[start:stop] += weight[: piece.shape[-1]]
    return total / weights
