"""Which precision a part is trained in on the machine at hand."""

from __future__ import annotations

from typing import Literal

import torch

Precision = Literal["32-true", "bf16-mixed", "16-mixed"]
"""Precision in which the layers of a part compute. Weights, spectra and codebooks are always in single precision."""


def feasible(precision: str, accelerator: str = "auto") -> str:
    """The given precision, or single precision if it is a half precision on a CPU without instructions for it.

    Such CPUs (x86 before AVX-512) compute bfloat16 matrix products one number at a time: a step that takes half a
    second in single precision takes ten.

    Args:
        precision: A precision of ``L.Trainer``.
        accelerator: An accelerator of ``L.Trainer``.

    >>> feasible("32-true")
    '32-true'
    """
    on_cpu = accelerator == "cpu" or (accelerator == "auto" and not torch.accelerator.is_available())
    return "32-true" if "16" in precision and on_cpu and not has_bfloat16() else precision


def has_bfloat16() -> bool:
    """Whether the CPU has instructions that multiply matrices in bfloat16 (which replaces float16 on a CPU)."""
    supported = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)  # torch itself checks this
    return supported is not None and bool(supported())
