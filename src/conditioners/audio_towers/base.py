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
        key_blocks: Number of equal blocks of an embedding. A tower that keeps the key has 12: a transposition by a
            semitone turns them by one, and embeddings are compared in the best key.
        per_octave: Bands per octave of the spectra that the tower needs. ``None`` reads any spectra.
    """

    family: ClassVar[str] = "audio_tower"
    key_blocks: int = 1
    per_octave: int | None = None

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
