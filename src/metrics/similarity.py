"""Similarity of paired embeddings: CLAP score, MuLan cycle consistency."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import PartitaError
from .piece_means import ClipMeans, Pieces, sums_per_clip


def clip_means(embeddings: Tensor, sizes: Tensor) -> Tensor:
    """Average embeddings ``[N, D]`` of segments to ``[C, D]`` float64 per clip, given the ``sizes`` ``[C]`` int64."""
    return sums_per_clip(embeddings.double(), sizes) / sizes.to(embeddings.device)[:, None]


class PairedCosine(ClipMeans):
    """Mean cosine similarity of paired embeddings, in [−1, 1].

    For text and audio embeddings of LAION-CLAP, this is the CLAP score. For MuLan, it is the cycle consistency of
    MusicLM (2301.11325 §4.2), where clips longer than the ten seconds of MuLan are averaged over segments. Values are
    comparable only for the same model.

    Args:
        confidence: Confidence level of the intervals.

    Example:
        >>> metric = PairedCosine()
        >>> metric.update(torch.tensor([[1.0, 0.0]]), torch.tensor([[3.0, 3.0]]))
        >>> round(metric.compute()["cosine"].item(), 4)
        0.7071
    """

    higher_is_better = True
    names = ("cosine",)

    def update(
        self,
        first: Tensor,
        second: Tensor,
        first_sizes: Tensor | None = None,
        second_sizes: Tensor | None = None,
        pieces: Pieces = None,
    ) -> None:
        """Compare embeddings ``[N, D]`` of segments, averaged over each clip first.

        Args:
            first: Embeddings of one side, such as the captions.
            second: Embeddings of the other side, such as the audio.
            first_sizes: Number of segments of the first side of each clip, in order, ``[clips]`` int64. ``None`` means
                one each.
            second_sizes: Number of segments of the second side of each clip. ``None`` means one each.
            pieces: Names of the clips' pieces, for the intervals. ``None`` takes each clip as its own piece.

        Raises:
            PartitaError: The sides have different clips or widths.
        """
        first = first.double() if first_sizes is None else clip_means(first, first_sizes)
        second = second.double() if second_sizes is None else clip_means(second, second_sizes)
        if first.shape != second.shape or first.ndim != 2:
            shapes = f"{list(first.shape)} and {list(second.shape)}"
            raise PartitaError(f"first and second must be embeddings [N, D] of the same clips, not {shapes}")
        if not torch.isfinite(first.sum() + second.sum()):
            raise PartitaError("embeddings must be finite: look for silence or overflow in the embedded audio")
        self.record(F.cosine_similarity(first, second)[:, None], pieces=pieces)

    def compute(self) -> dict[str, Tensor]:
        """Return ``cosine``, its bounds ``cosine_low`` and ``cosine_high``, ``clips`` and ``pieces``."""
        return super().compute()
