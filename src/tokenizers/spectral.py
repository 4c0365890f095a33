"""A codec on the short-time spectrum: all its layers run at the frame rate."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..core.rates import exact
from ..core.registry import register
from ..layers.codec_losses import SpectralDistance
from ..layers.convnext import ConvNeXt
from ..layers.discriminators import Discriminators
from ..layers.residual_quantizer import Quantizer
from ..layers.stft import STFT
from .neural_codec import DISCRIMINATORS, LOSSES, QUANTIZER, SPECTRAL, Losses, NeuralCodec


@register("tokenizer", "spectral")
class Spectral(NeuralCodec):
    """Neural codec on the short-time spectrum, many times cheaper than one on the waveform (after Vocos, 2306.00814).

    The spectrum enters as log magnitudes and compressed real and imaginary parts, ConvNeXt blocks lead to the codes and
    back, and the decoder predicts magnitudes and phases that an inverse transform turns into audio.

    Args:
        sample_rate: Of the audio, in Hz.
        channels: Of the audio; they share the codes.
        frame_rate: Frames per second; a frame must hold a whole number of samples.
        overlap: Length of the transform's window in frames.
        dim: Width of the latents.
        encoder_width: Channels of the encoder.
        encoder_depth: Blocks of the encoder.
        decoder_width: Channels of the decoder.
        decoder_depth: Blocks of the decoder.
        expansion: Width of the feed-forward layers relative to the channels.
        num_codebooks: Codebooks in use; all of the quantizer's where none is given.
        quantizer: Codebooks and how they learn.
        losses: Weights of the losses.
        spectral: The spectral distance.
        discriminators: The adversaries.
        adversarial_start: Step at which they enter.
    """

    def __init__(
        self,
        *,
        sample_rate: int = 24000,
        channels: int = 1,
        frame_rate: float = 50.0,
        overlap: int = 4,
        dim: int = 128,
        encoder_width: int = 256,
        encoder_depth: int = 4,
        decoder_width: int = 512,
        decoder_depth: int = 8,
        expansion: int = 3,
        num_codebooks: int | None = None,
        quantizer: Quantizer = QUANTIZER,
        losses: Losses = LOSSES,
        spectral: SpectralDistance = SPECTRAL,
        discriminators: Discriminators = DISCRIMINATORS,
        adversarial_start: int = 0,
    ) -> None:
        if frame_rate <= 0 or (exact(sample_rate) / exact(frame_rate)).denominator > 1:
            raise ValueError(f"a frame must hold a whole number of samples: {frame_rate} does not divide {sample_rate}")
        hop = int(exact(sample_rate) / exact(frame_rate))
        super().__init__(
            sample_rate=sample_rate,
            channels=channels,
            hop=hop,
            dim=dim,
            num_codebooks=num_codebooks,
            quantizer=quantizer,
            losses=losses,
            spectral=spectral,
            discriminators=discriminators,
            adversarial_start=adversarial_start,
        )
        stft = STFT(hop, overlap)
        self.encoder = SpectralEncoder(stft, channels, encoder_width, encoder_depth, expansion, dim)
        self.decoder = SpectralDecoder(stft, channels, decoder_width, decoder_depth, expansion, dim)


class SpectralEncoder(nn.Module):
    """Audio ``[B, C, S · hop]`` to latents ``[B, D, S]``.

    Args:
        stft: The transform.
        channels: Of the audio.
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

    def forward(self, audio: Tensor) -> Tensor:
        """Audio ``[B, C, S · hop]`` to latents ``[B, D, S]``."""
        spectrum = self.stft(audio)
        magnitude = spectrum.abs().clamp(min=1e-4)
        # phases count as much as there is to hear of them
        compressed = spectrum * magnitude**-0.7
        features = torch.cat([magnitude.log(), compressed.real, compressed.imag], -1)
        return self.project(self.trunk(self.embed(features.transpose(1, 2).flatten(2)))).mT


class SpectralDecoder(nn.Module):
    """Latents ``[B, D, S]`` to audio ``[B, C, S · hop]``.

    Args:
        stft: The transform.
        channels: Of the audio.
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

    def forward(self, latents: Tensor) -> Tensor:
        """Latents ``[B, D, S]`` to audio ``[B, C, S · hop]``."""
        features = self.head(self.trunk(self.embed(latents).mT)).unflatten(-1, (self.channels, -1)).transpose(1, 2)
        with torch.autocast(features.device.type, enabled=False):
            log_magnitude, phase = features.float().chunk(2, -1)
            # bounded so that no early prediction overflows: the window's sum, at full scale, is far below exp(10)
            return self.stft.inverse(torch.polar(log_magnitude.clamp(max=10).exp(), phase))
