"""How well generated audio keeps the melody of a reference."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import PartitaError
from ..layers.chroma import Chroma
from .bootstrap import ClipMeans


class MelodySimilarity(ClipMeans):
    """Mean cosine similarity of the chroma of two recordings, over frames of all clips (arXiv 2306.05284, §4.1).

    One-hot chroma, as the publication takes it, makes it the fraction of frames whose strongest pitch class agrees.
    Published values hold at 32 kHz; at other rates frames are a little longer or shorter.

    Args:
        sample_rate: Of the audio, in Hz.
        one_hot: Whether only the strongest pitch class of a frame counts.
        resamples: Of the clips, for the intervals; 0 for none.
        confidence: Of the intervals.
        seed: Of the resamples.
    """

    higher_is_better = True
    names = ("chroma_cosine",)

    def __init__(
        self,
        sample_rate: int,
        one_hot: bool = True,
        *,
        resamples: int = 1000,
        confidence: float = 0.95,
        seed: int = 0,
    ) -> None:
        super().__init__(resamples=resamples, confidence=confidence, seed=seed)
        self.chroma = Chroma(sample_rate, one_hot=one_hot)

    def update(self, audio: Tensor, reference: Tensor, lengths: Sequence[int] | None = None) -> None:
        """Compare audio ``[B, C, T]`` with the reference ``[B, C', T]``.

        Args:
            audio: In [-1, 1].
            reference: Likewise; the number of channels may differ.
            lengths: Of each clip, the number of samples that are not padding; all where none are given.

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
        self.record(torch.stack([s for s, _ in kept])[:, None], torch.tensor([n for _, n in kept]))

    def compute(self) -> dict[str, Tensor]:
        """``chroma_cosine`` in [0, 1], its bounds ``chroma_cosine_low`` and ``chroma_cosine_high``, and ``clips``.

        Raises:
            PartitaError: Nothing was compared.
        """
        return super().compute()
