"""An encoder and a decoder on the short-time spectrum: all their layers run at the frame rate."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...core.rates import exact
from ...core.registry import register
from ...layers.chunks import Local, Step
from ...layers.convnext import ConvNeXt
from ...layers.stft import STFT
from .base import Autoencoder


@register("autoencoder", "stft-convnext")
class STFTConvNeXt(Autoencoder):
    """ConvNeXt blocks on the short-time spectrum, many times cheaper than the waveform (after Vocos, 2306.00814).

    The spectrum enters as log magnitudes and compressed real and imaginary parts, ConvNeXt blocks lead to the latents
    and back, and the decoder predicts magnitudes and phases that an inverse transform turns into audio. All layers run
    at the frame rate.

    Args:
        frame_rate: Frames per second; a frame must hold a whole number of samples.
        overlap: Length of the transform's window in frames.
        encoder_width: Channels of the encoder.
        encoder_depth: Blocks of the encoder.
        decoder_width: Channels of the decoder.
        decoder_depth: Blocks of the decoder.
        expansion: Width of the feed-forward layers relative to the channels.
    """

    encoder: SpectralEncoder
    decoder: SpectralDecoder

    def __init__(
        self,
        *,
        frame_rate: float = 50.0,
        overlap: int = 4,
        encoder_width: int = 256,
        encoder_depth: int = 4,
        decoder_width: int = 512,
        decoder_depth: int = 8,
        expansion: int = 3,
    ) -> None:
        super().__init__()
        self.frame_rate, self.overlap, self.expansion = frame_rate, overlap, expansion
        self.encoder_size, self.decoder_size = (encoder_width, encoder_depth), (decoder_width, decoder_depth)

    def build(self, sample_rate: int, channels: int, encoded_dim: int, dim: int) -> None:
        """Create the networks around one transform.

        Raises:
            ValueError: A frame would not hold a whole number of samples.
        """
        super().build(sample_rate, channels, encoded_dim, dim)
        rate = self.frame_rate
        if rate <= 0 or (exact(sample_rate) / exact(rate)).denominator > 1:
            raise ValueError(f"a frame must hold a whole number of samples: {rate} does not divide {sample_rate}")
        self.hop = int(exact(sample_rate) / exact(rate))
        stft = STFT(self.hop, self.overlap)
        self.encoder = SpectralEncoder(stft, channels, *self.encoder_size, self.expansion, encoded_dim)
        self.decoder = SpectralDecoder(stft, channels, *self.decoder_size, self.expansion, dim)

    def encoding_steps(self) -> list[Step]:
        """The encoder, with the hops that the transform and the blocks cover."""
        return [Local(self.encoder, *self.encoder.reach, inputs=self.hop)]

    def decoding_steps(self) -> list[Step]:
        """The decoder, with the frames that the blocks and the inverse transform cover."""
        return [Local(self.decoder, *self.decoder.reach, outputs=self.hop)]


class SpectralEncoder(nn.Module):
    """Audio ``[B, C, S · hop]`` to latents ``[B, D, S]``.

    Args:
        stft: The transform.
        channels: Channels of the audio.
        width: Channels of the blocks.
        depth: Number of blocks.
        expansion: Width of the feed-forward layers relative to the channels.
        dim: Width of the latents.
    """

    def __init__(self, stft: STFT, channels: int, width: int, depth: int, expansion: int, dim: int) -> None:
        super().__init__()
        self.stft = stft
        self.embed = nn.Linear(3 * channels * stft.bins, width)
        self.trunk = ConvNeXt(width, depth, expansion=expansion)
        self.project = nn.Linear(width, dim)

    @property
    def reach(self) -> tuple[int, int]:
        """Number of earlier and later hops that a frame depends on."""
        before, after = self.stft.reach
        return before + self.trunk.reach, after + self.trunk.reach

    def forward(self, audio: Tensor) -> Tensor:
        """Audio ``[B, C, S · hop]`` to latents ``[B, D, S]``."""
        spectrum = self.stft(audio)
        magnitude = spectrum.abs().clamp(min=1e-4)
        # scale phases by their audibility
        compressed = spectrum * magnitude**-0.7
        features = torch.cat([magnitude.log(), compressed.real, compressed.imag], -1)
        return self.project(self.trunk(self.embed(features.transpose(1, 2).flatten(2)))).mT


class SpectralDecoder(nn.Module):
    """Latents ``[B, D, S]`` to audio ``[B, C, S · hop]``.

    Args:
        stft: The transform.
        channels: Channels of the audio.
        width: Channels of the blocks.
        depth: Number of blocks.
        expansion: Width of the feed-forward layers relative to the channels.
        dim: Width of the latents.
    """

    def __init__(self, stft: STFT, channels: int, width: int, depth: int, expansion: int, dim: int) -> None:
        super().__init__()
        self.stft, self.channels = stft, channels
        self.embed = nn.Conv1d(dim, width, 7, padding=3)
        self.trunk = ConvNeXt(width, depth, expansion=expansion)
        self.head = nn.Linear(width, 2 * channels * stft.bins)

    @property
    def reach(self) -> tuple[int, int]:
        """Number of earlier and later frames that a hop depends on."""
        after, before = self.stft.reach
        blocks = self.trunk.reach + self.embed.kernel_size[0] // 2
        return before + blocks, after + blocks

    def forward(self, latents: Tensor) -> Tensor:
        """Latents ``[B, D, S]`` to audio ``[B, C, S · hop]``."""
        features = self.head(self.trunk(self.embed(latents).mT)).unflatten(-1, (self.channels, -1)).transpose(1, 2)
        with torch.autocast(features.device.type, enabled=False):
            log_magnitude, phase = features.float().chunk(2, -1)
            # bounded so that early predictions do not overflow; a full-scale sine is far below exp(10)
            return self.stft.inverse(torch.polar(log_magnitude.clamp(max=10).exp(), phase))
