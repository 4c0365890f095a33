"""Positions of a transformer: added to the input, applied to queries and keys, or only relative to each other.

They are computed from position ids rather than from places in a tensor, so that padding inside a prefix has no effect.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

PositionKind = Literal["sinusoidal", "rotary", "relative"]
"""Sinusoidal embeddings, rotary positions, or T5's bias by distance (:mod:`partita.layers.relative_positions`)."""


class Positions(NamedTuple):
    """Positions of a sequence, ready for use, with a single batch row if all samples share them.

    Attributes:
        added: ``[B or 1, N, width]`` to add to the input; ``None`` for other kinds than sinusoidal ones.
        rotary: Rotations ``[B or 1, 1, N, head width / 2]`` complex64; ``None`` for other kinds.
        relative: Position numbers ``[B or 1, N]`` int64 of these places, and those ``[B or 1, L]`` of all places up to
            the last of these; ``None`` for other kinds.
    """

    added: Tensor | None = None
    rotary: Tensor | None = None
    relative: tuple[Tensor, Tensor] | None = None

    def slice(self, start: int, stop: int) -> Positions:
        """The positions of places ``start`` to ``stop``."""
        added = None if self.added is None else self.added[:, start:stop]
        rotary = None if self.rotary is None else self.rotary[:, :, start:stop]
        ids = None if self.relative is None else self.relative[1]
        return Positions(added, rotary, None if ids is None else (ids[:, start:stop], ids[:, :stop]))


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


def rotary(ids: Tensor, width: int, max_period: float = 10_000.0) -> Tensor:
    """Rotations ``[..., N, width / 2]`` complex64 for :func:`rotate` (RoFormer, arXiv 2104.09864)."""
    frequencies = torch.exp(torch.arange(0, width, 2, device=ids.device) * (-math.log(max_period) / width))
    angles = ids[..., None].float() * frequencies
    return torch.complex(angles.cos(), angles.sin())


def rotate(x: Tensor, rotations: Tensor) -> Tensor:
    """Queries or keys ``[B, heads, N, head width]`` rotated by their positions, in at least float32.

    Each pair of neighbors is a complex number, and is multiplied by a rotation.
    """
    pairs = torch.view_as_complex(x.to(torch.promote_types(x.dtype, torch.float32)).unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * rotations).flatten(-2)
