"""Residual vector quantization in groups of channels (HiFi-Codec, arXiv 2305.02765)."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from ...core.registry import register
from .base import Bottleneck, Passed
from .dropout import codebooks_in_use
from .rvq import RVQ


@register("bottleneck", "grouped-rvq")
class GroupedRVQ(Bottleneck):
    """Group-residual vector quantization: an ``rvq`` for each group of channels (HiFi-Codec, arXiv 2305.02765).

    The first codebooks of all groups come first, then their second ones, and so on: codebook ``k · groups + g`` is the
    ``k``-th of group ``g``. So the first ``n · groups`` codebooks are the code of ``n`` codebooks per group. Any other
    number gives the last groups one codebook fewer than the first ones; below ``groups``, the channels of the last ones
    are 0, which the decoder has never seen.

    Args:
        groups: Groups of channels, of equal width. They must divide the width of the latents.
        num_codebooks: Codes per frame and group.
        cardinality: Entries per codebook.
        decay: Decay of the moving averages that define the codebook entries.
        dropout: Probability that an example is quantized with a random number of codebooks in training, the same in all
            groups, so that fewer can be used later.
        revive_below: An entry used less than this fraction of its fair share, on average, is replaced by a random
            frame; see ``rvq``.
        kmeans_iterations: Iterations of the clustering that initializes the codebooks.
        warmup_steps: Training steps in which latents pass unchanged.
    """

    def __init__(
        self,
        *,
        groups: int = 2,
        num_codebooks: int = 2,
        cardinality: int = 1024,
        decay: float = 0.99,
        dropout: float = 1.0,
        revive_below: float = 0.1,
        kmeans_iterations: int = 50,
        warmup_steps: int = 100,
    ) -> None:
        super().__init__()
        if groups < 1:
            raise ValueError(f"groups must be at least 1, not {groups}")
        self.groups, self.num_codebooks, self.dropout = groups, num_codebooks, dropout
        self.cardinality = cardinality
        self.quantizers = nn.ModuleList(
            RVQ(
                num_codebooks=num_codebooks,
                cardinality=cardinality,
                decay=decay,
                dropout=dropout,
                revive_below=revive_below,
                kmeans_iterations=kmeans_iterations,
                warmup_steps=warmup_steps,
            )
            for _ in range(groups)
        )

    def build(self, dim: int) -> None:
        """Create the codebooks, for latents of width ``dim``.

        Raises:
            ValueError: ``dim`` is not a multiple of the number of groups.
        """
        super().build(dim)
        if dim % self.groups:
            raise ValueError(f"groups must divide the width of the latents, {dim}, which {self.groups} does not")
        for quantizer in self._each:
            quantizer.build(dim // self.groups)

    @property
    def cardinalities(self) -> tuple[int, ...]:
        """All codebooks have the same number of entries."""
        return (self.cardinality,) * (self.groups * self.num_codebooks)

    def forward(self, encoded: Tensor, step: Tensor) -> Passed:
        """The quantized latents, and the mean of the commitments of the groups; see :meth:`RVQ.forward`."""
        dropout = self.dropout if self.training else 0.0
        keep = codebooks_in_use(self.num_codebooks, dropout, len(encoded), encoded.device)
        groups = zip(self._each, encoded.chunk(self.groups, 1), strict=True)
        passed = [quantizer(channels, step, keep) for quantizer, channels in groups]
        losses = {name: torch.stack([group.losses[name] for group in passed]).mean() for name in passed[0].losses}
        return Passed(torch.cat([group.latents for group in passed], 1), losses)

    def encode(self, encoded: Tensor, num_codebooks: int | None = None) -> Tensor:
        """Latents ``[B, D, S]`` to codes ``[B, num_codebooks, S]``; ``None`` uses all codebooks."""
        total = num_codebooks or self.groups * self.num_codebooks
        each = -(-total // self.groups)
        groups = zip(self._each, encoded.chunk(self.groups, 1), strict=True)
        codes = [quantizer.encode(channels, each) for quantizer, channels in groups]
        return torch.stack(codes, 2).flatten(1, 2)[:, :total]

    def decode(self, representation: Tensor) -> Tensor:
        """Codes ``[B, K, S]``, of all codebooks or the first few, to latents ``[B, D, S]``."""
        latents = []
        for group, quantizer in enumerate(self._each):
            if group < representation.shape[1]:
                latents.append(quantizer.decode(representation[:, group :: self.groups]))
            else:
                latents.append(torch.zeros_like(latents[0]))
        return torch.cat(latents, 1)

    def doubt(self, steps: int) -> str | None:
        """A warning that the codebooks learn nothing if the training ends within the warm-up."""
        return self._each[0].doubt(steps)

    @property
    def _each(self) -> list[RVQ]:
        """The quantizers of the groups, with their type."""
        return cast(list[RVQ], list(self.quantizers))
