"""Codebook patterns: the order in which a stage processes the ``K`` codes of each frame.

A pattern lays the ``K × T`` codes of a clip out over ``S`` steps, at most one code per codebook and step. Step 0 is
always empty: it is what the model sees before it predicts anything. Wherever a step holds no code of a codebook, the
sequence holds the special id, which is one past the last code.

Every pattern of the literature follows one formula with three numbers per codebook (MusicGen, arXiv 2306.05284 §2.2,
and MusicLM, arXiv 2301.11325): blocks follow each other in time; inside a block a frame takes as many steps as there
are slots, and a codebook sits in its slot, ``delay`` frames late:

    ``step = start of block + (frame + delay) · slots of block + slot``
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

PatternName = Literal["delay", "parallel", "flatten", "partial_flatten", "coarse_first", "musiclm"]


class Layout(NamedTuple):
    """A pattern laid out for a number of frames.

    Attributes:
        steps: ``[K, T]`` int64, the step of each code, at least 1.
        frames: ``[K, S]`` int64, the frame whose code is at each step; 0 without a code.
        valid: ``[K, S]`` bool, whether there is a code.
        newest: ``[S]`` int64, the newest frame that a step holds; 0 for empty steps.
        timely: ``[K, T]`` bool, false on codes that their delay moves past the step of the last frame.
    """

    steps: Tensor
    frames: Tensor
    valid: Tensor
    newest: Tensor
    timely: Tensor

    @property
    def length(self) -> int:
        """Number of steps ``S``, including the empty first one."""
        return self.frames.shape[1]

    def build(self, codes: Tensor, special: int, present: Tensor | None = None) -> Tensor:
        """Codes ``[B, K, T]`` to the sequence ``[B, K, S]``.

        Args:
            codes: Codes with exactly the number of frames of the layout.
            special: Id of places without a code.
            present: ``[B, T]`` bool; false on frames to leave out, as if the clip had ended.
        """
        batch = codes.shape[0]
        sequence = codes.gather(2, self.frames.expand(batch, -1, -1))
        valid = self.valid if present is None else self.valid & present[:, self.frames]
        return torch.where(valid, sequence, special)

    def revert(self, sequence: Tensor, frames: int | None = None) -> Tensor:
        """A sequence ``[B, K, S]`` back to codes ``[B, K, T]``, or only to those of the first ``frames`` frames."""
        return sequence.gather(2, self.steps[:, :frames].expand(sequence.shape[0], -1, -1))

    def predicted(self, hidden: Tensor) -> Tensor:
        """Select, from outputs ``[B, S - 1, D]`` for the next steps, those that predict each code: ``[B, K, T, D]``."""
        return hidden[:, self.steps - 1]


@dataclass(frozen=True)
class Pattern:
    """A codebook pattern.

    With two codebooks and three frames, ``a`` and ``b`` being their codes and ``.`` the special id::

        delay            . a0 a1 a2 .        flatten          . a0 .  a1 .  a2 .
                         . .  b0 b1 b2                        . .  b0 .  b1 .  b2

        parallel         . a0 a1 a2          coarse_first     . a0 a1 a2 .  .  .
                         . b0 b1 b2                           . .  .  .  b0 b1 b2

    ``partial_flatten`` predicts the first codebook of a frame alone and then all others at once; ``musiclm`` flattens
    groups of two codebooks, one group after the other. With four codebooks and two frames::

        partial_flatten  . a0 .  a1 .        musiclm          . a0 .  a1 .  .  .  .  .
                         . .  b0 .  b1                        . .  b0 .  b1 .  .  .  .
                         . .  c0 .  c1                        . .  .  .  .  c0 .  c1 .
                         . .  d0 .  d1                        . .  .  .  .  .  d0 .  d1

    Args:
        blocks: The block of each codebook, counted from 0 without gaps.
        slots: The slot of each codebook inside a frame of its block.
        delays: The delay of each codebook, in frames.
    """

    blocks: tuple[int, ...]
    slots: tuple[int, ...]
    delays: tuple[int, ...]

    def __post_init__(self) -> None:
        if not len(self.blocks) == len(self.slots) == len(self.delays) > 0:
            raise ValueError("a pattern needs one block, one slot and one delay for each codebook")
        if min(*self.blocks, *self.slots, *self.delays) < 0:
            raise ValueError(f"blocks, slots and delays count from 0: {self}")
        if set(self.blocks) != set(range(max(self.blocks) + 1)):
            raise ValueError(f"blocks must be numbered from 0 without gaps, not {self.blocks}")

    @classmethod
    def named(cls, name: PatternName, num_codebooks: int, delays: tuple[int, ...] | None = None) -> Pattern:
        """The pattern of the literature called ``name``.

        Args:
            name: ``delay``, ``parallel``, ``flatten``, ``partial_flatten``, ``coarse_first`` or ``musiclm``.
            num_codebooks: Number of codebooks ``K``.
            delays: Delay of each codebook in frames; ``None`` takes the pattern's own (0, 1, 2, … for ``delay``, no
                delay for the others).

        Raises:
            ValueError: The pattern does not exist, or the number of delays is not that of the codebooks.
        """
        none, each = (0,) * num_codebooks, tuple(range(num_codebooks))
        rest = tuple(min(k, 1) for k in each)
        shapes = {
            "delay": (none, none, each),
            "parallel": (none, none, none),
            "flatten": (none, each, none),
            "partial_flatten": (none, rest, none),
            "coarse_first": (rest, none, none),
            "musiclm": (tuple(k // 2 for k in each), tuple(k % 2 for k in each), none),
        }
        if name not in shapes:
            raise ValueError(f"no pattern is called {name!r}: choose from {', '.join(get_args(PatternName))}")
        blocks, slots, own = shapes[name]
        if delays is not None and len(delays) != num_codebooks:
            raise ValueError(f"delays has {len(delays)} values for {num_codebooks} codebooks: give one for each")
        return cls(blocks, slots, own if delays is None else tuple(delays))

    @property
    def num_codebooks(self) -> int:
        """Number of codebooks ``K``."""
        return len(self.blocks)

    def layout(self, frames: int, device: torch.device | str = "cpu") -> Layout:
        """The pattern for ``frames`` frames, at least one, as index tensors on ``device``."""
        return _layout(self, frames, torch.device(device))


# Normal tensors whatever mode the first caller uses: they are cached, and training indexes with them too.
@lru_cache(maxsize=32)
@torch.inference_mode(False)
def _layout(pattern: Pattern, frames: int, device: torch.device) -> Layout:
    if frames < 1:
        raise ValueError(f"a pattern needs at least one frame, not {frames}")
    steps = torch.empty(pattern.num_codebooks, frames, dtype=torch.long, device="cpu")
    time = torch.arange(frames, device="cpu")
    start = 1
    for block in range(max(pattern.blocks) + 1):
        members = [k for k, b in enumerate(pattern.blocks) if b == block]
        width = 1 + max(pattern.slots[k] for k in members)
        for k in members:
            steps[k] = start + (time + pattern.delays[k]) * width + pattern.slots[k]
        start = int(steps[members].max()) + 1
    at = torch.zeros(pattern.num_codebooks, start, dtype=torch.long, device="cpu").scatter_(
        1, steps, time.expand_as(steps)
    )
    valid = torch.zeros(at.shape, dtype=torch.bool, device="cpu").scatter_(1, steps, True)
    timely = steps < start - max(pattern.delays)
    return Layout(*(t.to(device) for t in (steps, at, valid, at.amax(0), timely)))
