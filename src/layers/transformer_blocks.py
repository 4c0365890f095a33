"""The pre-norm transformer that autoregressive and diffusion stages share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from .attention import CrossAttention, Mask, SelfAttention, biased, key_mask, self_mask
from .kv_cache import KeyValueCache, LayerCache
from .norms import Norm, make_norm
from .positions import PositionKind, Positions, rotary, sinusoidal
from .relative_positions import RelativeBias

Activation = Literal["gelu", "swiglu"]


@dataclass(frozen=True)
class BlockConfig:
    """Configuration of the blocks of a transformer, apart from their number and width.

    Args:
        feed_forward: Width between the feed-forward projections, as a multiple of the width of the sequence.
        activation: Function between the feed-forward projections: ``gelu``, or ``swiglu``, which has a gate and
            therefore half as many weights again.
        norm: ``layer``, or ``rms`` for its root-mean-square form.
        qk_norm: Whether to normalize queries and keys per head.
        dropout: Dropout of the input and of every block's outputs, in training.
        attention_dropout: Dropout of the attention weights, in training.

    Raises:
        ValueError: A number is out of range.
    """

    feed_forward: float = 4.0
    activation: Activation = "gelu"
    norm: Norm = "layer"
    qk_norm: bool = False
    dropout: float = 0.0
    attention_dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.feed_forward <= 0:
            raise ValueError(f"feed_forward must be positive, not {self.feed_forward}")
        for name in ("dropout", "attention_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1), not {getattr(self, name)}")


DEFAULT_BLOCK = BlockConfig()


class Again(NamedTuple):
    """What is added again to the inputs of some blocks.

    Args:
        values: ``[B, N, width]``, one for each place.
        blocks: Numbers of the blocks, from 0.
    """

    values: Tensor
    blocks: frozenset[int]

    def slice(self, start: int, stop: int) -> Again:
        """What is added in the places from ``start`` up to ``stop``."""
        return Again(self.values[:, start:stop], self.blocks)


class FeedForward(nn.Module):
    """Two projections without biases and the activation between them.

    Args:
        width: Width of the sequence.
        hidden: Width between the projections.
        activation: ``gelu``, or ``swiglu`` (arXiv 2002.05202), which has a gate and half as many weights again.
    """

    def __init__(self, width: int, hidden: int, activation: Activation = "gelu") -> None:
        super().__init__()
        self.gated = activation == "swiglu"
        self.expand = nn.Linear(width, hidden * (2 if self.gated else 1), bias=False)
        self.contract = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """``[..., width]`` to the same shape."""
        hidden = self.expand(x)
        if self.gated:
            gate, hidden = hidden.chunk(2, dim=-1)
            return self.contract(F.silu(gate) * hidden)
        return self.contract(F.gelu(hidden))


class Block(nn.Module):
    """Self-attention, optional cross-attention and feed-forward layers, each with a residual connection."""

    def __init__(self, width: int, num_heads: int, config: BlockConfig, *, cross: bool) -> None:
        super().__init__()
        self.dropout = config.dropout
        self.self_norm = make_norm(config.norm, width)
        self.self_attention = SelfAttention(width, num_heads, qk_norm=config.qk_norm, dropout=config.attention_dropout)
        if cross:
            self.cross_norm = make_norm(config.norm, width)
            self.cross_attention = CrossAttention(
                width, num_heads, qk_norm=config.qk_norm, dropout=config.attention_dropout
            )
        self.feed_forward_norm = make_norm(config.norm, width)
        self.feed_forward = FeedForward(width, round(width * config.feed_forward), config.activation)

    def forward(
        self,
        x: Tensor,
        over_self: Mask,
        rotary: Tensor | None,
        cross: Tensor | None,
        over_cross: Mask,
        cache: LayerCache | None,
    ) -> Tensor:
        """Transform ``x`` ``[B, N, width]``, given ``cross`` ``[B, L, width]`` or its keys and values in the cache."""
        x = x + self._drop(self.self_attention(self.self_norm(x), over_self, rotary, cache))
        keys_values = cache.cross if cache is not None else None
        if keys_values is None and cross is not None:
            keys_values = self.cross_attention.keys_values(cross)
        if keys_values is not None:
            x = x + self._drop(self.cross_attention(self.cross_norm(x), keys_values, over_cross))
        return x + self._drop(self.feed_forward(self.feed_forward_norm(x)))

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training) if self.dropout else x


class Transformer(nn.Module):
    """A pre-norm transformer without biases; the defaults are MusicGen's (arXiv 2306.05284, audiocraft ``lm.py``).

    Args:
        width: Width of the sequence.
        depth: Number of blocks.
        num_heads: Heads of every attention; twice their number must divide the width.
        block: Configuration of the blocks.
        positions: ``sinusoidal``, ``rotary`` or ``relative``.
        cross: Whether there is cross-attention to another sequence.
        causal: Whether a place attends only to itself and earlier places.
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
        block: BlockConfig = DEFAULT_BLOCK,
        positions: PositionKind = "sinusoidal",
        cross: bool = False,
        causal: bool = True,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        check_sizes(width, depth, num_heads)
        self.width, self.num_heads = width, num_heads
        self.position_kind = positions
        self.dropout = block.dropout
        self.causal = causal
        self.checkpointing = checkpointing
        self.blocks: Sequence[Block] = nn.ModuleList(  # type: ignore[assignment]
            Block(width, num_heads, block, cross=cross) for _ in range(depth)
        )
        self.norm = make_norm(block.norm, width)
        for index, made in enumerate(self.blocks):
            for layer in made.modules():
                if isinstance(layer, nn.Linear):
                    scaled_normal_(layer.weight, layer.in_features * 2 * (index + 1))
        if positions == "relative":
            self.relative = RelativeBias(num_heads, causal=causal)
            nn.init.normal_(self.relative.biases.weight, std=0.02)

    def positions(self, ids: Tensor) -> Positions:
        """Positions for ids ``[B or 1, N]``, in the dtype of the weights."""
        if self.position_kind == "relative":
            numbers = (ids + 0.5).floor().long()  # halves are always rounded up, so that shifts keep distances
            return Positions(relative=(numbers, numbers))
        dtype = self.blocks[0].self_attention.output.weight.dtype
        if self.position_kind == "sinusoidal":
            return Positions(added=sinusoidal(ids, self.width).to(dtype))
        return Positions(rotary=rotary(ids[:, None], self.width // self.num_heads))

    def new_cache(
        self,
        capacity: int,
        *,
        mask: Tensor | None = None,
        cross: Tensor | None = None,
        cross_mask: Tensor | None = None,
    ) -> KeyValueCache:
        """An empty cache for one generation.

        Args:
            capacity: Maximum length of the sequence, including a prefix.
            mask: ``[B, capacity]`` bool, false on padding of a prefix; ``None`` means no padding.
            cross: ``[B, L, width]``, the sequence for cross-attention.
            cross_mask: ``[B, L]`` bool, false on padding; ``None`` means no padding.
        """
        keys_values = [None if cross is None else b.cross_attention.keys_values(cross) for b in self.blocks]
        layers = [LayerCache(capacity, kv) for kv in keys_values]
        # Without padding the kernels need no mask at all; this check costs one synchronization per generation.
        mask, cross_mask = (None if m is None or bool(m.all()) else m for m in (mask, cross_mask))
        return KeyValueCache(layers, mask, cross_mask)

    def forward(
        self,
        x: Tensor,
        positions: Positions,
        *,
        mask: Tensor | None = None,
        cross: Tensor | None = None,
        cross_mask: Tensor | None = None,
        cache: KeyValueCache | None = None,
        again: Again | None = None,
    ) -> Tensor:
        """The sequence after the last normalization, ``[B, N, width]``.

        Args:
            x: Input ``[B, N, width]``; with a cache, only the places after those in the cache.
            positions: Positions of the places of ``x``.
            mask: ``[B, N]`` bool, false on padding; unused with a cache, which has its own.
            cross: ``[B, L, width]``, the sequence for cross-attention; unused with a cache.
            cross_mask: ``[B, L]`` bool, false on padding; unused with a cache.
            cache: A cache from :meth:`new_cache`, to which the places of ``x`` are added.
            again: What is added again in the places of ``x``; ``None`` if nothing is.
        """
        new = total = x.shape[1]
        if cache is not None:
            total += cache.length
            mask = None if cache.mask is None else cache.mask[:, :total]
            cross_mask = cache.cross_mask
        over_self = self_mask(new, total, mask, self.causal, x.device)
        over_cross = key_mask(cross_mask)
        if positions.relative is not None:
            over_self = biased(over_self, self.relative(*positions.relative))
        if positions.added is not None:
            x = x + positions.added
        if self.dropout:
            x = F.dropout(x, self.dropout, self.training)
        for index, block in enumerate(self.blocks):
            layer = None if cache is None else cache.layers[index]
            if again is not None and index in again.blocks:
                x = x + again.values.to(x.dtype)
            inputs = (x, over_self, positions.rotary, cross, over_cross, layer)
            if self.checkpointing and self.training and torch.is_grad_enabled():
                x = checkpoint(block, *inputs, use_reentrant=False)
            else:
                x = block(*inputs)
        return self.norm(x)


def check_sizes(width: int, depth: int, num_heads: int) -> None:
    """Check that a transformer can have these sizes.

    Raises:
        ValueError: A size is not positive, or the width is not divisible by twice the heads.
    """
    if min(width, depth, num_heads) < 1:
        raise ValueError("width, depth and heads must be positive")
    if width % (2 * num_heads):
        raise ValueError(f"width {width} must be a multiple of twice the heads, {2 * num_heads}")


def scaled_normal_(weight: Tensor, fan: float) -> None:
    """Truncated normal of standard deviation ``1 / sqrt(fan)``, truncated at three deviations, in place."""
    std = 1 / math.sqrt(fan)
    nn.init.trunc_normal_(weight, std=std, a=-3 * std, b=3 * std)
