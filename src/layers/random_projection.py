"""Quantization by a random projection and random codes, which are never trained (BEST-RQ, arXiv 2202.01855)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class RandomProjectionQuantizer(nn.Module):
    """The nearest of random codes to a random projection of each frame, by several independent quantizers.

    Projections are initialized as by Xavier, and codes are normal. Both projections and codes have length one when they
    are compared. Frames should have mean zero and deviation one in each channel: otherwise few codes are ever nearest.

    Args:
        width: Width of a frame.
        number: Number of quantizers.
        cardinality: Codes of each quantizer.
        dim: Width of the projections and codes.
    """

    projections: Tensor
    codes: Tensor

    def __init__(self, width: int, number: int, cardinality: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("projections", torch.randn(number, width, dim) * (2 / (width + dim)) ** 0.5)
        self.register_buffer("codes", F.normalize(torch.randn(number, cardinality, dim), dim=-1))

    @torch.no_grad()
    def forward(self, frames: Tensor) -> Tensor:
        """Frames ``[B, S, width]`` to codes ``[B, number, S]`` int64, in full precision even under autocast."""
        with torch.autocast(frames.device.type, enabled=False):
            projected = F.normalize(frames.float()[:, None] @ self.projections, dim=-1)
            return (projected @ self.codes.mT).argmax(-1)
