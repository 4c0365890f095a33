"""Convolutions around the circle of pitch classes."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...core.registry import register
from .base import AudioTower

CLASSES = 12


@register("audio_tower", "pitch-classes")
class PitchClasses(AudioTower):
    """A network whose embeddings are the same, or turned, in any key, but for the edges of the spectrum.

    It reads spectra in bands of equal width in octaves, which cover whole octaves. The strongest band of each pitch
    class in each of a few registers is kept. Convolutions over time and around the circle of the
    twelve pitch classes follow. Their mean and maximum over time, and the mean of what they read, enter a layer that
    sees all pitch classes at once, relative to each. The mean and maximum over the pitch classes, at last, no longer
    depend on the key. With ``keep_key``, an embedding has a block for each pitch class instead.

    Args:
        width: Channels of the first convolution; the second one has twice as many.
        hidden: Width after the pooling over time.
        registers: Number of registers, which have equally many octaves.
        bands_per_semitone: Bands of the spectrum per semitone.
        taps: Frames that a convolution covers, an odd number.
        keep_key: Whether a transposition turns the twelve blocks of an embedding, instead of leaving it as it is.

    Raises:
        ValueError: A size is out of range.
    """

    def __init__(
        self,
        *,
        width: int = 24,
        hidden: int = 256,
        registers: int = 3,
        bands_per_semitone: int = 3,
        taps: int = 3,
        keep_key: bool = False,
    ) -> None:
        super().__init__()
        if min(hidden, registers, bands_per_semitone) < 1:
            raise ValueError("hidden, registers and bands_per_semitone must be positive")
        if width < 4 or width % 4:
            raise ValueError(f"width must be a positive multiple of 4, not {width}")
        if taps < 1 or taps % 2 == 0:
            raise ValueError(f"taps must be a positive odd number, not {taps}")
        self.width, self.hidden, self.registers = width, hidden, registers
        self.bands_per_semitone, self.taps = bands_per_semitone, taps
        self.key_blocks, self.per_octave = CLASSES if keep_key else 1, CLASSES * bands_per_semitone

    def build(self, frames: int, bands: int, dim: int) -> None:
        """Create the convolutions.

        Raises:
            ValueError: The bands are not whole octaves for each register, or the embeddings have no equal blocks.
        """
        super().build(frames, bands, dim)
        octave = CLASSES * self.bands_per_semitone
        if bands % (octave * self.registers):
            raise ValueError(
                f"{bands} bands are not whole octaves of {octave} bands in each of {self.registers} registers: take a "
                f"multiple of {octave * self.registers}"
            )
        if dim % self.key_blocks:
            raise ValueError(f"keep_key needs a dim that is a multiple of {CLASSES}, not {dim}")
        self.first = nn.Conv2d(self.registers, self.width, (self.taps, CLASSES))
        self.first_norm = nn.GroupNorm(4, self.width)
        self.second = nn.Conv2d(self.width, 2 * self.width, (self.taps, CLASSES))
        self.second_norm = nn.GroupNorm(4, 2 * self.width)
        self.around = nn.Conv1d(4 * self.width + self.registers, self.hidden, CLASSES)
        self.mix = nn.Conv1d(self.hidden, self.hidden, 1)
        self.output = nn.Linear(2 * self.hidden if self.key_blocks == 1 else self.hidden, dim // self.key_blocks)

    def forward(self, spectrum: Tensor) -> Tensor:
        """Embed spectra ``[N, frames, bands]`` as ``[N, dim]``."""
        folded = spectrum.unflatten(2, (self.registers, -1, CLASSES, self.bands_per_semitone)).amax((3, 5))
        x = folded.transpose(1, 2)  # [N, registers, frames, 12]
        x = F.gelu(self.first_norm(self._over_time(self.first, x)))
        x = F.avg_pool2d(x, (2, 1), ceil_mode=True)
        x = F.gelu(self.second_norm(self._over_time(self.second, x)))
        x = torch.cat([folded.mean(1), x.mean(2), x.amax(2)], 1)  # [N, channels, 12]
        x = F.gelu(self.mix(F.gelu(self.around(_circle(x)))))
        if self.key_blocks == 1:
            return self.output(torch.cat([x.mean(2), x.amax(2)], 1))
        return self.output(x.transpose(1, 2)).flatten(1)

    def _over_time(self, convolution: nn.Conv2d, x: Tensor) -> Tensor:
        """Convolve ``[N, channels, frames, 12]`` around the circle and over time."""
        return convolution(F.pad(_circle(x), (0, 0, self.taps // 2, self.taps // 2)))


def _circle(x: Tensor) -> Tensor:
    """Continue the last axis of 12 around the circle, so that a convolution over 12 returns as many."""
    return torch.cat([x[..., -5:], x, x[..., :6]], -1)
