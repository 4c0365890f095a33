"""Joining the windows that a stage generates: values, lengths of samples and side outputs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ..core.contracts import Condition, Generated


class Stream:
    """Output of one stage, joined from windows.

    Args:
        total: Total number of frames.
        names: Names of the side outputs to collect.
        known: Representation ``[B, K or D, P]`` to continue. ``None`` starts empty.

    Attributes:
        values: Frames ``[B, K or D, S]`` so far; ``None`` if there are none.
    """

    def __init__(self, total: int, names: Sequence[str], known: Tensor | None = None) -> None:
        self.total = total
        self.names = list(names)
        self.values = known
        self._outputs: dict[str, Condition] = {}
        self._lengths: Tensor | None = None

    def extend(self, start: int, window: Generated) -> None:
        """Add a window that starts at frame ``start`` and repeats the earlier frames that it overlaps."""
        self.values = window.values if self.values is None else torch.cat([self.values[..., :start], window.values], -1)
        for name in self.names:
            self._outputs[name] = _joined(self._outputs.get(name), start, window.outputs[name])
        frames = window.values.shape[-1]
        ended = torch.where(window.lengths < frames, start + window.lengths, self.total)
        self._lengths = ended if self._lengths is None else torch.minimum(self._lengths, ended)

    @property
    def finished(self) -> bool:
        """Whether every sample has ended before the total number of frames."""
        return self._lengths is not None and bool((self._lengths < self.total).all())

    def result(self) -> Generated:
        """Return all frames, padded with zeros to the total if all samples ended early."""
        assert self.values is not None
        missing = self.total - self.values.shape[-1]
        made = Generated(F.pad(self.values, (0, missing)), self._lengths)  # type: ignore[arg-type]
        for name, condition in self._outputs.items():
            values, mask = F.pad(condition.values, (0, 0, 0, missing)), F.pad(condition.mask, (0, missing))
            made.outputs[name] = Condition(values, mask & made.mask)
        return made


def _joined(before: Condition | None, start: int, new: Condition) -> Condition:
    """Join the positions before ``start`` with ``new``. Positions that no window computed are masked."""
    if before is None:
        return Condition(F.pad(new.values, (0, 0, start, 0)), F.pad(new.mask, (start, 0)))
    kept = before.crop(0, start)
    return Condition(torch.cat([kept.values, new.values], 1), torch.cat([kept.mask, new.mask], 1))
