"""Standardizing latents by statistics that are collected from the data once."""

from __future__ import annotations

import torch
import torch.distributed
from torch import Tensor, nn


class Standardize(nn.Module):
    """Scales each channel to mean zero and standard deviation one.

    The statistics are those of the first ``updates`` batches that :meth:`observe` gets, over all processes, and are
    then fixed. They are part of the state, so a resumed training uses the same ones.

    Args:
        dim: Number of channels.
        updates: Number of batches to collect statistics from.
    """

    count: Tensor
    frames: Tensor
    mean: Tensor
    variance: Tensor

    def __init__(self, dim: int, updates: int = 50) -> None:
        super().__init__()
        self.updates = updates
        self._settled = False
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.register_buffer("frames", torch.zeros((), dtype=torch.int64))
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("variance", torch.ones(dim))

    def settle(self) -> None:
        """Keep the statistics as they are from now on."""
        self._settled = True

    @torch.no_grad()
    def observe(self, x: Tensor, mask: Tensor | None = None) -> None:
        """Take the statistics of ``x`` ``[B, D, S]`` into account, where ``mask`` ``[B, S]`` is true."""
        self._settled = self._settled or bool(self.count >= self.updates)  # reading it waits for the device
        if self._settled:
            return
        x = x.float() if x.device.type == "mps" else x.double()  # Apple's devices have no float64
        frames = x.mT.flatten(0, 1) if mask is None else x.mT[mask]
        # pooled by Chan's formula, which stays precise if the mean is far from zero
        sums = torch.cat([frames.new_tensor([len(frames)]), frames.sum(0)])
        _add_up(sums)
        total, mean = sums[0], sums[1:] / sums[0].clamp(min=1)
        deviations = (frames - mean).square().sum(0)
        _add_up(deviations)
        difference = mean - self.mean
        both = (self.frames + total).clamp(min=1)
        deviations = deviations + self.variance * self.frames + difference.square() * self.frames * total / both
        self.mean += difference * total / both
        self.variance.copy_(deviations / both)
        self.frames += total.long()
        self.count += 1

    @property
    def deviation(self) -> Tensor:
        """Deviations ``[D]``; at least 1e-4, so that a constant channel is not scaled up without limit."""
        return self.variance.sqrt().clamp(min=1e-4)

    def forward(self, x: Tensor) -> Tensor:
        """Standardize ``[B, D, S]``."""
        return (x - self.mean[:, None]) / self.deviation[:, None]

    def inverse(self, x: Tensor) -> Tensor:
        """Undo the standardization of ``[B, D, S]``."""
        return x * self.deviation[:, None] + self.mean[:, None]


def _add_up(values: Tensor) -> None:
    if torch.distributed.is_initialized():
        torch.distributed.all_reduce(values)
