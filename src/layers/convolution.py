"""1-D convolutions with exact output lengths, optional causality, and variance-preserving initialization."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from .chunks import convolution_needs, transposed_needs

Normalization = Literal["none", "weight_norm", "time_group_norm"]


class Edges(NamedTuple):
    """How a convolution pads its input.

    Attributes:
        causal: Whether only on the left, so that no output depends on later input.
        mode: With zeros, or by reflection (``reflect``). An input that is too short for a reflection is first extended
            by zeros.
    """

    causal: bool = False
    mode: Literal["zero", "reflect"] = "zero"


ZEROS = Edges()
"""Zeros on both sides."""

ELU_GAIN = 1 / math.sqrt(0.6452)
"""Restores the variance of a standard normal variable after ELU, whose second moment is 0.6452."""


class Conv1d(nn.Module):
    """Convolution of ``[B, C, T]`` to ``[B, C', T / stride]``.

    Weights are initialized so that the output has ``gain²`` times the variance of a white input; biases start at zero.
    With PyTorch's own initialization, a deep stack loses its signal, and its output is little but its biases.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel: Number of taps.
        stride: Stride of the output; ``T`` must be a multiple of it.
        dilation: Distance between taps.
        edges: How the input is padded.
        normalization: Re-parametrization of the weight by length and direction (``weight_norm``), normalization of the
            output over channels and time (``time_group_norm``), or none.
        gain: Standard deviation of the output relative to the input's, at initialization.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        *,
        stride: int = 1,
        dilation: int = 1,
        edges: Edges = ZEROS,
        normalization: Normalization = "none",
        gain: float = 1.0,
    ) -> None:
        super().__init__()
        convolution = nn.Conv1d(in_channels, out_channels, kernel, stride, dilation=dilation)
        _initialize(convolution, gain / math.sqrt(in_channels * kernel))
        self.convolution = weight_norm(convolution) if normalization == "weight_norm" else convolution
        self.norm = nn.GroupNorm(1, out_channels) if normalization == "time_group_norm" else nn.Identity()
        self.mode = edges.mode
        total = (kernel - 1) * dilation + 1 - stride
        right = 0 if edges.causal else total // 2
        self.padding = (total - right, right)
        self.taps, self.rates = (kernel - 1) * dilation + 1, (stride, 1)

    def needs(self, start: int, stop: int) -> tuple[int, int]:
        """Range of the input that a range of the output depends on."""
        return convolution_needs(start, stop, taps=self.taps, left=self.padding[0], stride=self.rates[0])

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, T]`` to ``[B, C', T / stride]``."""
        if torch.is_grad_enabled():
            return self.norm(self.convolution(_padded(x, self.padding, self.mode)))
        return self.norm(self._infer(x))

    def _infer(self, x: Tensor) -> Tensor:
        """The convolution with the channels of a position next to each other in memory, as its kernels read them."""
        convolution = self.convolution
        weight, places = convolution.weight, x.mT
        if self.taps > 1:
            places = _padded_places(places, self.padding, self.mode)
        if self.taps == 1:
            return F.linear(places, weight[..., 0], convolution.bias).mT
        stride, dilation = convolution.stride[0], convolution.dilation[0]
        if convolution.in_channels == 1 and dilation == 1:
            windows = places[..., 0].unfold(1, self.taps, stride)
            return F.linear(windows, weight[:, 0], convolution.bias).mT
        arranged = weight.mT.contiguous().mT[:, :, None]
        return F.conv2d(
            places.contiguous().mT[:, :, None], arranged, convolution.bias, (1, stride), dilation=(1, dilation)
        )[:, :, 0]


class ConvTranspose1d(nn.Module):
    """Transposed convolution of ``[B, C, S]`` to ``[B, C', S · stride]`` with ``2 · stride`` taps.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        stride: Outputs per input.
        causal: Trim only on the right, so that no output depends on later input.
        normalization: As of :class:`Conv1d`.
        gain: Standard deviation of the output relative to the input's, at initialization.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int,
        *,
        causal: bool = False,
        normalization: Normalization = "none",
        gain: float = 1.0,
    ) -> None:
        super().__init__()
        convolution = nn.ConvTranspose1d(in_channels, out_channels, 2 * stride, stride)
        _initialize(convolution, gain / math.sqrt(2 * in_channels))  # two taps reach each output
        # dim=0 would normalize over the outputs of each input channel: the axes of the weight are swapped here
        self.convolution = weight_norm(convolution, dim=1) if normalization == "weight_norm" else convolution
        self.norm = nn.GroupNorm(1, out_channels) if normalization == "time_group_norm" else nn.Identity()
        right = stride if causal else stride // 2
        self.trim = (stride - right, right)
        self.rates = (1, stride)

    def needs(self, start: int, stop: int) -> tuple[int, int]:
        """Range of the input that a range of the output depends on."""
        stride = self.rates[1]
        return transposed_needs(start, stop, taps=2 * stride, left=self.trim[0], stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, S]`` to ``[B, C', S · stride]``."""
        y = self.norm(self.convolution(x) if torch.is_grad_enabled() else self._infer(x))
        return y[..., self.trim[0] : y.shape[-1] - self.trim[1]]

    def _infer(self, x: Tensor) -> Tensor:
        """The transposed convolution as two matrix products: an output is the sum of two inputs.

        The first half of the taps is at one input, and the second half at the one before. The bias is one more input,
        of ones, because adding it afterwards would take a pass over the large output.
        """
        convolution, stride = self.convolution, self.rates[1]
        places = F.pad(x.mT, (0, 0, 0, 1))  # one more place, for the outputs after the last input
        taps = convolution.weight.permute(0, 2, 1).flatten(1).unflatten(1, (2, -1))
        bias: Tensor = convolution.bias  # type: ignore[assignment]
        now, before = torch.cat([taps[:, 0], bias.repeat(stride)[None]]), taps[:, 1]
        made = F.pad(places, (0, 1), value=1.0) @ now
        for sample, earlier in zip(made, places, strict=True):
            sample[1:].addmm_(earlier[:-1].to(made.dtype), before.to(made.dtype))  # autocast does not cast here
        return made.view(len(x), -1, convolution.out_channels).mT


def _initialize(convolution: nn.Conv1d | nn.ConvTranspose1d, std: float) -> None:
    nn.init.normal_(convolution.weight, std=std)
    if convolution.bias is not None:
        nn.init.zeros_(convolution.bias)


def _padded(x: Tensor, padding: tuple[int, int], mode: str) -> Tensor:
    """``[B, C, T]`` with edges of zeros or reflections."""
    if mode == "zero" or not any(padding):
        return F.pad(x, padding)
    missing = max(0, max(padding) + 1 - x.shape[-1])
    padded = F.pad(F.pad(x, (0, missing)), padding, "reflect")
    return padded[..., : padded.shape[-1] - missing]


def _padded_places(places: Tensor, padding: tuple[int, int], mode: str) -> Tensor:
    """``[B, T, C]`` with edges as :func:`_padded` makes them."""
    left, right = padding
    if mode == "zero":
        return F.pad(places, (0, 0, left, right))
    batch, length, channels = places.shape
    missing = max(0, max(padding) + 1 - length)
    end = left + length + missing
    made = places.new_empty(batch, end + right, channels)
    made[:, left : left + length] = places
    made[:, left + length : end] = 0
    made[:, :left] = made[:, left + 1 : 2 * left + 1].flip(1)
    made[:, end:] = made[:, end - right - 1 : end - 1].flip(1)
    return made[:, : left + length + right]


def pad_to_multiple(audio: Tensor, multiple: int) -> Tensor:
    """``audio`` ``[..., T]`` padded with zeros to the next multiple.

    >>> import torch
    >>> pad_to_multiple(torch.ones(1, 5), 4).shape
    torch.Size([1, 8])
    """
    return F.pad(audio, (0, -audio.shape[-1] % multiple))
