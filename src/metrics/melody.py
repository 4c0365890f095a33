"""How well generated audio keeps the melody of a reference."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import PartitaError
from ..layers.chroma import Chroma
from .clips import ClipMeans, Pieces


class MelodySimilarity(ClipMeans):
    """Mean cosine similarity of the chroma of two recordings, over frames of all clips (arXiv 2306.05284, §4.1).

    One-hot chroma, as the publication takes it, makes it the fraction of frames whose strongest pitch class agrees.
    Published values hold at 32 kHz; at other rates frames are a little longer or shorter.

    Args:
        sample_rate: Of the audio, in Hz.
        one_hot: Whether only the strongest pitch class of a frame counts.
        confidence: Of the intervals.
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
            audio: In [-1, 1].
            reference: Likewise; the number of channels may differ.
            lengths: Of each clip, the number of samples that are not padding; all where none are given.
            pieces: Names of the pieces that the clips are from, for the intervals; each its own where absent.

        Raises:
            PartitaError: They differ in number or length of clips.
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
        """``chroma_cosine`` in [0, 1], its bounds ``chroma_cosine_low`` and ``…_high``, and ``clips`` and ``pieces``.

        Raises:
            PartitaError: Nothing was compared.
        """
        return super().compute()
