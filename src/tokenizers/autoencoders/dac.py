"""DAC's convolutional encoder and decoder with Snake activations."""

from __future__ import annotations

import math
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from ...core.registry import register
from ...layers.chunks import Step, needs, steps_of
from ...layers.convolution import Conv1d, ConvTranspose1d
from ...layers.snake import Snake
from .base import Autoencoder

_convolution = partial(Conv1d, normalization="weight_norm")
_transposed = partial(ConvTranspose1d, normalization="weight_norm")


@register("autoencoder", "dac")
class DAC(Autoencoder):
    """Convolutions on the waveform with Snake activations, not causal (DAC, 2306.06546 §3.1 and its published code).

    Strides can be odd, too: the output has exactly ``S · hop`` samples. transformers' DAC returns a few less.

    Args:
        encoder_width: Channels after the encoder's first convolution; each stride doubles them.
        decoder_width: Channels after the decoder's first convolution; each stride halves them.
        strides: Down-sampling of the encoder, first to last; the decoder up-samples in reverse. Their product is the
            number of samples per frame.
        dilations: Dilations of the residual units, before each stride of the encoder and after each of the decoder.
        initialization: ``published`` draws the weights of convolutions with a deviation of 0.02, whatever their width.
            ``preserving`` preserves the variance of the signal, which narrow networks need: the published latents of
            ``dac-tiny`` hardly vary in time, so that all frames get the same codes.
    """

    def __init__(
        self,
        *,
        encoder_width: int = 64,
        decoder_width: int = 1536,
        strides: tuple[int, ...] = (2, 4, 8, 8),
        dilations: tuple[int, ...] = (1, 3, 9),
        initialization: Literal["published", "preserving"] = "published",
    ) -> None:
        super().__init__()
        if not strides or min(strides) < 1:
            raise ValueError(f"strides must be one or more positive numbers, not {list(strides)}")
        if encoder_width < 1 or decoder_width < 1:
            raise ValueError(f"widths must be positive, not {encoder_width} and {decoder_width}")
        if decoder_width % 2 ** len(strides):
            raise ValueError(
                f"decoder_width {decoder_width} must be a multiple of {2 ** len(strides)}, because each of the "
                f"{len(strides)} strides halves it"
            )
        if any(dilation < 1 for dilation in dilations):
            raise ValueError(f"dilations must be positive, not {list(dilations)}")
        if initialization not in ("published", "preserving"):
            raise ValueError(f"initialization must be published or preserving, not {initialization!r}")
        self.initialization = initialization
        self.encoder_width, self.decoder_width = encoder_width, decoder_width
        self.strides, self.dilations = list(strides), list(dilations)
        self.hop = math.prod(strides)

    def build(self, sample_rate: int, channels: int, encoded_dim: int, dim: int) -> None:
        """Create the networks. Strides count samples at any sample rate."""
        super().build(sample_rate, channels, encoded_dim, dim)
        # together, all units of a network add at most the variance of its input
        gain = 1 / math.sqrt(len(self.strides) * max(1, len(self.dilations)))
        width = self.encoder_width
        down: list[nn.Module] = [_convolution(channels, width, 7)]
        for stride in self.strides:
            down += [ResidualUnit(width, dilation, gain) for dilation in self.dilations]
            down += [Snake(width), _convolution(width, 2 * width, 2 * stride, stride=stride)]
            width *= 2
        self.encoder = nn.Sequential(*down, Snake(width), _convolution(width, encoded_dim, 3))
        width = self.decoder_width
        up: list[nn.Module] = [_convolution(dim, width, 7)]
        for stride in reversed(self.strides):
            up += [Snake(width), _transposed(width, width // 2, stride)]
            width //= 2
            up += [ResidualUnit(width, dilation, gain) for dilation in self.dilations]
        # music has a root mean square of about 0.1
        self.decoder = nn.Sequential(*up, Snake(width), _convolution(width, channels, 7, gain=0.1), nn.Tanh())
        if self.initialization == "published":
            self.apply(_initialize)

    def encoding_steps(self) -> list[Step]:
        """All convolutions, as one step."""
        return steps_of(self.encoder)  # type: ignore[arg-type]

    def decoding_steps(self) -> list[Step]:
        """All convolutions, as one step."""
        return steps_of(self.decoder)  # type: ignore[arg-type]


class ResidualUnit(nn.Module):
    """A dilated convolution with seven taps and one with a single tap, added to their input.

    Args:
        width: Channels.
        dilation: Distance between the taps of the first convolution.
        gain: Standard deviation of what is added relative to the input's, at the preserving initialization.
    """

    def __init__(self, width: int, dilation: int, gain: float) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            Snake(width),
            _convolution(width, width, 7, dilation=dilation),
            Snake(width),
            _convolution(width, width, 1, gain=gain),
        )

    def needs(self, start: int, stop: int) -> tuple[int, int]:
        """Range of the input that a range of the output depends on."""
        return needs([self.branch], start, stop)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, T]`` to the same shape."""
        return x + self.branch(x)


@torch.no_grad()
def _initialize(module: nn.Module) -> None:
    """Initialize as DAC does: convolutions with a deviation of 0.02, and transposed ones as PyTorch does."""
    if isinstance(module, nn.Conv1d):
        module.weight = nn.init.trunc_normal_(torch.empty_like(module.weight), std=0.02)
    if isinstance(module, nn.ConvTranspose1d):
        weight = torch.empty_like(module.weight)
        module.weight = nn.init.kaiming_uniform_(weight, a=math.sqrt(5))
