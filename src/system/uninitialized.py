"""Building parts whose weights are loaded right afterwards, without drawing the weights at random first."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..core.part import Part

Built = TypeVar("Built")

_DRAWING = {Tensor.normal_, Tensor.uniform_, nn.init.normal_, nn.init.uniform_, nn.init.kaiming_uniform_}
_DRAWING |= {nn.init.kaiming_normal_, nn.init.xavier_uniform_, nn.init.xavier_normal_, nn.init.trunc_normal_}


def without_drawing(make: Callable[[], Built]) -> Built:
    """Return what a function builds. If it is a part all of whose parameters are saved, they are not drawn.

    Drawing the weights of a large model takes longer than loading them. A part with parameters that are not saved, such
    as the discriminator of a codec, is built as always, and so is one that may have drawn anything else that is not
    saved.
    """
    before = torch.random.get_rng_state()
    with _Undrawn() as undrawn:
        built = make()
    if not undrawn.parameters:
        return built
    drawn = not torch.equal(before, torch.random.get_rng_state())
    saved = built.exported_state().keys() if isinstance(built, Part) else ()
    if isinstance(built, nn.Module):
        lacking = [name for name, _ in built.named_parameters() if name not in saved]
        lacking += [
            name for name, buffer in built.named_buffers() if drawn and buffer.is_floating_point() and name not in saved
        ]
        if not lacking:
            return built
    torch.random.set_rng_state(before)
    return make()


class _Undrawn(TorchFunctionMode):
    """Sets parameters to zero instead of drawing them at random.

    Attributes:
        parameters: Number of times that it did so.
    """

    def __init__(self) -> None:
        super().__init__()
        self.parameters = 0

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensor = args[0] if args else kwargs.get("tensor")
        if function in _DRAWING and isinstance(tensor, nn.Parameter) and not tensor.is_meta:
            self.parameters += 1
            return nn.init.zeros_(tensor)  # which all truncated distributions accept at once
        return function(*args, **kwargs)
