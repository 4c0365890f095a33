"""Positions of a transformer: sinusoidal, added to the input, or rotary, applied to queries and keys.

Both are computed from position ids rather than from places in a tensor, so that padding inside a prefix has no effect.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

PositionKind = Literal["sinusoidal", "rotary"]


class Positions(NamedTuple):
    """Positions of a sequence, ready for use, with a single batch row if all samples share them.

    Attributes:
        added: ``[B or 1, N, width]`` to add to the input; ``None`` for rotary positions.
        rotary: Cosines and sines ``[B or 1, 1, N, head width]``; ``None`` for sinusoidal positions.
    """

    added: Tensor | None = None
    rotary: tuple[Tensor, Tensor] | None = None

    def slice(self, start: int, stop: int) -> Positions:
        """The positions of places ``start`` to ``stop``."""
        added = None if self.added is None else self.added[:, start:stop]
        rotary = None if self.rotary is None else (self.rotary[0][:, :, start:stop], self.rotary[1][:, :, start:stop])
        return Positions(added, rotary)


def position_ids(mask: Tensor) -> Tensor:
    """Position of each place of ``mask`` ``[B, N]`` among the places that are true; ``[B, N]`` int64.

    >>> position_ids(torch.tensor([[True, False, True, True]])).tolist()
    [[0, 0, 1, 2]]
    """
    return (mask.long().cumsum(1) - 1).clamp(min=0)


def sinusoidal(ids: Tensor, width: int, max_period: float = 10_000.0, *, inclusive: bool = True) -> Tensor:
    """Sinusoidal embeddings of position ids ``[..., N]``: cosines, then sines, ``[..., N, width]`` float32.

    Args:
        ids: Positions, or noise levels.
        width: Width of an embedding.
        max_period: Longest period, divided by 2π.
        inclusive: Whether the last frequency has this period: the exponent is ``i / (width / 2 - 1)``, as in MusicGen
            and tensor2tensor. Otherwise it is ``i / (width / 2)``, as in DiT and the diffusion models before it.
    """
    half = width // 2
    steps = max(1, half - 1) if inclusive else half
    frequencies = torch.exp(torch.arange(half, device=ids.device) * (-math.log(max_period) / steps))
    angles = ids[..., None].float() * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def rotary(ids: Tensor, width: int, max_period: float = 10_000.0) -> tuple[Tensor, Tensor]:
    """Cosines and sines ``[..., N, width]`` float32 for :func:`rotate` (RoFormer, arXiv 2104.09864)."""
    frequencies = torch.exp(torch.arange(0, width, 2, device=ids.device) * (-math.log(max_period) / width))
    angles = (ids[..., None].float() * frequencies).repeat_interleave(2, dim=-1)
    # The sign of `rotate`'s second term is folded into the sines: (a, b) turns to (a cos − b sin, b cos + a sin).
    sign = torch.tensor([-1.0, 1.0], device=ids.device).repeat(width // 2)
    return angles.cos(), angles.sin() * sign


def rotate(x: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
    """Queries or keys ``[B, heads, N, head width]`` rotated by their positions."""
    cos, sin = table
    swapped = x.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
    return x * cos + swapped * sin
