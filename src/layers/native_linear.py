"""Linear layers for steps of generation on CPUs, with weights in one of three precisions."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor, nn

from .native_library import native_library

KINDS = {"fp32": 0, "bf16": 1, "int8": 2}
"""Precisions of weights, as the kernels number them."""

LEAST_WORK = 1_000_000
"""Number of multiplications below which one thread is faster than several that have to wait for each other."""


class LinearStruct(ctypes.Structure):
    """The ``Linear`` of ``csrc/linear.h``."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("weight", "scales", "sums", "bias")),
        *((name, ctypes.c_int64) for name in ("outputs", "inputs", "kind")),
    ]


class ScratchStruct(ctypes.Structure):
    """The ``Scratch`` of ``csrc/linear.h``."""

    _fields_ = [(name, ctypes.c_void_p) for name in ("normed", "mixed", "wide", "scores", "scales", "bytes")]


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
    """

    def __init__(self, linear: nn.Linear, precision: str) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        weight = linear.weight.detach()
        self.scales = self.sums = None
        if precision == "int8":
            scales = weight.abs().amax(1).div(127).clamp(min=torch.finfo(torch.float32).tiny)
            self.rounded = weight.div(scales[:, None]).round().to(torch.int8)
            self.scales, self.sums = scales, self.rounded.sum(1, dtype=torch.int32)
        else:
            self.rounded = weight.bfloat16() if precision == "bf16" else weight
        self.struct = LinearStruct(
            *(address(tensor) for tensor in (self.rounded, self.scales, self.sums, self.bias)),
            self.out_features,
            self.in_features,
            KINDS[precision],
        )

    def forward(self, x: Tensor) -> Tensor:
        """``[..., in_features]`` to ``[..., out_features]``."""
        library = native_library()
        assert library is not None
        flat = x.detach().float().reshape(-1, self.in_features).contiguous()
        rows = len(flat)
        out = flat.new_empty(rows, self.out_features)
        scales, rounded = flat.new_empty(rows), flat.new_empty(rows, self.in_features, dtype=torch.int8)
        scratch = ScratchStruct(scales=address(scales), bytes=address(rounded))
        library.partita_linear(
            ctypes.byref(self.struct),
            ctypes.c_void_p(address(flat)),
            ctypes.c_void_p(address(out)),
            ctypes.c_int64(rows),
            ctypes.byref(scratch),
            ctypes.c_int64(cores(rows * self.weight.numel())),
        )
        return out.view(*x.shape[:-1], self.out_features)
