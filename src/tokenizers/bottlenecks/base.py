"""The contract of bottlenecks: what passes from a codec's encoder to its decoder, and what it costs."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar, NamedTuple

from torch import Tensor

from ...core.component import Component


class Passed(NamedTuple):
    """What a bottleneck lets through in training.

    Args:
        latents: ``[B, D, S]`` for the decoder, with a gradient that reaches the encoder.
        losses: What it asks to minimize beside the reconstruction, by name: a commitment, a divergence. Each is
            weighed against the others already; the codec weighs their sum.
    """

    latents: Tensor
    losses: dict[str, Tensor]


class Bottleneck(Component):
    """What is between an encoder and a decoder: a quantizer, whose codes are kept, or a constraint on latents.

    Subclasses implement :meth:`build`, :meth:`forward`, :meth:`encode` and :meth:`decode`. A discrete one names its
    :attr:`cardinalities`. Whatever decides later training steps (moving averages, whether codebooks were fitted to
    data) is in the state dict, and random numbers come from torch's global generator.

    Attributes:
        dim: Width of the latents that the decoder is given.
    """

    family: ClassVar[str] = "bottleneck"
    dim: int

    def build(self, dim: int) -> None:
        """Make the weights, once; subclasses call this first.

        Args:
            dim: Width of the latents that the decoder is given.
        """
        self.claim()
        self.dim = dim

    @property
    def encoded_dim(self) -> int:
        """Width of what the encoder must give, such as twice :attr:`dim` for means and variances."""
        return self.dim

    @property
    def cardinalities(self) -> tuple[int, ...]:
        """Entries of each codebook; nothing where the bottleneck is continuous."""
        return ()

    @abstractmethod
    def forward(self, encoded: Tensor, step: Tensor) -> Passed:
        """What the decoder is trained on.

        In training it may learn from the batch, start on it, draw random numbers, and let latents pass as they are
        during a warm-up.

        Args:
            encoded: What the encoder gave, ``[B, encoded_dim, S]``.
            step: Training steps so far, a scalar.
        """

    @abstractmethod
    def encode(self, encoded: Tensor, num_codebooks: int | None) -> Tensor:
        """What the encoder gave, ``[B, encoded_dim, S]``, to what the codec's ``encode`` returns. Deterministic.

        Args:
            encoded: ``[B, encoded_dim, S]``.
            num_codebooks: How many codebooks, the first ones, are used; ``None`` where there are none.

        Returns:
            Codes ``[B, num_codebooks, S]`` int64, or latents ``[B, D, S]`` where the bottleneck is continuous.
        """

    @abstractmethod
    def decode(self, representation: Tensor) -> Tensor:
        """Codes ``[B, K, S]`` of the first ``K`` codebooks, or latents ``[B, D, S]``, to the decoder's latents."""

    def latents(self, encoded: Tensor) -> Tensor:
        """What the encoder gave to the decoder's latents ``[B, D, S]`` as they are before quantization."""
        return encoded

    def doubt(self, steps: int) -> str | None:
        """Why it cannot learn much in a training of so many steps; ``None`` where nothing is known against it."""
        return None
