"""Which precision a part is trained in on the machine at hand."""

from __future__ import annotations

from typing import Literal

import torch

Precision = Literal["32-true", "bf16-mixed", "16-mixed"]
"""What the layers of a part compute in; weights, spectra and codebooks are in single precision always."""


def feasible(precision: str, accelerator: str = "auto") -> str:
    """The precision, or single precision where it would be half on a CPU without instructions for it.

    Such CPUs (those before AVX-512 among x86) compute matrix products in bfloat16 one number at a time: a step that
    takes half a second takes ten.

    Args:
        precision: As ``L.Trainer`` takes it.
        accelerator: As ``L.Trainer`` takes it.

    >>> feasible("32-true")
    '32-true'
    """
    on_cpu = accelerator == "cpu" or (accelerator == "auto" and not torch.accelerator.is_available())
    return "32-true" if "16" in precision and on_cpu and not has_bfloat16() else precision


def has_bfloat16() -> bool:
    """Whether the CPU has instructions that multiply matrices in bfloat16 (which stands in for float16 on a CPU)."""
    supported = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)  # torch asks the same of itself
    return supported is not None and bool(supported())
