"""Memory in large pages: a processor that reads much of it looks up fewer addresses, and reads it faster."""

from __future__ import annotations

import math
import mmap
from contextlib import suppress

import torch
from torch import Tensor

PAGE = 2**21
"""Bytes of a large page on most processors."""
CHUNK = 2**26
"""Minimum number of bytes that are reserved at once. The system provides only what is written to."""
ALIGNMENT = 64
"""Bytes of a line of the cache."""


class LargePages:
    """Memory for tensors that are read as a whole, one after the other, such as the weights of a network.

    Tensors are packed, so that small ones share a page. Where the system has no large pages, they have small ones.
    """

    def __init__(self) -> None:
        self._rest = torch.empty(0, dtype=torch.uint8)

    def empty(self, *shape: int, dtype: torch.dtype) -> Tensor:
        """Return a tensor with a shape and data type; its content is not set."""
        size = math.prod(shape) * dtype.itemsize
        whole = -(-size // ALIGNMENT) * ALIGNMENT
        if whole > len(self._rest):
            self._rest = _reserve(max(whole, CHUNK))
        taken, self._rest = self._rest[:size], self._rest[whole:]
        return taken.view(dtype).view(shape)


def _reserve(size: int) -> Tensor:
    """Return bytes that begin with a page."""
    memory = mmap.mmap(-1, size + PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a system without them
            memory.madvise(mmap.MADV_HUGEPAGE)
    reserved = torch.frombuffer(memory, dtype=torch.uint8)
    start = -reserved.data_ptr() % PAGE
    return reserved[start : start + size]
