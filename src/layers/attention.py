"""Self- and cross-attention with masks, on PyTorch's fused kernels."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .kv_cache import LayerCache
from .positions import rotate


class Mask(NamedTuple):
    """An attention mask in the form that the kernels expect.

    Attributes:
        allowed: Bool, broadcastable to ``[B, heads, N, L]``, with at least one true key in every row, or the bias of
            each key, minus infinity where it is not allowed; ``None`` allows all.
        causal: Whether the kernel itself applies a causal mask; only without ``allowed``.
        present: ``[B, 1, 1]``, false for samples with nothing to attend to; ``None`` if there are none.
    """

    allowed: Tensor | None = None
    causal: bool = False
    present: Tensor | None = None


def self_mask(new: int, total: int, valid: Tensor | None, causal: bool, device: torch.device | str) -> Mask:
    """Mask of the last ``new`` of ``total`` places over all of them.

    A place always sees itself: the row of a padded place would otherwise be empty, and its softmax NaN.

    Args:
        new: Number of places that attend.
        total: Number of places that are attended to.
        valid: ``[B, total]`` bool, false on padding; ``None`` means no padding.
        causal: Whether a place attends only to itself and earlier places.
        device: Device of the mask.
    """
    if valid is None and (not causal or new == 1):
        return Mask()
    if valid is None and new == total:
        return Mask(causal=True)
    keys = torch.arange(total, device=device)
    queries = keys[total - new :, None]
    allowed = (keys <= queries) if causal else torch.ones(new, total, dtype=torch.bool, device=device)
    if valid is not None:
        allowed = (allowed & valid[:, None, :]) | (keys == queries)
        return Mask(allowed[:, None])
    return Mask(allowed)


def biased(mask: Mask, bias: Tensor) -> Mask:
    """A mask without :attr:`Mask.present` that also adds a bias ``[B, heads, N, L]`` to the scores of attention."""
    allowed = mask.allowed
    if mask.causal:
        allowed = torch.ones(bias.shape[-2:], dtype=torch.bool, device=bias.device).tril()
    return Mask(bias if allowed is None else bias.masked_fill(~allowed, -torch.inf))


def key_mask(mask: Tensor | None) -> Mask:
    """Mask over keys ``[B, L]`` bool. A sample whose keys are all masked attends to nothing: its output is zero."""
    if mask is None:
        return Mask()
    present = mask.any(dim=1)[:, None, None]
    return Mask((mask[:, None, :] | ~present)[:, None], present=present)


class HeadNorm(nn.RMSNorm):
    """Root-mean-square norm in the precision of its weight, even if autocast projects queries in a lower one."""

    def forward(self, x: Tensor) -> Tensor:
        """``[B, heads, N, head width]`` to the same shape."""
        return super().forward(x.to(self.weight.dtype))


FEW_KEYS = 256
"""Maximum number of keys with which training on a CPU attends in single precision."""


def _in_single_precision(queries: Tensor, keys: Tensor) -> bool:
    """Whether attention is faster in single precision than in bfloat16, which autocast chooses.

    That is so for the backward pass of PyTorch's fused kernels on a CPU with few keys: for 8 samples with 4 heads, 64
    wide, 128 queries and 9 keys take 2.2 ms instead of 10.9, 128 queries and keys 5.8 instead of 12.3, 253 take 21
    instead of 23, but 500 take 68 instead of 54.
    """
    return queries.device.type == "cpu" and queries.requires_grad and keys.shape[2] <= FEW_KEYS


class _Attention(nn.Module):
    """The common code of both kinds of attention: heads, query-key norms, the kernel and the output projection."""

    def __init__(self, width: int, num_heads: int, *, qk_norm: bool, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.query_norm = HeadNorm(width // num_heads) if qk_norm else nn.Identity()
        self.key_norm = HeadNorm(width // num_heads) if qk_norm else nn.Identity()
        self.output = nn.Linear(width, width, bias=False)

    def split(self, x: Tensor, parts: int) -> tuple[Tensor, ...]:
        """``[B, N, parts · width]`` to ``parts`` tensors ``[B, heads, N, head width]``."""
        return x.view(x.shape[0], x.shape[1], parts, self.num_heads, -1).permute(2, 0, 3, 1, 4).unbind()

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor, mask: Mask) -> Tensor:
        """The projected output of attention, ``[B, N, width]``."""
        single = _in_single_precision(queries, keys)
        dtype = torch.float32 if single else values.dtype
        allowed = mask.allowed
        if allowed is not None and allowed.is_floating_point():
            allowed = allowed.to(dtype)
        queries, keys = queries.to(dtype), keys.to(dtype)  # rotations and norms are in single precision
        dropout = self.dropout if self.training else 0.0
        attention = partial(F.scaled_dot_product_attention, attn_mask=allowed, is_causal=mask.causal, dropout_p=dropout)
        if single:
            with torch.autocast(queries.device.type, enabled=False):
                mixed = attention(queries, keys, values.float()).to(values.dtype)
        else:
            mixed = attention(queries, keys, values)
        out = self.output(mixed.transpose(1, 2).flatten(2))
        return out if mask.present is None else out * mask.present


class SelfAttention(_Attention):
    """Multi-head self-attention without biases.

    Args:
        width: Width of the sequence.
        num_heads: Number of heads, which must divide the width.
        qk_norm: Whether to normalize queries and keys per head.
        dropout: Dropout of the attention weights in training.
    """

    def __init__(self, width: int, num_heads: int, *, qk_norm: bool = False, dropout: float = 0.0) -> None:
        super().__init__(width, num_heads, qk_norm=qk_norm, dropout=dropout)
        self.query_key_value = nn.Linear(width, 3 * width, bias=False)

    def forward(self, x: Tensor, mask: Mask, rotary: Tensor | None = None, cache: LayerCache | None = None) -> Tensor:
        """``x`` ``[B, N, width]``, only the new places if there is a cache, to the same shape."""
        queries, keys, values = self.split(self.query_key_value(x), 3)
        queries, keys = self.query_norm(queries), self.key_norm(keys)
        if rotary is not None:
            queries, keys = rotate(queries, rotary), rotate(keys, rotary)
        if cache is not None:
            keys, values = cache.append(keys, values)
        return self.attend(queries, keys, values, mask)


class CrossAttention(_Attention):
    """Multi-head attention to another sequence, without biases.

    Args:
        width: Width of both sequences.
        num_heads: Number of heads, which must divide the width.
        qk_norm: Whether to normalize queries and keys per head.
        dropout: Dropout of the attention weights in training.
    """

    def __init__(self, width: int, num_heads: int, *, qk_norm: bool = False, dropout: float = 0.0) -> None:
        super().__init__(width, num_heads, qk_norm=qk_norm, dropout=dropout)
        self.query = nn.Linear(width, width, bias=False)
        self.key_value = nn.Linear(width, 2 * width, bias=False)

    def keys_values(self, source: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values ``[B, heads, L, head width]`` of ``source`` ``[B, L, width]``."""
        keys, values = self.split(self.key_value(source), 2)
        return self.key_norm(keys), values

    def forward(self, x: Tensor, keys_values: tuple[Tensor, Tensor], mask: Mask) -> Tensor:
        """``x`` ``[B, N, width]`` to the same shape; zero for samples with nothing to attend to."""
        (queries,) = self.split(self.query(x), 1)
        return self.attend(self.query_norm(queries), *keys_values, mask)
