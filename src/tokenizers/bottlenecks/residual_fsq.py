"""Residual finite scalar quantization: each codebook divides the levels of the one before."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ...core.registry import register
from .base import Bottleneck, Passed
from .dropout import codebooks_in_use
from .fsq import check_levels


class Stage(NamedTuple):
    """What one codebook quantizes.

    Args:
        residual: The part of the values that the codebooks before left, ``[B, S, channels]``.
        values: The nearest values of this codebook, of the same shape.
        scale: Largest value of the codebook in each channel, ``[channels]``.
    """

    residual: Tensor
    values: Tensor
    scale: Tensor


@register("bottleneck", "residual-fsq")
class ResidualFSQ(Bottleneck):
    """Residual finite scalar quantization (FSQ, arXiv 2309.15505, with the residuals of 2107.03312 §III-C).

    A linear layer reduces latents to one channel per number of levels, and another one goes back, unless the latents
    have as many channels. A soft clamp bounds each channel. The first codebook rounds it to ``L`` equidistant levels
    from -1 to 1, and each further one divides the distance between the levels by ``L``. Codebooks have no weights and
    need no losses. Everything is computed in single precision even under autocast.

    The levels are those of ResidualFSQ of vector-quantize-pytorch. In contrast to it, the gradient passes once,
    whatever the number of codebooks, and dropout is drawn for each example.

    Args:
        levels: Number of levels of each channel, from 2 to 1000. Their product is the number of entries per codebook.
            More channels with fewer levels represent more of the latents.
        num_codebooks: Codes per frame. ``max(levels) ** num_codebooks`` must be at most 2^24, as single precision has
            no finer levels.
        dropout: Probability that an example is quantized with a random number of codebooks in training, so that fewer
            can be used later.
    """

    def __init__(
        self, *, levels: tuple[int, ...] = (4, 4, 4, 4, 4), num_codebooks: int = 4, dropout: float = 1.0
    ) -> None:
        super().__init__()
        check_levels(levels)
        if num_codebooks < 1:
            raise ValueError(f"num_codebooks must be at least 1, not {num_codebooks}")
        most = math.floor(24 / math.log2(max(levels)) + 1e-9)
        if num_codebooks > most:
            raise ValueError(
                f"num_codebooks must be at most {most} with {max(levels)} levels, not {num_codebooks}: "
                "single precision has no finer levels"
            )
        if not 0 <= dropout <= 1:
            raise ValueError(f"dropout must be between 0 and 1, not {dropout}")
        self.levels, self.num_codebooks, self.dropout = list(levels), num_codebooks, dropout

    def build(self, dim: int) -> None:
        """Create the projections, for latents of width ``dim``."""
        super().build(dim)
        from vector_quantize_pytorch import FSQ

        # It has no state: all codebooks share it.
        self.rounding = FSQ(self.levels, return_indices=False, preserve_symmetry=True, bound_hard_clamp=True)
        channels = len(self.levels)
        self.project_in = nn.Identity() if channels == dim else nn.Linear(dim, channels)
        self.project_out = nn.Identity() if channels == dim else nn.Linear(channels, dim)

    @property
    def cardinalities(self) -> tuple[int, ...]:
        """All codebooks have a code for each combination of levels."""
        return (math.prod(self.levels),) * self.num_codebooks

    def forward(self, encoded: Tensor, step: Tensor) -> Passed:
        """The quantized latents. The gradient passes the rounding unchanged."""
        with torch.autocast(encoded.device.type, enabled=False):
            frames = self._channels(encoded)
            dropout = self.dropout if self.training else 0.0
            keep = codebooks_in_use(self.num_codebooks, dropout, len(frames), frames.device)
            stages = list(self._stages(frames, self.num_codebooks))
            used = zip(stages, keep.unbind(1), strict=True)
            total = torch.stack([stage.values * stage.scale * uses[:, None, None] for stage, uses in used]).sum(0)
            latents = self.project_out(total + (frames - frames.detach())).mT
            return Passed(latents, self._losses(stages, keep) if self.training else {})

    def encode(self, encoded: Tensor, num_codebooks: int | None = None) -> Tensor:
        """Latents ``[B, D, S]`` to codes ``[B, num_codebooks, S]``; ``None`` uses all codebooks."""
        with torch.autocast(encoded.device.type, enabled=False):
            stages = self._stages(self._channels(encoded), num_codebooks or self.num_codebooks)
            return torch.stack([self.rounding.codes_to_indices(stage.values) for stage in stages], 1).long()

    def decode(self, representation: Tensor) -> Tensor:
        """Codes ``[B, K, S]``, of all codebooks or the first few, to latents ``[B, D, S]``."""
        with torch.autocast(representation.device.type, enabled=False):
            codes = enumerate(representation.unbind(1))
            values = [self.rounding.indices_to_codes(book) * self._scale(k, book.device) for k, book in codes]
            return self.project_out(torch.stack(values).sum(0)).mT

    def latents(self, encoded: Tensor) -> Tensor:
        """The decoder's input ``[B, D, S]`` if nothing was rounded."""
        with torch.autocast(encoded.device.type, enabled=False):
            return self.project_out(self._channels(encoded)).mT

    def _channels(self, encoded: Tensor) -> Tensor:
        """The channels to quantize, ``[B, S, channels]``, bounded so that the levels cover them evenly."""
        values = self.project_in(encoded.float().mT)
        bound = 1 + 1 / (torch.tensor(self.levels, device=values.device) - 1)
        return (values / bound).tanh() * bound

    def _scale(self, codebook: int, device: torch.device) -> Tensor:
        return torch.tensor(self.levels, dtype=torch.float32, device=device) ** -codebook

    def _stages(self, values: Tensor, num_codebooks: int) -> Iterator[Stage]:
        """Quantize the values ``[B, S, channels]`` by one codebook after the other."""
        residual = values
        for k in range(num_codebooks):
            scale = self._scale(k, values.device)
            nearest = self.rounding.quantize((residual / scale).detach())
            yield Stage(residual, nearest, scale)
            residual = residual - nearest * scale

    def _losses(self, stages: list[Stage], keep: Tensor) -> dict[str, Tensor]:
        """The losses of training, of all codebooks with ``keep`` ``[B, K]``, those that each example uses."""
        return {}
