"""Residual quantization in a few normalized dimensions per codebook (DAC, 2306.06546 §3.2)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from ...core.registry import register
from .base import Bottleneck, Passed
from .dropout import codebooks_in_use


@register("bottleneck", "factorized-rvq")
class FactorizedRVQ(Bottleneck):
    """Residual vector quantization whose codebooks are searched by direction, in a few dimensions, as in DAC.

    Each codebook projects the residual to ``codebook_dim`` dimensions, takes the entry of the nearest direction, and
    projects it back. Entries are parameters that the gradient trains: there is no moving average, no clustering and no
    revival of unused entries. Everything is computed in full precision even under autocast.

    Args:
        num_codebooks: Codes per frame.
        cardinality: Entries per codebook.
        codebook_dim: Width of the entries.
        dropout: Probability that an example uses only a random number of codebooks in training, so that fewer can be
            used later. DAC drops codebooks of exactly this fraction of each batch.
        commitment: Weight of the commitment, which pulls the encoder to the entries, relative to the loss that pulls
            the entries to the encoder. Both are sums over codebooks.
    """

    def __init__(
        self,
        *,
        num_codebooks: int = 9,
        cardinality: int = 1024,
        codebook_dim: int = 8,
        dropout: float = 0.5,
        commitment: float = 0.25,
    ) -> None:
        super().__init__()
        if num_codebooks < 1 or cardinality < 2 or codebook_dim < 1:
            raise ValueError(
                f"a quantizer needs a codebook of two entries, not {num_codebooks} codebooks of {cardinality} entries "
                f"in {codebook_dim} dimensions"
            )
        if not 0 <= dropout <= 1:
            raise ValueError(f"dropout must be between 0 and 1, not {dropout}")
        if commitment < 0:
            raise ValueError(f"commitment must not be negative, but is {commitment}")
        self.num_codebooks, self.cardinality, self.codebook_dim = num_codebooks, cardinality, codebook_dim
        self.dropout, self.commitment = dropout, commitment

    def build(self, dim: int) -> None:
        """Create the codebooks and their projections, for latents of width ``dim``."""
        super().build(dim)
        self.codebooks = nn.ModuleList(
            FactorizedCodebook(dim, self.cardinality, self.codebook_dim) for _ in range(self.num_codebooks)
        )

    @property
    def cardinalities(self) -> tuple[int, ...]:
        """All codebooks have the same number of entries."""
        return (self.cardinality,) * self.num_codebooks

    def forward(self, encoded: Tensor, step: Tensor) -> Passed:
        """The quantized latents, and the losses ``codebook`` and ``commitment``.

        Both are mean squared distances between projected residuals and entries, summed over the codebooks that each
        example uses, and averaged over examples. Residuals are taken as if all codebooks were in use.
        """
        with torch.autocast(encoded.device.type, enabled=False):
            residual = encoded.float()
            total = torch.zeros_like(residual)
            dropout = self.dropout if self.training else 0.0
            keep = codebooks_in_use(self.num_codebooks, dropout, len(encoded), encoded.device)
            pull, commitment = residual.new_zeros(()), residual.new_zeros(())
            for codebook, used in zip(self.codebooks, keep.unbind(1), strict=True):
                found = codebook(residual)
                residual = residual - found.latents
                total = total + found.latents * used[:, None, None]
                pull = pull + (_distance(found.entries, found.projected.detach()) * used).mean()
                commitment = commitment + (_distance(found.projected, found.entries.detach()) * used).mean()
            return Passed(total, {"codebook": pull, "commitment": self.commitment * commitment})

    def encode(self, encoded: Tensor, num_codebooks: int | None = None) -> Tensor:
        """Latents ``[B, D, S]`` to codes ``[B, num_codebooks, S]``, ``None`` uses all codebooks."""
        with torch.autocast(encoded.device.type, enabled=False):
            residual, codes = encoded.float(), []
            for codebook in self.codebooks[:num_codebooks]:
                found = codebook(residual)
                residual = residual - found.latents
                codes.append(found.codes)
            return torch.stack(codes, 1)

    def decode(self, representation: Tensor) -> Tensor:
        """Codes ``[B, K, S]``, of all codebooks or the first few, to latents ``[B, D, S]``."""
        with torch.autocast(representation.device.type, enabled=False):
            own = zip(self.codebooks, representation.unbind(1), strict=False)
            return torch.stack([codebook.decode(codes) for codebook, codes in own]).sum(0)  # type: ignore[operator]


class Found(NamedTuple):
    """What a codebook finds for its input.

    Args:
        latents: The entries projected back, ``[B, D, S]``; the gradient passes to the input through both projections.
        codes: ``[B, S]`` int64.
        projected: The input in the space of the entries, ``[B, codebook_dim, S]``.
        entries: The entries, of the same shape, with a gradient.
    """

    latents: Tensor
    codes: Tensor
    projected: Tensor
    entries: Tensor


class FactorizedCodebook(nn.Module):
    """One codebook between two projections.

    Args:
        dim: Width of the latents.
        cardinality: Entries.
        codebook_dim: Width of an entry.
    """

    def __init__(self, dim: int, cardinality: int, codebook_dim: int) -> None:
        super().__init__()
        self.input = weight_norm(nn.Conv1d(dim, codebook_dim, 1))
        self.output = weight_norm(nn.Conv1d(codebook_dim, dim, 1))
        for projection in (self.input, self.output):
            nn.init.zeros_(projection.bias)
        self.entries = nn.Parameter(torch.randn(cardinality, codebook_dim))

    def lookup(self, codes: Tensor) -> Tensor:
        """Codes ``[B, S]`` to entries ``[B, codebook_dim, S]``."""
        return F.embedding(codes, self.entries).mT

    def decode(self, codes: Tensor) -> Tensor:
        """Codes ``[B, S]`` to latents ``[B, D, S]``."""
        return self.output(self.lookup(codes))

    def forward(self, latents: Tensor) -> Found:
        """Quantize latents ``[B, D, S]``."""
        projected = self.input(latents)
        with torch.no_grad():  # nearest by Euclidean distance between unit vectors: the largest product
            similarities = F.normalize(projected, dim=1).mT @ F.normalize(self.entries, dim=1).T
            codes = similarities.argmax(-1)
        entries = self.lookup(codes)
        straight = projected + (entries - projected).detach()
        return Found(self.output(straight), codes, projected, entries)


def _distance(a: Tensor, b: Tensor) -> Tensor:
    """Mean squared distance of each example, ``[B]``."""
    return (a - b).square().mean((1, 2))
