"""Reading folders and files from strangers: what is checked before their content is used.

A system contains no code, so nothing can be executed. A hostile file can still be huge, claim to be huge, cause
something huge to be made, or point elsewhere. Every check here needs no more memory than the file that it rejects.
"""

from __future__ import annotations

import json
import math
import os
import re
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import Any

from ..errors import PartitaError
from ..limits import LARGEST_CONFIG, LARGEST_HEADER, MOST_DIMENSIONS, TooMuch, beyond, limits_apply
from .hub_cache import places, remedy

DTYPES = {
    "BOOL": (8, "bool"),
    "U8": (8, "uint8"),
    "I8": (8, "int8"),
    "F8_E4M3": (8, "float8_e4m3fn"),
    "F8_E5M2": (8, "float8_e5m2"),
    "I16": (16, "int16"),
    "U16": (16, "uint16"),
    "F16": (16, "float16"),
    "BF16": (16, "bfloat16"),
    "I32": (32, "int32"),
    "U32": (32, "uint32"),
    "F32": (32, "float32"),
    "I64": (64, "int64"),
    "U64": (64, "uint64"),
    "F64": (64, "float64"),
    "C64": (64, "complex64"),
}
"""Size in bits and name in torch of each data type of safetensors."""


def own_file(folder: Path, name: str, largest: int | None = None) -> Path:
    """The path of a file of a folder, which must be a regular file inside the folder of at most ``largest`` bytes.

    Links are followed as long as they stay inside. In a snapshot of the Hub cache, they may lead to the cache's stores.

    Raises:
        PartitaError: The file is not like that; the message says why.
    """
    path = folder / name
    try:
        resolved = path.resolve(strict=True)
        status = resolved.stat()
    except (OSError, RuntimeError) as error:
        raise PartitaError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if not any(resolved.is_relative_to(place) for place in places(folder)):
        raise PartitaError(f"{path} leads out of its folder, to {resolved}: refused; put the file itself there")
    if not stat.S_ISREG(status.st_mode):
        raise PartitaError(f"{path} is not a regular file: refused")
    if largest is not None and beyond(status.st_size, largest):
        raise TooMuch(f"{path} has {status.st_size:,} bytes, more than such a file can have ({largest:,}): refused")
    return path


def read_bytes(path: Path, largest: int) -> bytes:
    """The content of a regular file of at most ``largest`` bytes; pipes and devices are rejected.

    Raises:
        PartitaError: The file is of another kind or larger, or cannot be read.
    """
    with opened(path) as file:
        size = os.fstat(file.fileno()).st_size
        if beyond(size, largest):
            raise TooMuch(f"{path} has {size:,} bytes, more than such a file can have ({largest:,}): refused")
        # Endless files of the kernel have size 0.
        content = file.read(largest + 1 if limits_apply() else -1) if size else b""
        while content and len(content) < size and (more := file.read(size - len(content))):
            content += more
    return content or b""


def read_text(path: Path, largest: int) -> str:
    """The content of a regular text file of at most ``largest`` bytes.

    Raises:
        PartitaError: The file is of another kind or larger, cannot be read, or is not UTF-8.
    """
    try:
        return read_bytes(path, largest).decode()
    except UnicodeDecodeError as error:
        raise PartitaError(f"{path} cannot be read: it is not a text in UTF-8 ({error.reason})") from None


@contextmanager
def opened(path: Path) -> Iterator[FileIO]:
    """Open a regular file for reading. A pipe or a device is not even opened, because it may block forever.

    Raises:
        PartitaError: It is not a regular file, or cannot be read, now or inside the block.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise PartitaError(f"{path} is not a regular file: refused")
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        with FileIO(os.open(path, flags), closefd=True) as file:
            yield file
    except (OSError, ValueError) as error:  # ValueError: a name with a null character
        raise PartitaError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from None


def read_json(path: Path, largest: int = LARGEST_CONFIG) -> dict[str, Any]:
    """The JSON mapping in a file.

    Raises:
        PartitaError: The file is not a JSON mapping, larger than ``largest`` bytes, or nested too deep.
    """
    return _mapping(read_bytes(path, largest), path)


def read_header(path: Path) -> dict[str, tuple[str, list[int]]]:
    """Names, types and shapes of the tensors in a safetensors file, whose size must be exactly what they need.

    Raises:
        PartitaError: The file is damaged, or its header describes more than the file holds.
    """
    entries, size = header_entries(path)
    entries.pop("__metadata__", None)
    tensors, spans = {}, []
    for name, entry in entries.items():
        match entry:
            case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [int(begin), int(end)]} if (
                dtype in DTYPES
                and not beyond(len(shape), MOST_DIMENSIONS)
                and all(type(n) is int and 0 <= n < 1 << 48 for n in shape)
            ):
                fits = (end - begin) * 8 == math.prod(shape) * DTYPES[dtype][0]
            case _:
                fits = False
        if not fits:
            raise PartitaError(f"{path} is damaged: its header does not describe {name[:80]!r} properly{remedy(path)}")
        tensors[name] = (dtype, shape)
        spans.append((begin, end))
    reached = 0
    for begin, end in sorted(spans):
        if begin != reached:
            raise PartitaError(f"{path} is damaged: its tensors overlap, or leave gaps{remedy(path)}")
        reached = end
    if reached != size:
        raise PartitaError(
            f"{path} is damaged: its header describes {reached:,} bytes, it holds {size:,}{remedy(path)}"
        )
    return tensors


def header_entries(path: Path) -> tuple[dict[str, Any], int]:
    """The header of a safetensors file as it is stored, including its metadata, and the number of bytes after it.

    Raises:
        PartitaError: The file has no valid header.
    """
    with opened(path) as file:
        size = os.fstat(file.fileno()).st_size
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
        if length > size - 8 or beyond(length, LARGEST_HEADER):
            raise PartitaError(
                f"{path} is no safetensors file: its header claims {length:,} bytes of {size:,}{remedy(path)}"
            )
        try:
            return json_mapping(file.read(length)), size - 8 - length
        except ValueError as error:
            raise PartitaError(f"{path} is damaged: its header is {error}{remedy(path)}") from None


def check_name(name: str, source: str) -> None:
    """Check that a file name of a repository is harmless.

    Raises:
        PartitaError: It leads out of the folder, or contains control characters.
    """
    if not name.isprintable() or "\\" in name or name.startswith(("/", "~")) or re.search(r"(^|/)\.{0,2}(/|$)", name):
        raise PartitaError(f"{source} holds a file with the name {name[:80]!r}: refused")


def json_mapping(content: str | bytes, **options: Any) -> dict[str, Any]:
    """Parse JSON that must be a mapping.

    Args:
        content: The JSON.
        options: Further arguments of ``json.loads``.

    Raises:
        ValueError: The JSON is not a mapping, is nested too deep, or repeats a key; the message describes it.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            raise ValueError("a key occurs twice")
        return found

    try:
        found = json.loads(content, object_pairs_hook=unique, **options)
    except RecursionError:
        raise ValueError("not valid JSON: it is nested far too deep") from None
    except ValueError as error:
        raise ValueError(f"not valid JSON: {str(error)[:200]}") from None
    if not isinstance(found, dict):
        raise ValueError("not a JSON object")
    return found


def _mapping(content: bytes, path: Path) -> dict[str, Any]:
    try:
        return json_mapping(content)
    except ValueError as error:
        raise PartitaError(f"{path} is {error}") from None
