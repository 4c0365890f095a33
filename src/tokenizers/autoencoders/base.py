"""The contract of autoencoders, which turn audio into frames of latents and back."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from ...core.component import Component
from ...layers.chunks import Step


class Autoencoder(Component):
    """The encoder and the decoder of a codec.

    Subclasses implement :meth:`build`, which creates :attr:`encoder` and :attr:`decoder` and sets :attr:`hop`. Both
    preserve lengths exactly: ``S`` frames are ``S · hop`` samples. The codec pads shorter audio to complete its last
    frame.

    Attributes:
        hop: Samples per frame, set by :meth:`build`.
        causal: Whether neither latents nor audio depend on anything later than their own frame.
        encoder: Module from audio ``[B, C, S · hop]`` to frames ``[B, encoded_dim, S]``.
        decoder: Module from latents ``[B, D, S]`` to audio ``[B, C, S · hop]``.
    """

    family: ClassVar[str] = "autoencoder"
    causal: bool = False
    hop: int
    encoder: nn.Module
    decoder: nn.Module

    def build(self, sample_rate: int, channels: int, encoded_dim: int, dim: int) -> None:
        """Create the weights, once. Subclasses call this first.

        Args:
            sample_rate: Sample rate of the audio in Hz.
            channels: Channels of the audio, which share the frames.
            encoded_dim: Width of the encoder's output.
            dim: Width of the decoder's input.

        Raises:
            ValueError: The autoencoder cannot be built for this audio.
        """
        self.claim()

    def encode(self, audio: Tensor) -> Tensor:
        """Audio ``[B, C, S · hop]`` to frames ``[B, encoded_dim, S]``."""
        return self.encoder(audio)

    def decode(self, latents: Tensor) -> Tensor:
        """Latents ``[B, D, S]`` to audio ``[B, C, S · hop]``."""
        return self.decoder(latents)

    def encoding_steps(self) -> list[Step] | None:
        """Steps of :meth:`encode` that run chunk by chunk; ``None`` if the encoder needs the whole clip."""
        return None

    def decoding_steps(self) -> list[Step] | None:
        """Steps of :meth:`decode` that run chunk by chunk; ``None`` if the decoder needs the whole clip."""
        return None
