"""ConvNeXt blocks in one dimension, the trunk of Vocos (2306.00814 §3)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ConvNeXtBlock(nn.Module):
    """A depthwise convolution over time, then a feed-forward layer, added to the input.

    Channels are the last axis (``[B, S, D]``), so that all products are plain matrix products.

    Args:
        width: Channels.
        expansion: Width of the feed-forward layer relative to the channels.
        kernel: Taps of the depthwise convolution, an odd number.
        scale: Initial value of the learned scale of each channel's contribution.
    """

    def __init__(self, width: int, *, expansion: int = 3, kernel: int = 7, scale: float = 1.0) -> None:
        super().__init__()
        self.depthwise = nn.Conv1d(width, width, kernel, padding=kernel // 2, groups=width)
        self.norm = nn.LayerNorm(width)
        self.expand = nn.Linear(width, expansion * width)
        self.activation = nn.GELU()
        self.contract = nn.Linear(expansion * width, width)
        self.scale = nn.Parameter(torch.full((width,), scale))

    def forward(self, x: Tensor) -> Tensor:
        """``[B, S, D]`` to the same shape."""
        y = self.norm(self.depthwise(x.mT).mT)
        return x + self.scale * self.contract(self.activation(self.expand(y)))


class ConvNeXt(nn.Module):
    """A stack of blocks between two normalizations.

    Args:
        width: Channels.
        depth: Number of blocks.
        expansion: Width of the feed-forward layers relative to the channels.
        kernel: Taps of the depthwise convolutions, an odd number.

    Attributes:
        reach: Number of frames on either side that a frame depends on.
    """

    def __init__(self, width: int, depth: int, *, expansion: int = 3, kernel: int = 7) -> None:
        super().__init__()
        self.first_norm = nn.LayerNorm(width)
        self.blocks = nn.Sequential(
            *(ConvNeXtBlock(width, expansion=expansion, kernel=kernel, scale=1 / depth) for _ in range(depth))
        )
        self.last_norm = nn.LayerNorm(width)
        self.reach = depth * (kernel // 2)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, S, D]`` to the same shape."""
        return self.last_norm(self.blocks(self.first_norm(x)))
