"""The contract of audio towers, which embed spectra."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

from torch import Tensor

from ...core.component import Component


class AudioTower(Component):
    """A network that embeds log-mel spectra of one length.

    Subclasses implement :meth:`build` and :meth:`forward`.

    Attributes:
        blocks: Equal blocks of an embedding that a transposition by a semitone turns by one, 12 if a tower keeps the key
            in this way. Embeddings of music in other keys are then compared in the best key.
    """

    family: ClassVar[str] = "audio_tower"
    blocks: int = 1

    def build(self, frames: int, bands: int, dim: int) -> None:
        """Create the weights, once. Subclasses call this first.

        Args:
            frames: Frames of a spectrum.
            bands: Mel bands of a spectrum.
            dim: Width of an embedding.
        """
        self.claim()

    @abstractmethod
    def forward(self, spectrum: Tensor) -> Tensor:
        """Embed spectra ``[N, frames, bands]``, about standardized, as ``[N, dim]`` of any length."""
