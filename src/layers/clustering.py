"""K-means: initial clusters, Lloyd's algorithm and the nearest cluster."""

from __future__ import annotations

import torch
from torch import Tensor


def plus_plus(frames: Tensor, number: int) -> Tensor:
    """Frames ``[N, D]`` to start ``number`` clusters from (k-means++, Arthur and Vassilvitskii 2007, §3 and §5).

    Each is drawn with a probability proportional to the squared distance to those before it. Of a few draws, the one
    that leaves the smallest total distance is kept.
    """
    norms = frames.square().sum(1)

    def squared(centers: Tensor) -> Tensor:
        return (norms + centers.square().sum(1)[:, None] - 2 * centers @ frames.T).clamp(min=0)

    chosen = [frames[torch.randint(len(frames), (1,), device=frames.device)]]
    distances = squared(chosen[0])[0]
    for _ in range(number - 1):
        drawn = frames[torch.multinomial(distances + 1e-12, 2 + number.bit_length() // 2, replacement=True)]
        left = torch.minimum(squared(drawn), distances)
        best = left.sum(1).argmin()
        distances = left[best]
        chosen.append(drawn[best, None])
    return torch.cat(chosen)


def lloyd(frames: Tensor, centers: Tensor, iterations: int) -> Tensor:
    """Move ``centers`` ``[K, D]`` to the mean of the frames ``[N, D]`` nearest to each, repeatedly."""
    for _ in range(iterations):
        sums, found = _sums(frames, nearest(frames, centers)[1], len(centers))
        centers = torch.where(found[:, None] > 0, sums / found.clamp(min=1)[:, None], centers)
    return centers


def nearest(frames: Tensor, centers: Tensor) -> tuple[Tensor, Tensor]:
    """Squared distance and index, each ``[..., N]``, of the nearest of ``centers`` ``[K, D]`` to each frame."""
    with torch.autocast(frames.device.type, enabled=False):
        products = frames @ centers.T
        squared = frames.square().sum(-1, keepdim=True) + centers.square().sum(-1) - 2 * products
    least = squared.clamp(min=0).min(-1)
    return least.values, least.indices


def _sums(frames: Tensor, codes: Tensor, number: int) -> tuple[Tensor, Tensor]:
    """The sum ``[K, D]`` and the number ``[K]`` of the frames ``[N, D]`` of each cluster."""
    sums = frames.new_zeros(number, frames.shape[1]).index_add_(0, codes, frames)
    return sums, torch.bincount(codes, minlength=number).to(frames.dtype)
