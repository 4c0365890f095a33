"""How near embeddings that belong together are: CLAP score, MuLan cycle consistency."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import PartitaError
from .clips import ClipMeans, Pieces, sums_per_clip


def clip_means(embeddings: Tensor, sizes: Tensor) -> Tensor:
    """Mean embeddings ``[C, D]`` float64 of clips with ``sizes`` ``[C]`` int64 segments ``[N, D]`` each, in order."""
    return sums_per_clip(embeddings.double(), sizes) / sizes.to(embeddings.device)[:, None]


class PairedCosine(ClipMeans):
    """Mean cosine of paired embeddings, in [−1, 1].

    Text and audio under LAION-CLAP: the CLAP score. Under MuLan: the cycle consistency of MusicLM (2301.11325 §4.2),
    where a clip longer than MuLan's ten seconds is the average of its segments. Only values of one model compare.

    Args:
        confidence: Of the intervals.

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
            first: Of one side, such as the captions.
            second: Of the other, such as the audio.
            first_sizes: How many segments of the first side each clip has, in order, ``[clips]`` int64; one each where
                absent.
            second_sizes: The same of the second side.
            pieces: Names of the pieces that the clips are from, for the intervals; each its own where absent.

        Raises:
            PartitaError: The sides are not of the same clips and the same width.
        """
        first = first.double() if first_sizes is None else clip_means(first, first_sizes)
        second = second.double() if second_sizes is None else clip_means(second, second_sizes)
        if first.shape != second.shape or first.ndim != 2:
            shapes = f"{list(first.shape)} and {list(second.shape)}"
            raise PartitaError(f"first and second must be embeddings [N, D] of the same clips, not {shapes}")
        if not torch.isfinite(first.sum() + second.sum()):
            raise PartitaError("embeddings must be finite: look for silence or overflow in what was embedded")
        self.record(F.cosine_similarity(first, second)[:, None], pieces=pieces)

    def compute(self) -> dict[str, Tensor]:
        """``cosine``, its bounds ``cosine_low`` and ``cosine_high``, and the numbers of ``clips`` and ``pieces``."""
        return super().compute()
