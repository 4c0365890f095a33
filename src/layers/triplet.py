"""The triplet loss with semi-hard negatives (FaceNet, arXiv 1503.03832)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def semi_hard_triplet_loss(similarity: Tensor, negatives: Tensor, margin: float) -> Tensor:
    """Mean of ``max(0, d(anchor, positive) − d(anchor, negative) + margin)`` over the embeddings of both sides.

    Distances are squared and Euclidean, of embeddings of unit length. Every embedding is an anchor, and its partner on
    the other side is the positive. The negative is the nearest one, on either side, that is farther away than the
    positive. If all negatives are nearer, it is the farthest of them, as in TensorFlow's ``triplet_semihard_loss``. The
    nearest of all negatives would let embeddings collapse to a point early in training (§3.2). Anchors without
    negatives do not count.

    Args:
        similarity: Cosine similarities ``[2N, 2N]`` of ``N`` embeddings, followed by those of their partners.
        negatives: ``[N, N]`` bool, symmetric, true where two pairs may be each other's negatives.
        margin: How much farther away than the positive a negative must be to add nothing to the loss.
    """
    distances = 2 - 2 * similarity
    positive = distances.diagonal(len(negatives)).repeat(2)
    allowed = negatives.repeat(2, 2)
    with torch.no_grad():
        farther = allowed & (distances > positive[:, None])
        nearest_farther = distances.masked_fill(~farther, torch.inf).argmin(1)
        farthest = distances.masked_fill(~allowed, -torch.inf).argmax(1)
        chosen = torch.where(farther.any(1), nearest_farther, farthest)
    negative = distances.gather(1, chosen[:, None])[:, 0]
    counted = allowed.any(1)
    return (F.relu(positive - negative + margin) * counted).sum() / counted.sum().clamp(min=1)
