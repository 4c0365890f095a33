"""A diffusion transformer, which processes a whole sequence at a noise level."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from .attention import CrossAttention, Mask, SelfAttention, key_mask, self_mask
from .norms import make_norm
from .positions import rotary, sinusoidal
from .transformer_blocks import DEFAULT_BLOCK, BlockConfig, FeedForward, check_sizes, scaled_normal_

LEVEL_FEATURES = 256
"""Width of the sinusoidal features of a noise level."""


class LevelEmbedding(nn.Module):
    """A noise level in [0, 1] as a vector: sinusoidal features of 1000 levels, as of the time steps of diffusion.

    Features and initial weights are DiT's (arXiv 2212.09748).

    Args:
        width: Width of the vector.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.expand = nn.Linear(LEVEL_FEATURES, width)
        self.contract = nn.Linear(width, width)
        _small_normal_(self.expand)
        _small_normal_(self.contract)

    def forward(self, level: Tensor) -> Tensor:
        """Levels ``[B]`` to ``[B, width]``."""
        features = sinusoidal(level * 1000, LEVEL_FEATURES, inclusive=False).to(self.expand.weight.dtype)
        return self.contract(F.silu(self.expand(features)))


class DiffusionBlock(nn.Module):
    """Self-attention, optional cross-attention and feed-forward layers, each with a residual connection.

    Scale, shift and gate of self-attention and feed-forward are shared by all blocks, plus a table of each block with
    initial deviation ``1 / sqrt(width)``. Cross-attention has no gate; its output projection starts at zero
    (adaLN-single, PixArt-α, arXiv 2310.00426 §2.3, and its published code).
    """

    def __init__(self, width: int, num_heads: int, config: BlockConfig, *, cross: bool) -> None:
        super().__init__()
        self.dropout = config.dropout
        self.table = nn.Parameter(torch.randn(6, width) / math.sqrt(width))
        self.self_norm = make_norm(config.norm, width, affine=False)
        self.self_attention = SelfAttention(width, num_heads, qk_norm=config.qk_norm, dropout=config.attention_dropout)
        if cross:
            self.cross_norm = make_norm(config.norm, width)
            self.cross_attention = CrossAttention(
                width, num_heads, qk_norm=config.qk_norm, dropout=config.attention_dropout
            )
        self.feed_forward_norm = make_norm(config.norm, width, affine=False)
        self.feed_forward = FeedForward(width, round(width * config.feed_forward), config.activation)

    def forward(
        self,
        x: Tensor,
        modulation: Tensor,
        over_self: Mask,
        rotations: Tensor,
        cross: Tensor | None,
        over_cross: Mask,
        keys_values: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """``x`` ``[B, S, width]``, ``modulation`` ``[B, 6, width]``, ``cross`` ``[B, L, width]`` or keys and values."""
        tables = (modulation + self.table)[:, :, None].unbind(1)
        shift, scale, gate, feed_shift, feed_scale, feed_gate = tables
        seen = modulate(self.self_norm(x), shift, scale)
        x = x + gate * self._drop(self.self_attention(seen, over_self, rotations))
        if keys_values is None and cross is not None:
            keys_values = self.cross_attention.keys_values(cross)
        if keys_values is not None:
            x = x + self._drop(self.cross_attention(self.cross_norm(x), keys_values, over_cross))
        seen = modulate(self.feed_forward_norm(x), feed_shift, feed_scale)
        return x + feed_gate * self._drop(self.feed_forward(seen))

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training) if self.dropout else x


class Prepared(NamedTuple):
    """What all steps of a generation share.

    Attributes:
        over_self: Mask of self-attention.
        over_cross: Mask of cross-attention.
        rotations: Rotary positions, ``[S, head width / 2]`` complex64.
        keys_values: Keys and values of cross-attention, of each block; empty if each step computes them.
    """

    over_self: Mask
    over_cross: Mask
    rotations: Tensor
    keys_values: tuple[tuple[Tensor, Tensor], ...] = ()


class DiffusionTransformer(nn.Module):
    """A transformer over a noisy sequence, conditioned on the noise level, with rotary positions and no mask.

    The noise level enters as in PixArt-α (arXiv 2310.00426), and the last layer is that of DiT (arXiv 2212.09748). Both
    are initialized as there: the output starts at zero. The differences are rotary positions, a norm before
    cross-attention, and linear layers of the blocks without biases and with an initial deviation of ``1 /
    sqrt(inputs)``.

    Args:
        width: Width of the sequence.
        output: Number of channels that it predicts.
        depth: Number of blocks.
        num_heads: Heads of every attention; twice their number must divide the width.
        block: Configuration of the blocks.
        cross: Whether there is cross-attention to another sequence.
        checkpointing: Whether to recompute each block in the backward pass, which saves memory.

    Raises:
        ValueError: The width is not divisible by the heads, or a number is out of range.
    """

    def __init__(
        self,
        width: int,
        output: int,
        depth: int,
        num_heads: int,
        *,
        block: BlockConfig = DEFAULT_BLOCK,
        cross: bool = False,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        check_sizes(width, depth, num_heads)
        self.head_width = width // num_heads
        self.dropout = block.dropout
        self.checkpointing = checkpointing
        self.level = LevelEmbedding(width)
        self.modulation = nn.Linear(width, 6 * width)
        self.blocks: Sequence[DiffusionBlock] = nn.ModuleList(  # type: ignore[assignment]
            DiffusionBlock(width, num_heads, block, cross=cross) for _ in range(depth)
        )
        self.norm = make_norm(block.norm, width, affine=False)
        self.last_modulation = nn.Linear(width, 2 * width)
        self.output = nn.Linear(width, output)
        for made in self.blocks:
            for layer in made.modules():
                if isinstance(layer, nn.Linear):
                    scaled_normal_(layer.weight, layer.in_features)
            if cross:
                nn.init.zeros_(made.cross_attention.output.weight)
        _small_normal_(self.modulation)
        for layer in (self.last_modulation, self.output):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def prepare(
        self, places: int, mask: Tensor | None = None, cross: Tensor | None = None, cross_mask: Tensor | None = None
    ) -> Prepared:
        """Compute what all steps of a generation share.

        Args:
            places: Length ``S`` of the sequence.
            mask: ``[B, S]`` bool, false on padding; ``None`` means no padding.
            cross: ``[B, L, width]``, the sequence for cross-attention.
            cross_mask: ``[B, L]`` bool, false on padding; ``None`` means no padding.
        """
        shared = self._shared(places, mask, cross_mask)
        if cross is None:
            return shared
        return shared._replace(keys_values=tuple(b.cross_attention.keys_values(cross) for b in self.blocks))

    def _shared(self, places: int, mask: Tensor | None, cross_mask: Tensor | None) -> Prepared:
        weight = self.output.weight
        rotations = rotary(torch.arange(places, device=weight.device), self.head_width)
        over_self = self_mask(places, places, mask, False, weight.device)
        return Prepared(over_self, key_mask(cross_mask), rotations)

    def forward(
        self,
        x: Tensor,
        level: Tensor,
        *,
        mask: Tensor | None = None,
        cross: Tensor | None = None,
        cross_mask: Tensor | None = None,
        pooled: Tensor | None = None,
        prepared: Prepared | None = None,
    ) -> Tensor:
        """The prediction ``[B, S, output]``.

        Args:
            x: Noisy sequence ``[B, S, width]``.
            level: Noise levels ``[B]`` in [0, 1].
            mask: ``[B, S]`` bool, false on padding; ``None`` means no padding.
            cross: ``[B, L, width]``, the sequence for cross-attention.
            cross_mask: ``[B, L]`` bool, false on padding; ``None`` means no padding.
            pooled: ``[B, width]``, added to the embedding of the noise level.
            prepared: Result of :meth:`prepare` for the same masks and cross-attention sequence; ``None`` computes it.
        """
        # the residual keeps the precision of the weights, even if autocast uses a lower one
        dtype = self.output.weight.dtype
        x = x.to(dtype)
        shared = self._shared(x.shape[1], mask, cross_mask) if prepared is None else prepared
        embedding = self.level(level)
        embedding = F.silu(embedding if pooled is None else embedding + pooled)
        modulation = self.modulation(embedding).unflatten(1, (6, -1))
        if self.dropout:
            x = F.dropout(x, self.dropout, self.training)
        for index, block in enumerate(self.blocks):
            keys_values = shared.keys_values[index] if shared.keys_values else None
            inputs = (x, modulation, shared.over_self, shared.rotations, cross, shared.over_cross, keys_values)
            if self.checkpointing and self.training and torch.is_grad_enabled():
                x = checkpoint(block, *inputs, use_reentrant=False)
            else:
                x = block(*inputs)
        shift, scale = self.last_modulation(embedding).unflatten(1, (2, 1, -1)).unbind(1)
        return self.output(modulate(self.norm(x), shift, scale))


def _small_normal_(layer: nn.Linear) -> None:
    nn.init.normal_(layer.weight, std=0.02)
    nn.init.zeros_(layer.bias)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """``x`` ``[B, S, width]``, scaled and shifted by ``[B, 1, width]`` each; a scale of zero is the identity."""
    return x * (1 + scale) + shift
