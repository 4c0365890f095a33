"""Memory in large pages: tensors of their own, wherever they lie."""

import gc
import mmap
from types import SimpleNamespace

import pytest
import torch

from partita.layers import large_pages
from partita.layers.large_pages import ALIGNMENT, CHUNK, LargePages

SHAPES = [(3, 5), (0,), (1,), (1024, 1024), (7, 1000, 3), (CHUNK // 8 + 1,), (2, 2)]


@pytest.mark.parametrize("system", ["with them", "without them", "refusing them"])
def test_tensors_are_whole_aligned_and_their_own(system, monkeypatch):
    known = {name: getattr(mmap, name) for name in ("mmap", "MAP_PRIVATE", "MAP_ANONYMOUS")}
    if system != "with them":
        advice = {"MADV_HUGEPAGE": 10_000} if system == "refusing them" else {}  # which no system knows
        monkeypatch.setattr(large_pages, "mmap", SimpleNamespace(**known, **advice))
    memory, made = LargePages(), []
    for number, shape in enumerate(SHAPES):
        dtype = (torch.float32, torch.bfloat16, torch.int8)[number % 3]
        tensor = memory.empty(*shape, dtype=dtype)
        assert tensor.shape == shape
        assert tensor.dtype == dtype
        assert tensor.is_contiguous()
        assert tensor.data_ptr() % ALIGNMENT == 0
        made.append(tensor.fill_(number))
    del memory
    gc.collect()
    assert all((tensor == number).all() for number, tensor in enumerate(made))
