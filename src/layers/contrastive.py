"""Contrastive losses between the rows of two matrices of embeddings.

Row ``i`` of one matrix belongs to row ``i`` of the other. All losses are symmetric: they are the mean over both
directions. ``negatives`` is ``[N, N]`` bool, true where row ``i`` of the first matrix and row ``j`` of the second do
not belong together. A pair that neither belongs together nor is negative is left out.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def softmax_loss(first: Tensor, second: Tensor, scale: Tensor, negatives: Tensor) -> Tensor:
    """Symmetric cross-entropy over a batch (InfoNCE, arXiv 1807.03748, as in CLIP, arXiv 2103.00020).

    Args:
        first: Embeddings ``[N, D]``.
        second: Embeddings ``[N, D]``.
        scale: Factor of the similarities, the inverse temperature.
        negatives: Which pairs are negative, ``[N, N]`` bool.
    """
    logits = first @ second.T * scale
    same = torch.eye(len(logits), dtype=torch.bool, device=logits.device)
    logits = logits.masked_fill(~(negatives | same), -torch.inf)
    targets = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets)) / 2


def decoupled_loss(first: Tensor, second: Tensor, scale: Tensor, negatives: Tensor) -> Tensor:
    """Decoupled contrastive loss, whose denominator leaves out the positive pair (arXiv 2110.06848, §3).

    Rows without negatives do not count.

    Args:
        first: Embeddings ``[N, D]``.
        second: Embeddings ``[N, D]``.
        scale: Factor of the similarities, the inverse temperature.
        negatives: Which pairs are negative, ``[N, N]`` bool.
    """
    logits = first @ second.T * scale
    return (_decoupled(logits, negatives) + _decoupled(logits.T, negatives.T)) / 2


def sigmoid_loss(first: Tensor, second: Tensor, scale: Tensor, bias: Tensor, negatives: Tensor) -> Tensor:
    """Sigmoid loss, which classifies each pair on its own (SigLIP, arXiv 2303.15343, algorithm 1).

    Args:
        first: Embeddings ``[N, D]``.
        second: Embeddings ``[N, D]``.
        scale: Factor of the similarities, the inverse temperature.
        bias: Bias of the similarities.
        negatives: Which pairs are negative, ``[N, N]`` bool.
    """
    logits = first @ second.T * scale + bias
    positive = F.logsigmoid(logits.diagonal()).sum()
    negative = F.logsigmoid(-logits[negatives]).sum()
    return -(positive + negative) / len(logits)


def _decoupled(logits: Tensor, negatives: Tensor) -> Tensor:
    rows = negatives.any(1)  # the logarithm of an empty sum has no gradient
    denominators = logits[rows].masked_fill(~negatives[rows], -torch.inf).logsumexp(1)
    return (denominators - logits.diagonal()[rows]).sum() / rows.sum().clamp(min=1)
