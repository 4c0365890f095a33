"""Residual quantization in a few normalized dimensions per codebook (DAC, 2306.06546 §3.2)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from ...core.processes import drawing_together, of_all
from ...core.registry import register
from .base import Bottleneck, Passed
from .dropout import codebooks_in_use

NOISE = 0.3
"""Deviation between entries that start from the same frame, relative to that of the frames: batches can be small."""

USAGE_DECAY = 0.98
"""Decay of the moving average of how often each entry is used."""


@register("bottleneck", "factorized-rvq")
class FactorizedRVQ(Bottleneck):
    """Residual vector quantization whose codebooks are searched by direction, in a few dimensions, as in DAC.

    Each codebook projects the residual to ``codebook_dim`` dimensions, takes the entry of the nearest direction, and
    projects it back. Entries are parameters that the gradient trains: there is no moving average and no clustering.
    Everything is computed in full precision even under autocast.

    Args:
        num_codebooks: Codes per frame.
        cardinality: Entries per codebook.
        codebook_dim: Width of the entries.
        dropout: Probability that an example uses only a random number of codebooks in training, so that fewer can be
            used later. DAC drops codebooks of exactly this fraction of each batch.
        commitment: Weight of the commitment, which pulls the encoder to the entries, relative to the loss that pulls
            the entries to the encoder. Both are sums over codebooks.
        warmup_steps: Training steps in which the projections are trained without entries, which then start as random
            frames of the batch. ``None`` has no such steps, as published, and random entries; in small codecs and
            short trainings, nearly all of these stay unused.
        revive_below: An entry used less than this fraction of its fair share, on average, is replaced by a random
            frame, as in the bottleneck ``rvq``. The fair share is the number of frames per step, divided by the
            entries. ``None`` replaces none, as published.
    """

    started: Tensor
    usage: Tensor

    def __init__(
        self,
        *,
        num_codebooks: int = 9,
        cardinality: int = 1024,
        codebook_dim: int = 8,
        dropout: float = 0.5,
        commitment: float = 0.25,
        warmup_steps: int | None = None,
        revive_below: float | None = None,
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
        if warmup_steps is not None and warmup_steps < 0:
            raise ValueError(f"warmup_steps must not be negative, but is {warmup_steps}")
        if revive_below is not None and not 0 < revive_below <= 1:
            raise ValueError(f"revive_below must be above 0 and at most 1, or null for none, not {revive_below}")
        self.dropout, self.commitment = dropout, commitment
        self.warmup_steps, self.revive_below = warmup_steps, revive_below

    def build(self, dim: int) -> None:
        """Create the codebooks and their projections, for latents of width ``dim``."""
        super().build(dim)
        self.codebooks = nn.ModuleList(
            FactorizedCodebook(dim, self.cardinality, self.codebook_dim) for _ in range(self.num_codebooks)
        )
        if self.warmup_steps is not None:
            self.register_buffer("started", torch.tensor(False))
        if self.revive_below is not None:  # relative to the fair share
            self.register_buffer("usage", torch.ones(self.num_codebooks, self.cardinality))

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
            if self.training and self.warmup_steps is not None and not self.started:
                if step < self.warmup_steps:
                    return Passed(self._projected(residual), {})
                self._start(residual.detach())
            total = torch.zeros_like(residual)
            dropout = self.dropout if self.training else 0.0
            keep = codebooks_in_use(self.num_codebooks, dropout, len(encoded), encoded.device)
            pull, commitment = residual.new_zeros(()), residual.new_zeros(())
            for k, (codebook, used) in enumerate(zip(self.codebooks, keep.unbind(1), strict=True)):
                revives = self.training and self.revive_below is not None and codebook.entries.requires_grad
                if revives:
                    self._revive(k, residual.detach())
                found = codebook(residual)
                if revives:
                    self._count(k, found.codes)
                residual = residual - found.latents
                total = total + found.latents * used[:, None, None]
                pull = pull + (_distance(found.entries, found.projected.detach()) * used).mean()
                commitment = commitment + (_distance(found.projected, found.entries.detach()) * used).mean()
            return Passed(total, {"codebook": pull, "commitment": self.commitment * commitment})

    def doubt(self, steps: int) -> str | None:
        """A warning that the entries stay random if the training ends within the warm-up."""
        if self.warmup_steps is None or steps > self.warmup_steps:
            return None
        return (
            f"the codebooks stay random, as they start only after bottleneck.warmup_steps ({self.warmup_steps:,}): "
            f"raise fit.steps ({steps:,}), or lower bottleneck.warmup_steps"
        )

    def _projected(self, residual: Tensor) -> Tensor:
        """What the projections of all codebooks keep of latents ``[B, D, S]``."""
        total = torch.zeros_like(residual)
        for codebook in self.codebooks:
            kept = codebook.output(codebook.input(residual))  # type: ignore[operator]
            residual, total = residual - kept, total + kept
        return total

    @torch.no_grad()
    def _start(self, residual: Tensor) -> None:
        """Take the first entries of each codebook from what it gets of the frames of all processes."""
        for codebook in self.codebooks:
            frames = of_all(codebook.input(residual).mT.flatten(0, 1))  # type: ignore[operator]
            codebook.center(frames.mean(0), frames.std(0).clamp(min=1e-5))  # type: ignore[operator]
            codebook.entries.copy_(self._drawn(codebook, residual))  # type: ignore[operator]
            residual = residual - codebook(residual).latents
        self.started.fill_(True)

    @torch.no_grad()
    def _revive(self, k: int, residual: Tensor) -> None:
        """Replace the entries of a codebook that are hardly used. All processes replace the same."""
        unused = self.usage[k] < (self.revive_below or 0.0)
        if unused.any():
            codebook = self.codebooks[k]
            entries: Tensor = codebook.entries  # type: ignore[assignment]
            entries.copy_(torch.where(unused[:, None], self._drawn(codebook, residual), entries))
            self.usage[k, unused] = 1.0

    @torch.no_grad()
    def _count(self, k: int, codes: Tensor) -> None:
        """Follow how often the entries of a codebook are used, by the frames of all processes."""
        every = of_all(codes.flatten())
        counts = torch.bincount(every, minlength=self.cardinality) * (self.cardinality / len(every))
        self.usage[k].lerp_(counts.to(self.usage.dtype), 1 - USAGE_DECAY)

    def _drawn(self, codebook: nn.Module, residual: Tensor) -> Tensor:
        """Random frames of all processes, with noise, as entries ``[cardinality, codebook_dim]`` of a codebook."""
        frames = of_all(codebook.input(residual).mT.flatten(0, 1))  # type: ignore[operator]
        with drawing_together(frames.device):
            chosen = torch.randint(len(frames), (self.cardinality,), device=frames.device)
            apart = NOISE * frames.std(0) * torch.randn(self.cardinality, self.codebook_dim, device=frames.device)
        return frames[chosen] + apart

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

    @torch.no_grad()
    def center(self, mean: Tensor, deviation: Tensor) -> None:
        """Shift and scale the space of the entries, so that inputs get mean 0 and deviation 1 in it.

        What passes through both projections stays the same.

        Args:
            mean: Mean of the projected inputs, ``[codebook_dim]``.
            deviation: Their standard deviation, ``[codebook_dim]``.
        """
        self.input.bias.copy_((self.input.bias - mean) / deviation)
        self.input.weight = self.input.weight / deviation[:, None, None]
        self.output.bias.add_(self.output.weight[..., 0] @ mean)
        self.output.weight = self.output.weight * deviation[:, None]

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
