"""SEANet: the convolutional encoder and decoder of SoundStream and EnCodec."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...core.registry import register
from ...layers.chunks import Step, needs, steps_of
from ...layers.convolution import ELU_GAIN, Conv1d, ConvTranspose1d, Edges, Normalization
from .base import Autoencoder


@dataclass(frozen=True)
class SEANetShape:
    """Shape of an encoder and its mirrored decoder.

    The defaults are SoundStream's (2107.03312 §III). EnCodec's at 24 kHz (2210.13438) are ``dilations [1]``,
    ``residual_kernel 3``, ``last_kernel 7``, ``compress 2``, ``lstm_layers 2``, ``shortcut conv``,
    ``normalization weight_norm`` and ``edges reflect``.

    Args:
        width: Channels after the first convolution; each stride doubles them.
        strides: Down-sampling of the encoder, first to last; the decoder up-samples in reverse. Their product is the
            number of samples per frame.
        dilations: Dilations of the residual units before each stride.
        kernel: Taps of the encoder's first, and the decoder's first and last, convolution.
        last_kernel: Taps of the encoder's last convolution.
        residual_kernel: Taps of the dilated convolution in a residual unit.
        compress: Factor by which a residual unit narrows inside.
        lstm_layers: Recurrent layers at the frame rate, in the encoder and in the decoder.
        shortcut: Shortcut of a residual unit: the identity, or a convolution with one tap.
        normalization: Re-parametrization of the convolutions (``weight_norm``), or normalization of their outputs over
            channels and time (``time_group_norm``, EnCodec at 48 kHz), which needs whole clips.
        edges: Padding of clips at their edges: ``zero`` or ``reflect``.
        causal: Whether no output depends on later input, in the encoder and in the decoder.
    """

    width: int = 32
    strides: tuple[int, ...] = (2, 4, 5, 8)
    dilations: tuple[int, ...] = (1, 3, 9)
    kernel: int = 7
    last_kernel: int = 3
    residual_kernel: int = 7
    compress: int = 1
    lstm_layers: int = 0
    shortcut: Literal["identity", "conv"] = "identity"
    normalization: Normalization = "none"
    edges: Literal["zero", "reflect"] = "zero"
    causal: bool = True

    def __post_init__(self) -> None:
        if not self.strides or min(self.strides) < 1:
            raise ValueError(f"strides must be one or more positive numbers, not {list(self.strides)}")
        if self.compress < 1:
            raise ValueError(f"compress must be positive, not {self.compress}")
        if self.width % self.compress:
            raise ValueError(f"width {self.width} must be a multiple of compress {self.compress}")
        if self.causal and self.normalization == "time_group_norm":
            raise ValueError("time_group_norm normalizes over time, so the network is not causal: set causal to false")

    @property
    def hop(self) -> int:
        """Samples per frame."""
        return math.prod(self.strides)

    @property
    def convolution(self) -> Callable[..., Conv1d]:
        """What makes the convolutions."""
        return partial(Conv1d, edges=Edges(self.causal, self.edges), normalization=self.normalization)


SHAPE = SEANetShape()
"""Shape of SoundStream's network."""


@register("autoencoder", "seanet")
class SEANet(Autoencoder):
    """Convolutions on the waveform, causal or not (SoundStream, 2107.03312; EnCodec's network too).

    Args:
        network: Shape of the encoder and of the decoder, which mirrors it.
    """

    def __init__(self, *, network: SEANetShape = SHAPE) -> None:
        super().__init__()
        self.network, self.causal, self.hop = network, network.causal, network.hop

    def build(self, sample_rate: int, channels: int, encoded_dim: int, dim: int) -> None:
        """Create the networks. Strides count samples at any sample rate."""
        super().build(sample_rate, channels, encoded_dim, dim)
        self.encoder = SEANetEncoder(self.network, channels, encoded_dim)
        self.decoder = SEANetDecoder(self.network, channels, dim)

    def encoding_steps(self) -> list[Step] | None:
        """Convolutions, and the recurrent layers between them."""
        return self._steps(self.encoder)

    def decoding_steps(self) -> list[Step] | None:
        """Convolutions, and the recurrent layers between them."""
        return self._steps(self.decoder)

    def _steps(self, network: nn.Module) -> list[Step] | None:
        """The steps of a network; ``None`` if it normalizes over the whole clip."""
        if self.network.normalization == "time_group_norm":
            return None
        return steps_of(network.layers, mirrored=self.network.edges == "reflect")  # type: ignore[arg-type]


class SEANetEncoder(nn.Module):
    """Audio ``[B, C, S · hop]`` to latents ``[B, D, S]``.

    Args:
        config: Shape of the encoder and the decoder.
        channels: Channels of the audio.
        dim: Width of the latents.
    """

    def __init__(self, config: SEANetShape, channels: int, dim: int) -> None:
        super().__init__()
        convolution = config.convolution
        width = config.width
        layers: list[nn.Module] = [convolution(channels, width, config.kernel)]
        for stride in config.strides:
            layers += [ResidualUnit(config, width, dilation) for dilation in config.dilations]
            layers += [
                FreshELU(),
                convolution(width, 2 * width, 2 * stride, stride=stride, gain=ELU_GAIN),
            ]
            width *= 2
        layers += [ResidualLSTM(width, config.lstm_layers)] if config.lstm_layers else []
        layers += [nn.ELU(), convolution(width, dim, config.last_kernel, gain=ELU_GAIN)]
        self.layers = nn.Sequential(*layers)

    def forward(self, audio: Tensor) -> Tensor:
        """Audio ``[B, C, S · hop]`` to latents ``[B, D, S]``."""
        return self.layers(audio)


class SEANetDecoder(nn.Module):
    """Latents ``[B, D, S]`` to audio ``[B, C, S · hop]``.

    Args:
        config: Shape of the encoder and the decoder.
        channels: Channels of the audio.
        dim: Width of the latents.
    """

    def __init__(self, config: SEANetShape, channels: int, dim: int) -> None:
        super().__init__()
        convolution = config.convolution
        transposed = partial(ConvTranspose1d, causal=config.causal, normalization=config.normalization)
        width = config.width * 2 ** len(config.strides)
        layers: list[nn.Module] = [convolution(dim, width, config.kernel)]
        layers += [ResidualLSTM(width, config.lstm_layers)] if config.lstm_layers else []
        for index, stride in enumerate(reversed(config.strides)):
            elu = FreshELU() if index else nn.ELU()  # the output of recurrent layers is kept for the next chunk
            layers += [elu, transposed(width, width // 2, stride, gain=ELU_GAIN)]
            width //= 2
            layers += [ResidualUnit(config, width, dilation) for dilation in config.dilations]
        # music has a root mean square of about 0.1
        layers += [FreshELU(), convolution(width, channels, config.kernel, gain=0.1 * ELU_GAIN)]
        self.layers = nn.Sequential(*layers)

    def forward(self, latents: Tensor) -> Tensor:
        """Latents ``[B, D, S]`` to audio ``[B, C, S · hop]``."""
        return self.layers(latents)


class FreshELU(nn.ELU):
    """ELU of what nothing else reads: in place where no gradient needs it, as new memory takes longer than ELU."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape to the same."""
        return F.elu(x, self.alpha, inplace=not torch.is_grad_enabled())


class ResidualUnit(nn.Module):
    """A dilated convolution and a convolution with one tap, with a shortcut around both.

    Args:
        config: Shape of the encoder and the decoder.
        width: Channels.
        dilation: Distance between the taps of the first convolution.
    """

    def __init__(self, config: SEANetShape, width: int, dilation: int) -> None:
        super().__init__()
        inner = width // config.compress
        # together, all units of a stack add at most the variance of its input
        gain = ELU_GAIN / math.sqrt(len(config.strides) * max(1, len(config.dilations)))
        self.branch = nn.Sequential(
            nn.ELU(),
            config.convolution(width, inner, config.residual_kernel, dilation=dilation, gain=ELU_GAIN),
            FreshELU(),
            config.convolution(inner, width, 1, gain=gain),
        )
        self.shortcut = config.convolution(width, width, 1) if config.shortcut == "conv" else nn.Identity()

    def needs(self, start: int, stop: int) -> tuple[int, int]:
        """Range of the input that a range of the output depends on."""
        return needs([self.branch], start, stop)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, T]`` to the same shape."""
        return self.shortcut(x) + self.branch(x)


class ResidualLSTM(nn.Module):
    """Recurrent layers added to their input.

    Args:
        width: Channels.
        num_layers: Recurrent layers.
    """

    def __init__(self, width: int, num_layers: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(width, width, num_layers, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, S]`` to the same shape."""
        return self.run_chunk(x, None)[0]

    def run_chunk(self, x: Tensor, state: tuple[Tensor, Tensor] | None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Run the next chunk ``[B, C, n]`` of a sequence, and return its output and the next state."""
        made, state = self.lstm(x.mT, state)
        return x + made.mT, state
