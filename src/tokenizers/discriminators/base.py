"""The contract of discriminators: how far audio is from a recording."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

from torch import Tensor

from ...core.component import Component
from ...layers.codec_losses import Judgment


class Discriminator(Component):
    """Adversaries of whatever makes audio: one component holds all of them. Only training needs it.

    Subclasses implement :meth:`build` and :meth:`forward`.
    """

    family: ClassVar[str] = "discriminator"

    def build(self, sample_rate: int, channels: int) -> None:
        """Make the weights, once; subclasses call this first.

        Args:
            sample_rate: Sample rate of the audio in Hz.
            channels: Channels of the audio.
        """
        self.claim()

    @abstractmethod
    def forward(self, audio: Tensor) -> list[Judgment]:
        """Audio ``[B, C, T]`` to one judgment per scale: scores of any shape, high for a recording, and features."""
