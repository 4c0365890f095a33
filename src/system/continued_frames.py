"""Codes and latents that a clip continues, as a user gives them by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..core.contracts import Generated, RepresentationSpec
from ..core.registry import did_you_mean
from ..errors import PartitaError
from .assembly import Assembly

INTEGERS = {torch.uint8, torch.int8, torch.uint16, torch.int16, torch.uint32, torch.int32, torch.uint64, torch.int64}
FLOATS = {torch.float16, torch.bfloat16, torch.float32, torch.float64}


def continued_frames(system: Assembly, given: Mapping[str, Any], batch: int, seconds: float) -> dict[str, Tensor]:
    """Return the codes and latents to continue, by name, for each clip.

    Args:
        system: The system that continues them.
        given: Arrays ``[1 or batch, K or D, S]``, or results of generation, by name.
        batch: Number of clips.
        seconds: Length of the clips, in seconds.

    Raises:
        PartitaError: Something that is generated is missing, or values do not fit the system.
    """
    stages = system.plan.stages.values()
    specs = {target.source: system.tokenizer_of(target).spec for stage in stages for target in stage.targets}
    specs = {source: spec for source, spec in specs.items() if spec.frame_rate is not None}
    for source in given:
        if source not in specs:
            raise PartitaError(f"continuation: no stage generates {source!r}{did_you_mean(source, specs)}")
    if missing := sorted(specs.keys() - given.keys()):
        raise PartitaError(f"continuation needs the start of everything that is generated, also of {missing[0]}")
    continued = {}
    for source, value in given.items():
        values = _numbers(source, _tensor(source, value), specs[source], batch)
        if values.shape[2] >= specs[source].frames(seconds):
            raise PartitaError(
                f"the result starts with the {values.shape[2]:,} frames of {source} to continue, so it must be longer "
                f"than {seconds:g} s: set a longer duration, or continue less of it"
            )
        continued[source] = values.to(system.device).expand(batch, -1, -1)
    for stage in stages:
        if len({continued[target.source].shape[2] for target in stage.targets if target.source in continued}) > 1:
            together = " and ".join(target.source for target in stage.targets)
            raise PartitaError(f"continuation: {together} are generated together: continue as many frames of each")
    return continued


def _tensor(source: str, value: Any) -> Tensor:
    """Return the tensor that a user means."""
    if isinstance(value, Generated):
        if not value.whole:
            raise PartitaError(f"continuation: the clips of {source} have different lengths: continue each by itself")
        value = value.values
    try:
        tensor = torch.as_tensor(value).detach()
    except (TypeError, ValueError, RuntimeError):
        raise PartitaError(f"continuation: {source} takes a tensor, not {type(value).__name__}") from None
    if tensor.is_nested or tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_meta:
        raise PartitaError(f"continuation: {source} takes a dense tensor with values")
    return tensor


def _numbers(source: str, tensor: Tensor, spec: RepresentationSpec, batch: int) -> Tensor:
    """Return codes as int64, or latents as float32, after checking them."""
    width, kind = (spec.num_codebooks, "codes") if spec.discrete else (spec.dim, "latents")
    if tensor.ndim != 3 or tensor.shape[1] != width or not tensor.shape[2]:
        raise PartitaError(f"continuation: {source} takes {kind} [{batch}, {width}, frames], not {list(tensor.shape)}")
    if len(tensor) not in (1, batch):
        raise PartitaError(f"continuation: {source} must be of one clip or of each ({batch}), not of {len(tensor)}")
    if tensor.dtype not in (INTEGERS if spec.discrete else FLOATS):
        numbers = "whole numbers" if spec.discrete else "floating-point numbers"
        raise PartitaError(f"continuation: {kind} of {source} must be {numbers}, not {tensor.dtype}")
    if not spec.discrete:
        if not (latents := tensor.float()).isfinite().all():
            raise PartitaError(f"continuation: latents of {source} must be finite in single precision")
        return latents
    codes = tensor.long()
    for row, cardinality in zip(codes.unbind(1), spec.cardinalities, strict=True):
        if row.min() < 0 or row.max() >= cardinality:
            raise PartitaError(f"continuation: codes of {source} must be from 0 to {cardinality - 1}")
    return codes
