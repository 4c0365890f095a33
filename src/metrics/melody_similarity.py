"""Similarity of the melodies of generated audio and a reference."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import PartitaError
from ..layers.chroma import Chroma
from .piece_means import ClipMeans, Pieces


class MelodySimilarity(ClipMeans):
    """Mean cosine similarity of the chroma of two recordings, over frames of all clips (arXiv 2306.05284, §4.1).

    With one-hot chroma, as in the publication, it is the fraction of frames whose strongest pitch class agrees.
    Published values are for 32 kHz. At other sample rates, the frame length differs slightly.

    Args:
        sample_rate: Sample rate of the audio, in Hz.
        one_hot: Whether to compare only the strongest pitch class of each frame.
        confidence: Confidence level of the intervals.
    """

    higher_is_better = True
    names = rates = ("chroma_cosine",)

    def __init__(
        self,
        sample_rate: int,
        one_hot: bool = True,
        *,
        confidence: float = 0.95,
    ) -> None:
        super().__init__(confidence=confidence)
        self.chroma = Chroma(sample_rate, one_hot=one_hot)

    def update(
        self, audio: Tensor, reference: Tensor, lengths: Sequence[int] | None = None, pieces: Pieces = None
    ) -> None:
        """Compare audio ``[B, C, T]`` with the reference ``[B, C', T]``.

        Args:
            audio: Audio in [-1, 1].
            reference: Reference audio in [-1, 1]; the number of channels may differ.
            lengths: Number of samples of each clip that are not padding. ``None`` means no padding.
            pieces: Names of the clips' pieces, for the intervals. ``None`` takes each clip as its own piece.

        Raises:
            PartitaError: The number or length of the clips differs.
        """
        if len(audio) != len(reference) or audio.shape[-1] != reference.shape[-1]:
            raise PartitaError(
                f"{len(audio)} clips of {audio.shape[-1]} samples cannot be compared with {len(reference)} of "
                f"{reference.shape[-1]}: cut them to the same length"
            )
        similarity = F.cosine_similarity(self.chroma(audio), self.chroma(reference), dim=-1)
        kept = []
        for frames, length in zip(similarity, lengths or [audio.shape[-1]] * len(audio), strict=True):
            counted = frames[: math.ceil(length / self.chroma.hop)]
            kept.append((counted.sum(), len(counted)))
        self.record(torch.stack([s for s, _ in kept])[:, None], torch.tensor([n for _, n in kept]), pieces)

    def compute(self) -> dict[str, Tensor]:
        """Return ``chroma_cosine`` in [0, 1], with bounds ``…_low`` and ``…_high``, and ``clips`` and ``pieces``.

        Raises:
            PartitaError: No clips were compared.
        """
        return super().compute()
