"""Weights in a safetensors file, with a checksum that reveals any change since they were written."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..errors import PartitaError
from .hub_cache import remedy
from .untrusted import read_header

CHECKSUM = "crc32"
"""Metadata key of the checksum."""


def write_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write contiguous tensors and their checksum.

    Raises:
        PartitaError: The file cannot be written.
    """
    try:
        save_file(dict(tensors), path, metadata={"format": "pt", CHECKSUM: checksum(tensors)})
    except SafetensorError as error:
        raise PartitaError(f"{path} cannot be written: {error}") from None
    _sort_metadata(path)


def _sort_metadata(path: Path) -> None:
    """Sort the metadata, whose order safetensors leaves to chance, so that equal weights make equal files."""
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode().ljust(length)
        if len(text) == length:
            file.seek(8)
            file.write(text)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file. The checksum must match if the file has one, which not all writers add.

    Raises:
        PartitaError: The file is damaged, or not a safetensors file.
    """
    read_header(path)
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (the file is not a mapping)
            written = (file.metadata() or {}).get(CHECKSUM)
    except (SafetensorError, OSError) as error:
        raise PartitaError(f"{path} is damaged or no safetensors file: {error}{remedy(path)}") from None
    if written is not None and written != checksum(tensors):
        raise PartitaError(
            f"{path} is damaged: its tensors are not the ones that were written"
            + (remedy(path) or ". Delete its folder, and train or download it again")
        )
    return tensors


def checksum(tensors: Mapping[str, Tensor]) -> str:
    """CRC-32, in hexadecimal, of all names and values, sorted by name.

    >>> checksum({"a": torch.zeros(2), "b": torch.ones(1)}) == checksum({"b": torch.ones(1), "a": torch.zeros(2)})
    True
    """
    found = 0
    for name in sorted(tensors):
        values = tensors[name].detach().cpu().contiguous().flatten().view(torch.uint8)
        found = zlib.crc32(values.numpy().data, zlib.crc32(name.encode(), found))
    return f"{found:08x}"
