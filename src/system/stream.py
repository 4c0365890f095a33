"""What a stage has generated so far, window by window: its values, where samples ended, and its side outputs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ..core.contracts import Condition, Generated


class Stream:
    """Windows of one stage, put together.

    Args:
        total: Frames in all.
        names: Side outputs that are wanted.
        known: A representation ``[B, K or D, P]`` that it starts with; ``None`` to start from nothing.

    Attributes:
        values: ``[B, K or D, S]`` so far; ``None`` before anything is there.
    """

    def __init__(self, total: int, names: Sequence[str], known: Tensor | None = None) -> None:
        self.total = total
        self.names = list(names)
        self.values = known
        self._outputs: dict[str, Condition] = {}
        self._lengths: Tensor | None = None

    def extend(self, start: int, window: Generated) -> None:
        """Take over a window that begins at the frame ``start``, which holds what was there of it, too."""
        self.values = window.values if self.values is None else torch.cat([self.values[..., :start], window.values], -1)
        for name in self.names:
            self._outputs[name] = _joined(self._outputs.get(name), start, window.outputs[name])
        frames = window.values.shape[-1]
        ended = torch.where(window.lengths < frames, start + window.lengths, self.total)
        self._lengths = ended if self._lengths is None else torch.minimum(self._lengths, ended)

    @property
    def finished(self) -> bool:
        """Whether every sample has ended by itself."""
        return self._lengths is not None and bool((self._lengths < self.total).all())

    def result(self) -> Generated:
        """All of it, filled up to the total with what means nothing if all samples ended before."""
        assert self.values is not None
        missing = self.total - self.values.shape[-1]
        made = Generated(F.pad(self.values, (0, missing)), self._lengths)  # type: ignore[arg-type]
        for name, condition in self._outputs.items():
            values, mask = F.pad(condition.values, (0, 0, 0, missing)), F.pad(condition.mask, (0, missing))
            made.outputs[name] = Condition(values, mask & made.mask)
        return made


def _joined(before: Condition | None, start: int, new: Condition) -> Condition:
    """Positions before ``start``, then ``new``; those that no window computed hold nothing."""
    if before is None:
        return Condition(F.pad(new.values, (0, 0, start, 0)), F.pad(new.mask, (start, 0)))
    kept = before.crop(0, start)
    return Condition(torch.cat([kept.values, new.values], 1), torch.cat([kept.mask, new.mask], 1))
