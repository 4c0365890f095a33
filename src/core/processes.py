"""What processes that train together share: sums over all of their examples, and random numbers.

With these functions, several processes train like a single one with the batches of all. Without
``torch.distributed``, they change nothing. They wait for the other processes, so all processes must call them equally
often. Training does; validations need not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
import torch.distributed
from torch import Tensor
from torch.distributed.nn.functional import all_gather

_SHARED: ContextVar[dict[str, Any] | None] = ContextVar("random state that the processes share", default=None)


def world_size() -> int:
    """Number of processes that train together."""
    return torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1


def rank() -> int:
    """Rank of this process."""
    return torch.distributed.get_rank() if torch.distributed.is_initialized() else 0


def connection_lost(error: BaseException) -> bool:
    """Whether an error says that processes lost each other. Gloo, which connects CPUs, has no type for it."""
    return isinstance(error, torch.distributed.DistError) or "/gloo/transport/" in str(error)


def mean_of_all(values: Tensor) -> Tensor:
    """The mean of a tensor over the processes, without a gradient.

    A loss that divides its sum by the mean number of valid places, instead of its own number, has the gradient of the
    mean over the places of all processes, because strategies average gradients.
    """
    if world_size() == 1:
        return values
    total = values.detach().to(torch.promote_types(values.dtype, torch.float32), copy=True)
    torch.distributed.all_reduce(total)
    return total / world_size()


def largest_of_all(values: Tensor) -> Tensor:
    """The largest of each value over the processes."""
    if world_size() == 1:
        return values
    largest = values.clone()
    torch.distributed.all_reduce(largest, torch.distributed.ReduceOp.MAX)
    return largest


def of_all(values: Tensor) -> Tensor:
    """The rows ``[N, …]`` of all processes, concatenated, with a gradient. All have equally many.

    Contrastive losses compare the examples of all processes with it.
    """
    if world_size() == 1:
        return values
    if values.requires_grad:
        return torch.cat(all_gather(values.contiguous()))
    found = [torch.empty_like(values, memory_format=torch.contiguous_format) for _ in range(world_size())]
    torch.distributed.all_gather(found, values.contiguous())
    return torch.cat(found)


def from_first(*values: Tensor) -> None:
    """Replace tensors, in place, by those of the first process."""
    if world_size() > 1:
        for value in values:
            torch.distributed.broadcast(value, 0)


def seed_batch(seed: int, batch: int) -> None:
    """Seed the random numbers of a training batch: differently in each process, and those of :func:`drawing_together`.

    Args:
        seed: Seed of the training.
        batch: Number of the batch.
    """
    torch.manual_seed((seed + batch * world_size() + rank()) % 2**63)
    _SHARED.set({"seed": (seed + batch) % 2**63} if world_size() > 1 else None)


def end_batch() -> None:
    """End the batch: from now on, every process draws its own random numbers."""
    _SHARED.set(None)


@contextmanager
def drawing_together(device: torch.device) -> Iterator[None]:
    """Draw the random numbers inside the block as a single process would that trains on the same batch.

    This holds between :func:`seed_batch` and :func:`end_batch`. Otherwise, and in a single process, the block has no
    effect.
    """
    shared = _SHARED.get()
    if shared is None:
        yield
        return
    module: Any = torch if device.type == "cpu" else torch.get_device_module(device)
    where: tuple[Any, ...] = () if device.type == "cpu" else (device,)
    own, key = module.get_rng_state(*where), str(device)
    if key in shared:
        module.set_rng_state(shared[key], *where)
    else:
        module.manual_seed(shared["seed"])
    try:
        yield
    finally:
        shared[key] = module.get_rng_state(*where)
        module.set_rng_state(own, *where)


def per_example(draw: Callable[[int], Tensor], examples: int, device: torch.device, dim: int = 0) -> Tensor:
    """Random numbers for the examples of a batch, which do not depend on how many processes share the batch.

    Args:
        draw: Returns random numbers for a number of examples.
        examples: Number of examples of this process.
        device: Device of the random numbers.
        dim: Axis of the examples in the result of ``draw``.
    """
    shares = 1 if _SHARED.get() is None else world_size()
    with drawing_together(device):
        whole = draw(examples * shares)
    return whole if shares == 1 else whole.narrow(dim, rank() * examples, examples)
