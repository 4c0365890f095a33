"""Frames of a chain's last stage, handed out while they are generated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ..core.contracts import Generated, RepresentationSpec
from ..core.reference import unstacked
from ..generators.base import Delivery


@dataclass(frozen=True)
class NewFrames:
    """New frames of a batch.

    Args:
        values: By source, codes ``[B, K, n]`` or latents ``[B, D, n]`` of the new frames.
        start: Index of the first new frame.
        lengths: ``[B]`` int64, the number of frames of each sample. For samples that may go on, it is the total number
            of frames.
    """

    values: dict[str, Tensor]
    start: int
    lengths: Tensor


class Receiver(Protocol):
    """What receives frames while a chain generates them."""

    def start(self, generated: Mapping[str, Generated]) -> None:
        """Receive what the earlier stages generated, by source, before the last stage starts."""

    def push(self, frames: NewFrames) -> None:
        """Receive new frames of the last stage."""


class FrameSender:
    """Hands out the new frames of a stage that generates window by window.

    Args:
        receiver: What receives new frames.
        specs: Spec of each target of the stage, by source.
        earlier: What earlier stages generated, by source: the first codebooks of a source that this stage completes.
        batch: Number of samples.
        total: Total number of frames.
    """

    def __init__(
        self,
        receiver: Receiver,
        specs: Mapping[str, RepresentationSpec],
        earlier: Mapping[str, Generated],
        batch: int,
        total: int,
    ) -> None:
        self.receiver, self.specs, self.total = receiver, dict(specs), total
        self.earlier = {source: earlier[source] for source in specs if source in earlier}
        self.lengths = torch.full((batch,), total)
        for generated in self.earlier.values():
            self.lengths = torch.minimum(self.lengths, generated.lengths.cpu())
        self.sent = 0

    def delivery(self, start: int, every: int) -> Delivery:
        """Return the delivery of a window that starts at frame ``start``, with ``every`` new frames at a time."""
        return Delivery(lambda window: self.send(start, window), every)

    def send(self, start: int, window: Generated) -> None:
        """Hand out what is new in a window, which starts at frame ``start`` and may not be complete yet."""
        frames, lengths = window.values.shape[-1], window.lengths.cpu()
        self.lengths = torch.where(lengths < frames, torch.minimum(self.lengths, start + lengths), self.lengths)
        stop = start + frames
        if stop <= self.sent:
            return
        values = {}
        new = window.values[..., self.sent - start :]
        for source, part in zip(self.specs, unstacked(new, list(self.specs.values())), strict=True):
            before = self.earlier.get(source)
            values[source] = part if before is None else torch.cat([before.values[..., self.sent : stop], part], 1)
        self.receiver.push(NewFrames(values, self.sent, self.lengths))
        self.sent = stop
