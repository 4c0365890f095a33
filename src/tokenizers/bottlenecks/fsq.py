"""Finite scalar quantization, which rounds each of a few channels to a few levels (arXiv 2309.15505)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ...core.registry import register
from .base import Bottleneck, Passed

LARGEST = 2**18
"""Maximum number of codes, which are computed in single precision; it is the largest codebook of MAGVIT-v2."""


def check_levels(levels: tuple[int, ...]) -> None:
    """Check that codes of these levels can be computed exactly.

    Raises:
        ValueError: A number of levels is too small or too large, or their product is.
    """
    # With more than 1,000 levels, the bound of finite scalar quantization rounds to a level that does not exist.
    if not levels or min(levels) < 2 or max(levels) > 1000:
        raise ValueError(f"levels must be a list of numbers from 2 to 1000, not {list(levels)}")
    if math.prod(levels) > LARGEST:
        raise ValueError(
            f"levels: at most {LARGEST:,} codes are supported, not {math.prod(levels):,} ({list(levels)}); "
            "residual-fsq has more with several codebooks"
        )


@register("bottleneck", "fsq")
class FSQ(Bottleneck):
    """Finite scalar quantization: one code per frame, and no codebook that could collapse (arXiv 2309.15505).

    A linear layer reduces latents to one channel per number of levels, and another one goes back, unless the latents
    have as many channels. Each channel is bounded by a tanh and rounded; the gradient passes the rounding unchanged.
    There are no additional losses. Everything is computed in single precision even under autocast.

    The bound is that of vector-quantize-pytorch: for an even number of levels, it is shifted so that 0 stays 0, which
    the code in the paper does only approximately. The code of a frame counts the levels of the first channel fastest.

    Args:
        levels: Number of levels of each channel, from 2 to 1000. Their product is the number of codes. The paper
            recommends at least 5 each: [8, 5, 5, 5] for about 2^10 codes and [7, 5, 5, 5, 5] for 2^12. With a 2 in the
            list, all channels have symmetric levels (arXiv 2411.19842 §3.2), because the bound of the paper puts the
            border between two levels near -4, far from most values.
    """

    def __init__(self, *, levels: tuple[int, ...] = (8, 5, 5, 5)) -> None:
        super().__init__()
        check_levels(levels)
        self.levels = list(levels)

    def build(self, dim: int) -> None:
        """Create the projections, for latents of width ``dim``."""
        super().build(dim)
        import vector_quantize_pytorch as vq

        self.layers = vq.FSQ(self.levels, dim=dim, return_indices=False, preserve_symmetry=2 in self.levels)

    @property
    def cardinalities(self) -> tuple[int, ...]:
        """One codebook, with a code for each combination of levels."""
        return (math.prod(self.levels),)

    def forward(self, encoded: Tensor, step: Tensor) -> Passed:
        """The quantized latents, without losses."""
        with torch.autocast(encoded.device.type, enabled=False):
            return Passed(self.layers(encoded.float().mT)[0].mT, {})

    def encode(self, encoded: Tensor, num_codebooks: int | None = None) -> Tensor:
        """Latents ``[B, D, S]`` to codes ``[B, 1, S]``."""
        with torch.autocast(encoded.device.type, enabled=False):
            values = self.layers.quantize(self.layers.project_in(encoded.float().mT))
            return self.layers.codes_to_indices(values)[:, None].long()

    def decode(self, representation: Tensor) -> Tensor:
        """Codes ``[B, 1, S]`` to latents ``[B, D, S]``."""
        with torch.autocast(representation.device.type, enabled=False):
            return self.layers.indices_to_codes(representation[:, 0]).mT

    def latents(self, encoded: Tensor) -> Tensor:
        """The decoder's input ``[B, D, S]`` if nothing was rounded."""
        with torch.autocast(encoded.device.type, enabled=False):
            values = self.layers.project_in(encoded.float().mT)
            return self.layers.project_out(self._bounded(values)).mT

    def _bounded(self, values: Tensor) -> Tensor:
        """What the layers round, divided by the distance of the levels from 0 to 1."""
        if 2 in self.levels:
            return values.tanh()
        levels = torch.tensor(self.levels, device=values.device)
        half = (levels - 1) * 1.001 / 2
        offset = (1 - levels % 2) / 2
        return ((values + (offset / half).atanh()).tanh() * half - offset) / (levels // 2)
