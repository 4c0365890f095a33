"""The contract of bottlenecks: what passes from a codec's encoder to its decoder."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar, NamedTuple

from torch import Tensor

from ...core.component import Component


class Passed(NamedTuple):
    """The output of a bottleneck in training.

    Args:
        latents: ``[B, D, S]`` for the decoder, with a gradient that reaches the encoder.
        losses: Losses of the bottleneck by name, such as a commitment or a divergence. They are already weighed
            against each other; the codec weighs their sum.
    """

    latents: Tensor
    losses: dict[str, Tensor]


class Bottleneck(Component):
    """A component between an encoder and a decoder: a quantizer, which yields codes, or a constraint on latents.

    Subclasses implement :meth:`build`, :meth:`forward`, :meth:`encode` and :meth:`decode`. A discrete one sets
    :attr:`cardinalities`. State that later training steps depend on (moving averages, whether codebooks were fitted to
    data) is in the state dict, and random numbers come from torch's global generator.

    Attributes:
        framewise: Whether each frame is encoded and decoded by itself, so that clips can be processed in chunks.
        dim: Width of the decoder's input.
    """

    family: ClassVar[str] = "bottleneck"
    framewise: ClassVar[bool] = True
    dim: int

    def build(self, dim: int) -> None:
        """Create the weights, once. Subclasses call this first.

        Args:
            dim: Width of the decoder's input.
        """
        self.claim()
        self.dim = dim

    @property
    def encoded_dim(self) -> int:
        """Width of the encoder's output, such as twice :attr:`dim` for means and variances."""
        return self.dim

    @property
    def cardinalities(self) -> tuple[int, ...]:
        """Entries of each codebook; empty for a continuous bottleneck."""
        return ()

    @abstractmethod
    def forward(self, encoded: Tensor, step: Tensor) -> Passed:
        """The latents that the decoder is trained on.

        In training, the bottleneck may learn from the batch, initialize from it, draw random numbers, and pass latents
        unchanged during a warm-up.

        Args:
            encoded: The encoder's output ``[B, encoded_dim, S]``.
            step: Training steps so far, a scalar.
        """

    @abstractmethod
    def encode(self, encoded: Tensor, num_codebooks: int | None) -> Tensor:
        """Turn the encoder's output into the codec's representation. Deterministic.

        Args:
            encoded: The encoder's output ``[B, encoded_dim, S]``.
            num_codebooks: Number of codebooks to use, from the first on; ``None`` for a continuous bottleneck.

        Returns:
            Codes ``[B, num_codebooks, S]`` int64, or latents ``[B, D, S]`` of a continuous bottleneck.
        """

    @abstractmethod
    def decode(self, representation: Tensor) -> Tensor:
        """Codes ``[B, K, S]`` of the first ``K`` codebooks, or latents ``[B, D, S]``, to the decoder's input."""

    def latents(self, encoded: Tensor) -> Tensor:
        """Turn the encoder's output into the latents ``[B, D, S]`` before quantization."""
        return encoded

    def doubt(self, steps: int) -> str | None:
        """A warning why a training of ``steps`` steps is too short; ``None`` if it is not."""
        return None
