"""A learned bias of attention by the distance of two places, as in T5 (arXiv 1910.10683, §2.1)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

NUM_BUCKETS, MAX_DISTANCE = 32, 128
"""T5's buckets of distances: half of them hold one distance each, the others grow up to the largest distance."""
SCALE = 32.0
"""Factor of the learned table. It changes how far a bias moves in a step, not which biases can be learned.

Adam moves an entry by about the learning rate in a step. Without the factor, a bias of several units, by which a head
attends to one distance alone, would take thousands of steps.
"""


class RelativeBias(nn.Module):
    """The bias of each attention head by the distance from a place to another one.

    Far distances share buckets that grow with their logarithm, and all from 128 on share the last. As in T5, a causal
    network has 32 buckets for earlier places, and others have 16 for each direction. A causal network also has 32 for
    later places, because conditions that are aligned in time can have positions after the place that attends to them.

    Args:
        num_heads: Attention heads.
        causal: Whether places attend only to themselves and places before them in the sequence.
    """

    def __init__(self, num_heads: int, *, causal: bool = True) -> None:
        super().__init__()
        self.side = NUM_BUCKETS if causal else NUM_BUCKETS // 2
        self.biases = nn.Embedding(2 * self.side, num_heads)

    def forward(self, queries: Tensor, keys: Tensor) -> Tensor:
        """Bias ``[B, heads, N, L]`` of places with positions ``[B, N]`` to others with positions ``[B, L]``, int64."""
        table = self.of_distances(torch.arange(-MAX_DISTANCE, MAX_DISTANCE + 1, device=keys.device)).T
        distances = (queries[:, :, None] - keys[:, None, :]).clamp(-MAX_DISTANCE, MAX_DISTANCE)
        chosen = table.index_select(1, distances.flatten() + MAX_DISTANCE)
        return chosen.unflatten(1, distances.shape).transpose(0, 1)

    def of_distances(self, distances: Tensor) -> Tensor:
        """Bias ``[..., heads]`` of distances ``[...]``, int64, which are negative to later places."""
        buckets = bucket(distances.abs(), self.side)
        bias: Tensor = self.biases(torch.where(distances < 0, self.side + buckets, buckets))
        return SCALE * bias


def bucket(distances: Tensor, buckets: int) -> Tensor:
    """Number of the bucket of distances of at least 0, int64.

    >>> bucket(torch.tensor([0, 15, 16, 20, 127, 5000]), 32).tolist()
    [0, 15, 16, 17, 31, 31]
    """
    exact = buckets // 2
    growth = torch.log(distances.clamp(min=1).double() / exact) / math.log(MAX_DISTANCE / exact)
    far = exact + (growth * (buckets - exact)).long()
    return torch.where(distances < exact, distances, far.clamp(max=buckets - 1))
