"""The Snake activation, for layers whose signals are periodic."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Snake(nn.Module):
    """``x + sin²(αx) / α`` with a trained frequency ``α`` for each channel (2006.08195; DAC, 2306.06546 §3.1).

    >>> Snake(3)(torch.zeros(1, 3, 5)).shape
    torch.Size([1, 3, 5])

    Args:
        channels: Channels of the input.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, T]`` to the same shape."""
        return x + (self.alpha + 1e-9).reciprocal() * torch.sin(self.alpha * x).square()
