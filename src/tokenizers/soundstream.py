"""SoundStream: a convolutional codec on the waveform."""

from __future__ import annotations

from ..core.registry import register
from ..layers.codec_losses import SpectralDistance
from ..layers.discriminators import Discriminators
from ..layers.residual_quantizer import Quantizer
from ..layers.seanet import SEANet, SEANetDecoder, SEANetEncoder
from .neural_codec import DISCRIMINATORS, LOSSES, QUANTIZER, SPECTRAL, Losses, NeuralCodec

SEANET = SEANet()
"""SoundStream's network."""


@register("tokenizer", "soundstream")
class SoundStream(NeuralCodec):
    """Convolutional neural codec on the waveform, causal or not (SoundStream, 2107.03312; EnCodec's network too).

    Args:
        sample_rate: Of the audio, in Hz.
        channels: Of the audio.
        dim: Width of the latents. The paper gives none; ours is 128, EnCodec's.
        network: Shape of encoder and decoder.
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
        dim: int = 128,
        network: SEANet = SEANET,
        num_codebooks: int | None = None,
        quantizer: Quantizer = QUANTIZER,
        losses: Losses = LOSSES,
        spectral: SpectralDistance = SPECTRAL,
        discriminators: Discriminators = DISCRIMINATORS,
        adversarial_start: int = 0,
    ) -> None:
        super().__init__(
            sample_rate=sample_rate,
            channels=channels,
            hop=network.hop,
            dim=dim,
            num_codebooks=num_codebooks,
            quantizer=quantizer,
            losses=losses,
            spectral=spectral,
            discriminators=discriminators,
            adversarial_start=adversarial_start,
        )
        self.encoder = SEANetEncoder(network, channels, dim)
        self.decoder = SEANetDecoder(network, channels, dim)
