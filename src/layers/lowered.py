"""Copies of networks that generate in a lower precision: what is read per step becomes half or a quarter as large.

Generating step by step reads all weights once per step, so that the time of a step is the time it takes to read them.
Only the matrices of linear layers, which are almost all weights, are stored in the lower precision. What flows between
layers, norms, softmax and logits stay in single precision.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from functools import cache, partial
from typing import Literal, TypeVar, get_args
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..core.precision import has_bfloat16
from ..core.registry import did_you_mean
from ..errors import PartitaError
from .large_pages import LargePages
from .native_library import native_library
from .native_linear import NativeLinear, fits

InferencePrecision = Literal["fp32", "bf16", "int8", "auto"]
"""Precision of the weights of linear layers in generation.

``fp32`` rounds nothing. ``bf16`` and ``int8`` are faster and less exact. ``auto`` is ``int8`` where the processor has
fast instructions for it, else ``bf16`` if it has those, else ``fp32``.
"""


def check_precision(precision: str) -> None:
    """Check that a precision exists.

    Raises:
        PartitaError: It does not.
    """
    known = get_args(InferencePrecision)
    if precision not in known:
        raise PartitaError(
            f"precision must be one of {', '.join(known)}, not {precision!r}{did_you_mean(precision, known)}"
        )


SMALLEST = 16
"""Minimum number of inputs of a layer whose weights are rounded; smaller layers take no time."""

Module = TypeVar("Module", bound=nn.Module)


class HalfLinear(nn.Module):
    """A linear layer with weights in bfloat16, from and to single precision.

    Args:
        linear: The layer whose weights it rounds.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight = linear.weight
        self.rounded = linear.weight.detach().bfloat16()
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        """``[..., in_features]`` to ``[..., out_features]``."""
        out = F.linear(x.bfloat16(), self.rounded).to(x.dtype)
        return out if self.bias is None else out + self.bias


class ByteLinear(nn.Module):
    """A linear layer with weights of 8 bits and a scale per output, for CPUs.

    The kernel scales the input of a whole batch together. Each row is therefore divided by its largest magnitude first,
    and a row that holds +1 and −1 fixes the scale, so that a sample does not depend on the batch around it.

    Args:
        linear: The layer whose weights it rounds.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight = linear.weight
        weight = linear.weight.detach().float()
        scales = (weight.abs().amax(1) / 127).clamp(min=torch.finfo(torch.float32).tiny).double()
        zeros = torch.zeros(len(weight), dtype=torch.long)
        with warnings.catch_warnings():  # torch will give up these operators; until then, none of its others is as fast
            warnings.simplefilter("ignore", UserWarning)
            quantized = torch.quantize_per_channel(weight, scales, zeros, axis=0, dtype=torch.qint8)
            self.packed = torch.ops.quantized.linear_prepack(quantized, None)
        self.bias = linear.bias
        extremes = torch.zeros(1, weight.shape[1])
        extremes[0, 0], extremes[0, -1] = 1, -1
        self.extremes = extremes

    def forward(self, x: Tensor) -> Tensor:
        """``[..., in_features]`` to ``[..., out_features]``."""
        rows = x.reshape(-1, x.shape[-1])
        largest = rows.abs().amax(1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
        scaled = torch.cat([rows / largest, self.extremes])
        out = torch.ops.quantized.linear_dynamic(scaled, self.packed, not _has_vnni())[:-1]
        out = (out * largest).view(*x.shape[:-1], -1)
        return out if self.bias is None else out + self.bias


LAYERS: dict[str, Callable[[nn.Linear], nn.Module]] = {"bf16": HalfLinear, "int8": ByteLinear}
"""The layers of PyTorch's own operators by precision."""

_copies: WeakKeyDictionary[nn.Module, tuple[tuple, dict[tuple, nn.Module]]] = WeakKeyDictionary()


def lowered(
    module: Module,
    precision: InferencePrecision,
    *,
    stepwise: bool = False,
    prepare: Callable[[Module], None] | None = None,
) -> Module:
    """A copy of a network whose linear layers are those of a precision; the network itself where they are its own.

    The copy shares all other tensors with the network. It is made once, and again when the weights have changed.

    Args:
        module: The network, such as a stage.
        precision: Precision of the copy. One that the device lacks is replaced, with a warning.
        stepwise: Whether the network generates step by step, with few rows at once. Its layers are then computed by the
            kernels of :mod:`partita.layers.native_linear` if there are any.
        prepare: Function that compiles a new copy. There is a copy of its own for each such function, in any precision.
    """
    weights = [layer for layer in module.modules() if type(layer) is nn.Linear]
    native = stepwise and all(map(fits, weights)) and native_library() is not None
    precision = feasible_precision(precision, next(module.parameters()).device, native)
    if precision == "fp32" and not native and prepare is None:
        return module
    state = tuple((parameter.data_ptr(), parameter._version) for parameter in module.parameters())
    if module not in _copies or _copies[module][0] != state:
        _copies[module] = state, {}
    made, kind = _copies[module][1], (precision, native, prepare)
    if kind not in made:
        lower: Callable[[nn.Linear], nn.Module] | None = LAYERS.get(precision)
        if native:
            lower = partial(NativeLinear, precision=precision, memory=LargePages())
        large = [layer for layer in weights if native or layer.in_features >= SMALLEST]
        made[kind] = _copy(module, {} if lower is None else {layer: lower(layer) for layer in large})
        if prepare is not None:
            prepare(made[kind])  # type: ignore[arg-type]
    return made[kind]  # type: ignore[return-value]


def feasible_precision(precision: InferencePrecision, device: torch.device, native: bool = False) -> InferencePrecision:
    """The given precision, or the next lower one that a device computes fast, with a warning.

    Args:
        precision: The requested precision.
        device: Device of the weights.
        native: Whether there are kernels for it, which have all precisions.
    """
    on_cpu, automatic = device.type == "cpu", precision == "auto"
    if automatic:
        precision = "int8" if on_cpu else "bf16"
    if native:
        return precision
    wanted = precision
    if precision == "int8" and not (on_cpu and _has_int8()):
        precision = "bf16"
    if precision == "bf16" and not (has_bfloat16() if on_cpu else device.type == "cuda"):
        precision = "fp32"
    if precision != wanted and not automatic:
        warnings.warn(
            f"{device.type} computes {wanted} slowly or not at all here: generating in {precision}", stacklevel=3
        )
    return precision


@cache
def _has_vnni() -> bool:
    """Whether the CPU adds up products of bytes in 32 bits; others overflow 16, unless the input has 7 bits."""
    return bool(getattr(torch.cpu, "_is_vnni_supported", lambda: False)())


@cache
def _has_int8() -> bool:
    """Whether this version of torch multiplies bytes on this CPU."""
    try:
        ByteLinear(nn.Linear(SMALLEST, SMALLEST))(torch.zeros(1, SMALLEST))
    except (AttributeError, NotImplementedError, RuntimeError):
        return False
    return "x86" in torch.backends.quantized.supported_engines


def _copy(module: Module, layers: dict[nn.Linear, nn.Module]) -> Module:
    """A deep copy that shares tensors, and has other linear layers and no trainer."""
    known: dict[int, object] = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
    known |= {id(layer): other for layer, other in layers.items()}
    for layer in module.modules():
        if (trainer := getattr(layer, "_trainer", None)) is not None:
            known[id(trainer)] = None
    return copy.deepcopy(module, known).eval()
