"""Divergence between a classifier's predictions for generated audio and for a reference."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ..errors import PartitaError
from .piece_means import ClipMeans, Pieces, sums_per_clip


def divergence(predicted: Tensor, target: Tensor, epsilon: float = 1e-6) -> Tensor:
    """``Σ target · log(target / (predicted + ε))`` of probabilities ``[..., C]``, in nepers ``[...]``.

    Over distributions it is the Kullback–Leibler divergence of ``predicted`` from ``target``, at least −C·ε.
    """
    return (torch.xlogy(target, target) - target * (predicted + epsilon).log()).sum(-1)


class KLDivergence(ClipMeans):
    """Mean Kullback–Leibler divergence of a classifier's predictions per segment (AudioCraft, audioldm_eval).

    Values are comparable only for the same classifier and form.

    Args:
        form: ``softmax`` treats labels as exclusive (AudioCraft's KLD, ``kl_softmax`` of audioldm_eval). ``sigmoid``
            treats them as independent, and sums only ``t·log(t / p)`` (``kl_sigmoid`` of audioldm_eval). It omits the
            terms for absent labels, so it is not a divergence and can be negative.
        epsilon: Constant added to the probabilities in the denominator of the logarithm.
        confidence: Confidence level of the intervals.

    Example:
        >>> metric = KLDivergence()
        >>> metric.update(torch.zeros(1, 2), torch.tensor([[0.0, 100.0]]))
        >>> round(metric.compute()["kld"].item(), 4)  # log 2
        0.6931
    """

    higher_is_better = False
    names = ("kld", "kld_reverse", "kld_both")

    def __init__(
        self,
        form: Literal["softmax", "sigmoid"] = "softmax",
        *,
        epsilon: float = 1e-6,
        confidence: float = 0.95,
    ) -> None:
        super().__init__(confidence=confidence)
        if form not in ("softmax", "sigmoid"):
            raise ValueError(f"form must be softmax or sigmoid, not {form!r}")
        if not 0 < epsilon < 1:
            raise ValueError(f"epsilon must be between 0 and 1, not {epsilon}")
        self.form, self.epsilon = form, epsilon

    def update(self, predicted: Tensor, target: Tensor, sizes: Tensor | None = None, pieces: Pieces = None) -> None:
        """Compare the predictions for generated audio with those for its reference.

        Args:
            predicted: Logits ``[N, C]`` of the segments of generated clips.
            target: Logits of the same segments of the references.
            sizes: Number of segments of each clip, in order, ``[clips]`` int64. ``None`` means one each.
            pieces: Names of the clips' pieces, for the intervals. ``None`` takes each clip as its own piece.

        Raises:
            PartitaError: The shapes differ, a logit is not finite, or the sizes do not match.
        """
        if predicted.shape != target.shape or predicted.ndim != 2:
            shapes = f"{list(predicted.shape)} and {list(target.shape)}"
            raise PartitaError(f"predicted and target must be logits [N, C] of the same segments, not {shapes}")
        predicted, target = predicted.double(), target.double()
        if not (predicted.isfinite().all() and target.isfinite().all()):
            raise PartitaError("logits must be finite: look for silence or overflow in the classified audio")
        if self.form == "softmax":
            predicted, target = predicted.softmax(-1), target.softmax(-1)
        else:
            predicted, target = predicted.sigmoid(), target.sigmoid()
        forward = divergence(predicted, target, self.epsilon)
        reverse = divergence(target, predicted, self.epsilon)
        sizes = torch.ones(len(predicted), dtype=torch.int64) if sizes is None else sizes
        self.record(sums_per_clip(torch.stack([forward, reverse, forward + reverse], 1), sizes), sizes, pieces)

    def compute(self) -> dict[str, Tensor]:
        """Return ``kld`` from target to predicted, ``kld_reverse``, and their sum ``kld_both``, in nepers per segment.

        Each has bounds ``…_low`` and ``…_high``. ``clips`` and ``pieces`` are the numbers of both.
        """
        return super().compute()
