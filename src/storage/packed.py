"""One example of a shard as bytes: tensors in safetensors, with plain values and a checksum in the header."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Mapping
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from ..errors import PartitaError
from ..limits import LARGEST_HEADER
from .tensor_file import checksum
from .untrusted import json_mapping

VALUES = "values"
"""Metadata key of the checksum and the plain values as JSON. With a single key, equal examples have equal bytes."""

_DIGITS = 16
"""Number of digits of the checksum."""


def pack(tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> bytes:
    """Return tensors and plain values (texts, numbers, lists and mappings of them) as bytes.

    Raises:
        TypeError: A value is not plain.
    """
    text = json.dumps(values, ensure_ascii=False)
    kept = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    return safetensors.torch.save(kept, metadata={VALUES: _checksum(kept, text) + text})


def unpack(data: bytes | memoryview) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and values that :func:`pack` was given. Nothing in the bytes is executed.

    Raises:
        PartitaError: The bytes are damaged. The message does not say where they come from.
    """
    data = bytes(data)
    try:
        length = struct.unpack("<Q", data[:8])[0]
        if length > min(len(data) - 8, LARGEST_HEADER):
            raise ValueError("its header is longer than its bytes")
        metadata = json_mapping(data[8 : 8 + length]).get("__metadata__")
        if not isinstance(metadata, dict) or not isinstance(held := metadata.get(VALUES), str):
            raise ValueError("it has no values")
        written, text = held[:_DIGITS], held[_DIGITS:]
        tensors = safetensors.torch.load(data)
        if written != _checksum(tensors, text):
            raise ValueError("its bytes have changed")
        return tensors, json_mapping(text)
    except (SafetensorError, ValueError, KeyError, struct.error) as error:
        raise PartitaError(f"an example is damaged: {error}") from None


def _checksum(tensors: Mapping[str, Tensor], text: str) -> str:
    """Return a checksum of the tensors, their names, types and shapes, and the values."""
    shapes = [f"{name} {tensor.dtype} {list(tensor.shape)}" for name, tensor in sorted(tensors.items())]
    return f"{checksum(tensors)}{zlib.crc32(repr([*shapes, text]).encode()):08x}"
