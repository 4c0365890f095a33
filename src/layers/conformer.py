"""The Conformer: a transformer with a convolution in every block (arXiv 2005.08100)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from .attention import Mask, SelfAttention
from .positions import rotary
from .transformer_blocks import FeedForward, check_sizes


class ConvolutionModule(nn.Module):
    """A gated projection, a depthwise convolution over time, and a projection.

    The norm after the convolution is that of layers, as in w2v-BERT 2.0, instead of batches as published: so a sample
    does not depend on the others of its batch.

    Args:
        width: Width of the sequence.
        kernel: Taps of the convolution, an odd number.
    """

    def __init__(self, width: int, kernel: int) -> None:
        super().__init__()
        self.expand = nn.Linear(width, 2 * width, bias=False)
        self.depthwise = nn.Conv1d(width, width, kernel, padding=kernel // 2, groups=width, bias=False)
        self.norm = nn.LayerNorm(width)
        self.contract = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, N, width]`` to the same shape."""
        mixed = self.depthwise(F.glu(self.expand(x), dim=-1).mT).mT
        return self.contract(F.silu(self.norm(mixed)))


class ConformerBlock(nn.Module):
    """Half a feed-forward layer, self-attention, a convolution, and the other half, each with a residual connection.

    Args:
        width: Width of the sequence.
        num_heads: Heads of the attention.
        feed_forward: Width between the feed-forward projections, as a multiple of the width.
        kernel: Taps of the convolution, an odd number.
        dropout: Dropout of the output of every layer, in training.
    """

    def __init__(self, width: int, num_heads: int, feed_forward: float, kernel: int, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        hidden = round(width * feed_forward)
        self.first = nn.Sequential(nn.LayerNorm(width), FeedForward(width, hidden))
        self.attention_norm = nn.LayerNorm(width)
        self.attention = SelfAttention(width, num_heads)
        self.convolution = nn.Sequential(nn.LayerNorm(width), ConvolutionModule(width, kernel))
        self.second = nn.Sequential(nn.LayerNorm(width), FeedForward(width, hidden))
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        """Transform ``x`` ``[B, N, width]``, whose rotary positions are ``positions``."""
        x = x + self._drop(self.first(x)) / 2
        x = x + self._drop(self.attention(self.attention_norm(x), Mask(), positions))
        x = x + self._drop(self.convolution(x))
        return self.norm(x + self._drop(self.second(x)) / 2)

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training) if self.dropout else x


class Conformer(nn.Module):
    """Blocks that see the whole sequence, with rotary positions (arXiv 2104.09864).

    Args:
        width: Width of the sequence.
        depth: Number of blocks.
        num_heads: Heads of every attention; twice their number must divide the width.
        feed_forward: Width between the feed-forward projections, as a multiple of the width.
        kernel: Taps of the convolutions, an odd number.
        dropout: Dropout of the output of every layer, in training.
        checkpointing: Whether to recompute each block in the backward pass, which saves memory.

    Raises:
        ValueError: The width is not divisible by the heads, or a number is out of range.
    """

    def __init__(
        self,
        width: int,
        depth: int,
        num_heads: int,
        *,
        feed_forward: float = 4.0,
        kernel: int = 31,
        dropout: float = 0.0,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        check_sizes(width, depth, num_heads)
        if feed_forward <= 0:
            raise ValueError(f"feed_forward must be positive, not {feed_forward}")
        if kernel < 1 or kernel % 2 == 0:
            raise ValueError(f"kernel must be odd and positive, not {kernel}")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), not {dropout}")
        self.width, self.num_heads, self.checkpointing = width, num_heads, checkpointing
        self.blocks: Sequence[ConformerBlock] = nn.ModuleList(  # type: ignore[assignment]
            ConformerBlock(width, num_heads, feed_forward, kernel, dropout) for _ in range(depth)
        )

    def forward(self, x: Tensor, depth: int | None = None) -> Tensor:
        """The sequence ``[B, N, width]`` after the first ``depth`` blocks, or after all of them."""
        places = torch.arange(x.shape[1], device=x.device)[None, None]
        positions = rotary(places, self.width // self.num_heads)
        for block in self.blocks[:depth]:
            if self.checkpointing and self.training and torch.is_grad_enabled():
                x = checkpoint(block, x, positions, use_reentrant=False)
            else:
                x = block(x, positions)
        return x
