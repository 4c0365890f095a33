"""EnCodec's encoder and decoder on the weights of the encodec package, faster and chunk by chunk.

All sequences are ``[B, C, T]`` with the channels of a position next to each other in memory. The convolution kernels
then need no copies in another order, and a transposed convolution whose taps are twice its stride is two matrix
products.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..layers.chunks import convolution_needs, transposed_needs

State = tuple[Tensor, Tensor] | None


def arrange(network: nn.Module) -> None:
    """Store the weights of convolutions in the order in which the kernels read them. Their shapes do not change."""
    for layer in network.modules():
        if isinstance(layer, nn.Conv1d | nn.ConvTranspose1d):
            layer.weight.data = layer.weight.data.mT.contiguous().mT


def layers_of(network: Any) -> list[Any]:
    """Return functions for the layers of an encoder or a decoder of the encodec package, which share its weights."""
    from encodec.modules import SLSTM, SConv1d, SConvTranspose1d
    from encodec.modules.seanet import SEANetResnetBlock

    layers: list[Any] = []
    activate = False
    for module in network.model:
        owned = bool(layers) and not isinstance(layers[-1], Recurrence)
        if isinstance(module, nn.ELU):
            activate = True
            continue
        if isinstance(module, SConv1d):
            layers.append(Convolution(module, activate, owned))
        elif isinstance(module, SConvTranspose1d):
            layers.append(Transposed(module, activate, owned))
        elif isinstance(module, SEANetResnetBlock):
            layers.append(Residual(module))
        elif isinstance(module, SLSTM):
            layers.append(Recurrence(module))
        else:
            raise TypeError(f"EnCodec has no layer {type(module).__name__}")
        activate = False
    return layers


class Convolution:
    """A convolution with reflected edges, after an optional ELU.

    Args:
        module: The ``SConv1d`` with its weights.
        activate: Whether an ELU precedes it.
        owned: Whether the input may be overwritten.
    """

    def __init__(self, module: Any, activate: bool, owned: bool) -> None:
        self.module, self.activate, self.owned = module, activate, owned
        convolution = module.conv.conv
        stride = convolution.stride[0]
        self.taps = (convolution.kernel_size[0] - 1) * convolution.dilation[0] + 1
        total = self.taps - stride
        right = 0 if module.causal else total // 2
        self.padding = (total - right, right)
        self.rates = (stride, 1)

    def needs(self, start: int, stop: int) -> tuple[int, int]:
        """Range of the input that a range of the output depends on."""
        return convolution_needs(start, stop, taps=self.taps, left=self.padding[0], stride=self.rates[0])

    def __call__(self, x: Tensor) -> Tensor:
        """``[B, C, T]`` to ``[B, C', T / stride]``."""
        convolution = self.module.conv.conv
        places = x.mT
        if self.taps > 1:
            places = _reflected(places, *self.padding, self.activate)
        elif self.activate:
            places = F.elu(places, inplace=self.owned)
        if self.taps == 1:
            made = F.linear(places, convolution.weight[..., 0], convolution.bias).mT
        elif convolution.in_channels == 1 and convolution.dilation[0] == 1:
            windows = places[..., 0].unfold(1, self.taps, self.rates[0])
            made = F.linear(windows, convolution.weight[:, 0], convolution.bias).mT
        else:
            made = F.conv2d(
                places.contiguous().mT[:, :, None],
                convolution.weight[:, :, None],
                convolution.bias,
                (1, self.rates[0]),
                dilation=(1, convolution.dilation[0]),
            )[:, :, 0]
        return self.module.conv.norm(made)


class Transposed:
    """A transposed convolution with twice as many taps as its stride, after an optional ELU.

    Args:
        module: The ``SConvTranspose1d`` with its weights.
        activate: Whether an ELU precedes it.
        owned: Whether the input may be overwritten.
    """

    def __init__(self, module: Any, activate: bool, owned: bool) -> None:
        self.module, self.activate, self.owned = module, activate, owned
        stride = module.convtr.convtr.stride[0]
        right = stride if module.causal else stride // 2
        self.left = stride - right
        self.rates = (1, stride)

    def needs(self, start: int, stop: int) -> tuple[int, int]:
        """Range of the input that a range of the output depends on."""
        stride = self.rates[1]
        return transposed_needs(start, stop, taps=2 * stride, left=self.left, stride=stride)

    def __call__(self, x: Tensor) -> Tensor:
        """``[B, C, S]`` to ``[B, C', S · stride]``."""
        convolution, stride = self.module.convtr.convtr, self.rates[1]
        places = x.mT
        if self.activate:
            places = F.elu(places, inplace=self.owned)
        length = places.shape[1]
        whole = self.left > 0 or not isinstance(self.module.convtr.norm, nn.Identity)
        if whole:  # one more place, for the outputs after the last input
            places = F.pad(places, (0, 0, 0, 1))
        # An output is the sum of two inputs: the first half of the taps at one, and the second half at the one before.
        # The bias is one more input, of ones, because adding it afterwards would take a pass over the large output.
        now, before = convolution.weight.mT.flatten(1).unflatten(1, (2, -1)).unbind(1)
        now = torch.cat([now, convolution.bias.repeat(stride)[None]])
        samples = [_product(sample, now, before) for sample in places]
        made = samples[0][None] if len(samples) == 1 else torch.stack(samples)
        made = self.module.convtr.norm(made.view(len(samples), -1, convolution.out_channels).mT)
        return made[..., self.left : self.left + length * stride] if whole else made


def _product(places: Tensor, now: Tensor, before: Tensor) -> Tensor:
    """Outputs ``[S, stride · C']`` of one sample ``[S, C]`` and ones, and of the places before it."""
    made = F.pad(places, (0, 1), value=1.0) @ now
    made[1:].addmm_(places[:-1], before)
    return made


class Residual:
    """A residual block: ELU and convolution, twice, and a shortcut.

    Args:
        module: The ``SEANetResnetBlock`` with its weights.
    """

    def __init__(self, module: Any) -> None:
        first, last = module.block[1], module.block[3]
        self.first, self.last = Convolution(first, True, False), Convolution(last, True, True)
        self.shortcut = None if isinstance(module.shortcut, nn.Identity) else Convolution(module.shortcut, False, False)

    def needs(self, start: int, stop: int) -> tuple[int, int]:
        """Range of the input that a range of the output depends on."""
        return self.first.needs(start, stop)

    def __call__(self, x: Tensor) -> Tensor:
        """``[B, C, T]`` to the same shape."""
        inner = self.first(x)
        if self.shortcut is None or not isinstance(self.last.module.conv.norm, nn.Identity):
            added = self.last(inner)
            return added.add_(x if self.shortcut is None else self.shortcut(x))
        # Both products add up in one output, with one bias.
        last, shortcut = self.last.module.conv.conv, self.shortcut.module.conv.conv
        rows, shortcut_rows = F.elu(inner.mT, inplace=True).flatten(0, 1), x.mT.flatten(0, 1)
        made = torch.addmm(last.bias + shortcut.bias, rows, last.weight[..., 0].T)
        return made.addmm_(shortcut_rows, shortcut.weight[..., 0].T).unflatten(0, (len(x), -1)).mT


class Recurrence:
    """Recurrent layers added to their input.

    Args:
        module: The ``SLSTM`` with its weights.
    """

    def __init__(self, module: Any) -> None:
        self.module = module

    def __call__(self, x: Tensor) -> Tensor:
        """``[B, C, S]`` to the same shape."""
        return self.run_chunk(x, None)[0]

    def run_chunk(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """Run the next chunk ``[B, C, n]`` of a sequence, and return its output and the next state."""
        places = x.permute(2, 0, 1)
        made, state = self.module.lstm(places, state)
        return (made + places).permute(1, 0, 2).contiguous().mT, state


def _reflected(places: Tensor, left: int, right: int, activate: bool) -> Tensor:
    """``[B, T, C]`` after an optional ELU, with reflected edges.

    A sequence that is too short for the reflection is first extended by zeros, as in the encodec package.
    """
    batch, length, channels = places.shape
    missing = max(0, max(left, right) + 1 - length)
    made = places.new_empty(batch, left + length + missing + right, channels)
    middle = made[:, left : left + length]
    if activate and torch.is_grad_enabled():
        middle.copy_(F.elu(places))
    elif activate:  # without a copy
        torch.ops.aten.elu.out(places, out=middle)
    else:
        middle.copy_(places)
    made[:, left + length : left + length + missing] = 0
    end = left + length + missing
    made[:, :left] = made[:, left + 1 : 2 * left + 1].flip(1)
    made[:, end:] = made[:, end - right - 1 : end - 1].flip(1)
    return made[:, : left + length + right]
