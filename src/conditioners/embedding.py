"""The contract of conditioners that embed recordings."""

from __future__ import annotations

from abc import abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ..core.contracts import Condition, ConditionSpec
from .base import Conditioner


class Views(NamedTuple):
    """Two conditions of the same clips, such as those of their audio and of their texts.

    Args:
        first: A condition of embeddings, ``[N, L, D]``.
        second: Another one, ``[N, L', D]``.
        keys: ``[N]`` int64, equal for clips whose conditions should be equal.
    """

    first: Condition
    second: Condition
    keys: Tensor


class EmbeddingConditioner(Conditioner):
    """A conditioner that embeds recordings, or what stands for one, such as a text, in vectors of unit length.

    A condition is one or more embeddings ``[B, L, D]``, in order, most without a frame rate. Scores compare the
    embeddings of recordings, and ``quantized`` turns conditions into codes.

    Attributes:
        sample_rate: Sample rate of the audio that it embeds (one channel), in Hz.
        dim: Width of an embedding.
    """

    reads_one = True
    sample_rate: int
    dim: int

    @property
    def spec(self) -> ConditionSpec:
        """Embeddings without a frame rate."""
        return ConditionSpec(dim=self.dim)

    @abstractmethod
    def embed_audio(self, audio: Tensor) -> Tensor:
        """Embed audio ``[B, 1, T]`` at :attr:`sample_rate` as ``[B, N, D]`` float32 of unit length.

        There are ``N`` windows, one if the clip is shorter than a window. The last window may contain padding.
        """

    def similarity(self, first: Tensor, second: Tensor) -> Tensor:
        """The cosine similarities ``[M, N]`` of embeddings of unit length, ``[M, D]`` and ``[N, D]``."""
        return torch.inner(first, second)

    @abstractmethod
    def views(self, prepared: dict[str, Tensor]) -> Views | None:
        """Return the two conditions that training makes similar, for the clips that have both.

        Args:
            prepared: What :meth:`prepare` returns.

        Returns:
            The conditions; ``None`` if the conditioner reads only one of the two.
        """

    @abstractmethod
    def recalls(self, first: Tensor, second: Tensor, keys: Tensor) -> dict[str, Tensor]:
        """How often the two views of a clip find each other among the 1 and the 10 nearest of all.

        Args:
            first: Mean embeddings of the first view, ``[N, D]``.
            second: Mean embeddings of the second view, ``[N, D]``.
            keys: The :attr:`Views.keys`.
        """


def mean_embedding(condition: Condition) -> Tensor:
    """The normalized mean of the embeddings of each sample, ``[B, D]``; zero for samples without any."""
    return F.normalize((condition.values * condition.mask[..., None]).sum(1), dim=-1)
