"""Linear layers for steps of generation on CPUs, with weights in one of three precisions."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor, nn

from .large_pages import LargePages
from .native_library import native_library

KINDS = {"fp32": 0, "bf16": 1, "int8": 2}
"""Precisions of weights, as the kernels number them."""

MOST_LANES = 16
"""Maximum number of outputs whose weights the kernels store together."""
MOST_PADDING = 8
"""Maximum number of bytes that the kernels add to a row."""

LEAST_WORK = 1_000_000
"""Number of multiplications below which one thread is faster than several that have to wait for each other."""


class LinearStruct(ctypes.Structure):
    """The ``Linear`` of ``csrc/linear.h``."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("weight", "scales", "bias")),
        *((name, ctypes.c_int64) for name in ("outputs", "inputs", "kind")),
    ]


class ScratchStruct(ctypes.Structure):
    """The ``Scratch`` of ``csrc/linear.h``."""

    _fields_ = [(name, ctypes.c_void_p) for name in ("normed", "mixed", "wide", "scores", "scales", "bytes", "totals")]


def rounding_memory(rows: int, width: int) -> dict[str, Tensor]:
    """Return memory for rows of at most a width that are rounded to bytes, as ``Scratch`` names it."""
    return {
        "scales": torch.empty(rows),
        "bytes": torch.empty(rows, width + MOST_PADDING, dtype=torch.int16),
        "totals": torch.empty(rows, dtype=torch.int32),
    }


def address(tensor: Tensor | None) -> int | None:
    """Return the address of a tensor's first number.

    Raises:
        ValueError: The tensor has gaps.
    """
    if tensor is None:
        return None
    if not tensor.is_contiguous():
        raise ValueError(f"a tensor {list(tensor.shape)} with strides {tensor.stride()} has gaps")
    return tensor.data_ptr()


def cores(multiplications: int) -> int:
    """Return the number of threads that an amount of work is worth."""
    return torch.get_num_threads() if multiplications >= LEAST_WORK else 1


def fits(linear: nn.Linear) -> bool:
    """Whether the kernels can compute a layer: it is on the CPU, in single precision and without gaps."""
    return linear.weight.device.type == "cpu" and all(
        parameter.dtype == torch.float32 and parameter.is_contiguous() for parameter in linear.parameters()
    )


class NativeLinear(nn.Module):
    """A linear layer whose rows of input do not depend on each other, to the last bit.

    Args:
        linear: The layer whose weights it uses, or rounds.
        precision: Precision of the weights: ``fp32``, ``bf16`` or ``int8``. For ``int8``, inputs are rounded, too.
        memory: Where rounded weights are stored, side by side with those of other layers. ``None`` means by themselves.
    """

    def __init__(self, linear: nn.Linear, precision: str, memory: LargePages | None = None) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self.precision, self.rounded = precision, linear.weight.detach()
        self.scales: Tensor | None = None
        if precision != "fp32":
            self._round(memory or LargePages())
        self.struct = LinearStruct(
            *(address(tensor) for tensor in (self.rounded, self.scales, self.bias)),
            self.out_features,
            self.in_features,
            KINDS[precision],
        )

    def _round(self, memory: LargePages) -> None:
        """Store rounded weights."""
        library = native_library()
        assert library is not None
        weight, size = self.rounded, (ctypes.c_int64(self.out_features), ctypes.c_int64(self.in_features))
        kind = ctypes.c_int64(KINDS[self.precision])
        self.rounded = memory.empty(library.partita_size(*size, kind), dtype=torch.uint8)
        if self.precision == "int8":
            self.scales = memory.empty(-(-self.out_features // MOST_LANES) * MOST_LANES, dtype=torch.float32)
        library.partita_round(
            ctypes.c_void_p(address(weight)),
            *size,
            kind,
            ctypes.c_void_p(address(self.rounded)),
            ctypes.c_void_p(address(self.scales)),
        )

    def forward(self, x: Tensor) -> Tensor:
        """``[..., in_features]`` to ``[..., out_features]``."""
        library = native_library()
        assert library is not None
        flat = x.detach().float().reshape(-1, self.in_features).contiguous()
        rows = len(flat)
        out = flat.new_empty(rows, self.out_features)
        memory = rounding_memory(rows, self.in_features)
        scratch = ScratchStruct(**{name: address(tensor) for name, tensor in memory.items()})
        library.partita_linear(
            ctypes.byref(self.struct),
            ctypes.c_void_p(address(flat)),
            ctypes.c_void_p(address(out)),
            ctypes.c_int64(rows),
            ctypes.byref(scratch),
            ctypes.c_int64(cores(rows * self.weight.numel())),
        )
        return out.view(*x.shape[:-1], self.out_features)
