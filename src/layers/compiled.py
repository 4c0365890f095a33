"""Compilation of what generation repeats, with PyTorch's compiler and CUDA graphs.

Tests exchange the backend, because Inductor takes long.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from threading import Lock
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import PartitaError

BACKEND: str | Callable[..., Any] = "inductor"
"""Backend of ``torch.compile``."""

RECORDED = ("cuda",)
"""Types of devices on which compiled steps are recorded."""

WARM_UPS = 3
"""Number of runs before a recording, in which code is compiled and libraries allocate memory of their own."""

MOST_VARIANTS = 1024
"""Number of shapes for which a function is compiled at most. PyTorch's own limit of 8 is meant for accidents."""

_recording = Lock()


def compile_blocks(blocks: Sequence[nn.Module]) -> None:
    """Compile each block of a network in place. Blocks of the same structure share their code.

    Args:
        blocks: Blocks of a copy that only generates.
    """
    for block in blocks:
        block.compile(backend=BACKEND, dynamic=False)


def call_compiled(function: Callable[..., Tensor], *arguments: Any) -> Tensor:
    """Call a function as a single graph, which is compiled once for each combination of shapes.

    Args:
        function: A function of a module. It must not wait for the device.
        arguments: Tensors, or objects with tensors.
    """
    return _compiled(function, BACKEND)(*arguments)


@cache
def _compiled(function: Callable[..., Tensor], backend: str | Callable[..., Any]) -> Callable[..., Tensor]:
    return torch.compile(function, backend=backend, fullgraph=True, dynamic=False)


def recorded(run: Callable[[], Tensor], device: torch.device) -> Callable[[], Tensor]:
    """Record the kernels of a call as a CUDA graph.

    ``torch.compile(mode="reduce-overhead")`` does this too, but it ties graphs to the thread that compiled them (they
    fail in others, as those in which audio is streamed), and compiles again for other memory.

    Args:
        run: Function that always reads and writes the same memory, with the same result if called again.
        device: The GPU.

    Returns:
        A function that repeats the call with what the memory then contains. It keeps no reference to ``run``.
    """
    with _recording, torch.cuda.device(device):
        stream = torch.cuda.Stream(device)
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UPS):
                run()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            output = run()

    def replay() -> Tensor:
        graph.replay()
        return output.clone()  # the next replay overwrites it

    return replay


@contextmanager
def compiling() -> Iterator[None]:
    """Allow many shapes, and explain errors of the compiler.

    Raises:
        PartitaError: PyTorch cannot compile a function.
    """
    limits: dict[str, Any] = {
        "cache_size_limit": MOST_VARIANTS,
        "accumulated_cache_size_limit": MOST_VARIANTS,
    }  # in all versions
    try:
        with torch._dynamo.config.patch(limits):
            yield
    except Exception as error:
        if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise
        reason = " ".join(str(error).split())
        raise PartitaError(
            f"PyTorch cannot compile the steps here ({reason:.200}): generate without compile"
        ) from error
