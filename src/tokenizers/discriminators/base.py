"""The contract of discriminators: which judge how close audio is to a recording."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

from torch import Tensor

from ...core.component import Component
from ...layers.codec_losses import Judgment


class Discriminator(Component):
    """All adversaries of a part that generates audio, as one component. Only training needs it.

    Subclasses implement :meth:`build` and :meth:`forward`.
    """

    family: ClassVar[str] = "discriminator"

    def build(self, sample_rate: int, channels: int) -> None:
        """Create the weights, once. Subclasses call this first.

        Args:
            sample_rate: Sample rate of the audio in Hz.
            channels: Channels of the audio.
        """
        self.claim()

    @abstractmethod
    def forward(self, audio: Tensor) -> list[Judgment]:
        """Audio ``[B, C, T]`` to one judgment per scale: scores of any shape, high for recordings, and features."""
