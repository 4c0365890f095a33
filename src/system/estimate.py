"""What a training step of a part will take, from its sizes: memory, operations and seconds, before it is built."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from ..core.fit import Fit
from ..core.hardware import DEVICES_PER_MACHINE, Hardware
from ..core.part import Part


def _of_attention(queries: Any, keys: Any, values: Any, *args: Any, **options: Any) -> int:
    """Operations of fused attention, from the shapes."""
    return sdpa_flop_count(queries, keys, values)


FUSED: dict[Any, Callable[..., int]] = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _of_attention}
"""Operations of kernels that PyTorch's counter does not know."""

SINGLE = 4
"""Bytes of a weight, a gradient and each number of the optimizer's state, which are always in single precision."""


@dataclass(frozen=True)
class Step:
    """What a training step of one process takes.

    Attributes:
        trained: Number of trained parameters.
        state: Numbers that the optimizer and averaged weights keep for all trained parameters.
        largest_block: Number of parameters of the largest block, which a process gathers if weights are in shares.
        activations: Bytes that are kept for the backward pass of a batch, and of a block that is recomputed.
        forward: Operations of the forward pass of a batch.
        recomputed: Operations of a batch that the backward pass repeats.
        batches: Batches of a step.
        precision: Precision of the layers.
        moved: Bytes of weights, gradients and state that a step reads and writes.
        frozen: Number of parameters that are not trained.
    """

    trained: int
    state: int
    largest_block: int
    activations: int
    forward: int
    recomputed: int
    batches: int
    precision: str
    moved: int
    frozen: int = 0

    @property
    def operations(self) -> int:
        """Operations of a step; the backward pass takes twice those of the forward pass."""
        return (3 * self.forward + self.recomputed) * self.batches

    def memory(self, devices: int = 1, *, sharded: bool = False) -> int:
        """Bytes on each device: weights, gradients, state of the optimizer, and activations.

        Args:
            devices: Number of devices that train together.
            sharded: Whether they hold shares of the weights (FSDP2) instead of copies.
        """
        numbers = 2 * self.trained + self.frozen + self.state
        if sharded:
            # the blocks at hand: one that computes, the next one, and the gradients of one
            return SINGLE * (-(-numbers // devices) + 3 * self.largest_block) + self.activations
        return SINGLE * numbers + self.activations

    def seconds(self, hardware: Hardware, devices: int = 1, *, sharded: bool = False) -> float:
        """Seconds of a step. Communication runs beside the computation; the slower one counts."""
        single, half = hardware.single * hardware.single_share, hardware.half * hardware.share
        speed = single if self.precision == "32-true" else half
        update = self.moved / hardware.bandwidth / (devices if sharded else 1)
        return (
            max(self.operations / speed, self.communicated(devices, sharded=sharded) / _link(hardware, devices))
            + update
        )

    def communicated(self, devices: int, *, sharded: bool = False) -> float:
        """Bytes that each device sends in a step: gradients once around, or weights twice and gradients once."""
        if devices == 1:
            return 0.0
        passes = 3 * self.batches if sharded else 2
        return passes * SINGLE * self.trained * (devices - 1) / devices


def estimate(part: Part, seconds: float) -> Step | None:
    """Estimate a training step of a part; ``None`` if it cannot be outlined.

    Encoding audio and text, which frozen parts do before the step, is not counted.

    Args:
        part: The part, also on the meta device.
        seconds: Length of the training examples.
    """
    fit, blocks = part.fit_options, part.repeated_blocks
    numbers = sum(p.numel() for p in part.parameters() if p.requires_grad)
    try:
        kept, forward = _costs(part, seconds, recompute=part.recomputes)
        block = _of_a_block(part, seconds) if part.recomputes else 0
    except Exception:  # what a part of others computes may need values, or be unknown on paper
        return None
    state = _optimizer_numbers(part, fit, numbers) + (numbers if fit.ema is not None else 0)
    return Step(
        trained=numbers,
        frozen=sum(p.numel() for p in part.parameters() if not p.requires_grad),
        state=state,
        largest_block=max((sum(p.numel() for p in block.parameters()) for block in blocks), default=numbers),
        activations=kept + block,
        forward=forward,
        recomputed=forward if part.recomputes else 0,
        batches=fit.accumulate,
        precision=fit.precision,
        # Adam reads all and writes all but the gradients; the average is read and written, and the weights read
        moved=SINGLE * (2 * (2 * numbers + state) - numbers + (numbers if fit.ema is not None else 0)),
    )


def _costs(part: Part, seconds: float, *, recompute: bool) -> tuple[int, int]:
    """Bytes that are kept for the backward pass of a batch, and operations of the forward pass.

    Both are proportional to the number of examples and of equal blocks, apart from weights that are kept in half
    precision. Therefore few examples and blocks are outlined, which takes a fraction of a second for any size.
    """
    fit, blocks = part.fit_options, part.repeated_blocks
    if len(blocks) < 3 or len({_shape(block) for block in blocks}) > 1:
        return _outlined(part, seconds, fit.batch_size, recompute)
    one, two = (_outlined(part, seconds, 1, recompute, blocks[number:]) for number in (1, 2))
    more = len(blocks) - 2
    kept, forward = two[0] + more * (two[0] - one[0]), two[1] + more * (two[1] - one[1])
    copies = 0 if fit.precision == "32-true" else 2 * (_matrices(part) - len(blocks) * _matrices(blocks[0]) * recompute)
    return copies + (kept - copies) * fit.batch_size, forward * fit.batch_size


def _of_a_block(part: Part, seconds: float) -> int:
    """Bytes that a block keeps while it is recomputed."""
    blocks, fit = part.repeated_blocks, part.fit_options
    if len(blocks) < 2:
        return 0
    two, one = (_outlined(part, seconds, 1, False, blocks[number:])[0] for number in (2, 1))
    copies = 0 if fit.precision == "32-true" else 2 * _matrices(blocks[0])
    return copies + (two - one - copies) * fit.batch_size


def _outlined(
    part: Part, seconds: float, examples: int, recompute: bool, left_out: Sequence[nn.Module] = ()
) -> tuple[int, int]:
    """:func:`_costs` of some examples, without the blocks that are left out."""
    fit, step = part.fit_options, part.outline_step(examples, seconds)
    kept: dict[int, int] = {}
    with _without(left_out), _evaluating(part, recompute), FakeTensorMode(allow_non_fake_inputs=True):
        outline = _Outline(part, step)
        own = {
            name: torch.empty(value.shape, dtype=value.dtype, requires_grad=value.requires_grad)
            for name, value in (*outline.named_parameters(), *outline.named_buffers())
        }
        weights = {value.untyped_storage()._cdata for value in own.values()}

        def keep(value: Tensor) -> Tensor:
            storage = value.untyped_storage()
            if storage._cdata not in weights:
                kept[storage._cdata] = storage.nbytes()
            return value

        with (
            FlopCounterMode(display=False, custom_mapping=FUSED) as counter,
            torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value),
            torch.autocast("cpu", torch.bfloat16, enabled=fit.precision != "32-true"),
        ):
            # the graph holds the storages, so that no two of them have the same address
            graph = torch.func.functional_call(outline, own, ())
        operations = counter.get_total_flops()
        del graph
    return sum(kept.values()), operations


class _Outline(nn.Module):
    def __init__(self, part: Part, step: Callable[[], Tensor]) -> None:
        super().__init__()
        self.part, self.step = part, step

    def forward(self) -> Tensor:
        return self.step()


@contextlib.contextmanager
def _without(blocks: Sequence[nn.Module]) -> Iterator[None]:
    """Make blocks return their input."""
    for block in blocks:
        block.forward = _unchanged
    try:
        yield
    finally:
        for block in blocks:
            del block.forward


def _unchanged(x: Tensor, *others: Any) -> Tensor:
    return x


@contextlib.contextmanager
def _evaluating(part: Part, recompute: bool) -> Iterator[None]:
    """Evaluation mode, in which no statistics are collected; blocks train if they may recompute their activations."""
    modes = {module: module.training for module in part.modules()}
    part.eval()
    if recompute:
        for network in part.networks:
            network.train()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def _optimizer_numbers(part: Part, fit: Fit, numbers: int) -> int:
    """Numbers that the optimizer keeps: two for each parameter, or one of a matrix that Muon updates."""
    hidden = part.hidden_matrices if fit.optimizer == "muon" else []
    return 2 * numbers - sum(matrix.numel() for matrix in hidden)


def _matrices(module: nn.Module) -> int:
    """Number of the weights of linear layers, of which copies in half precision are kept."""
    return sum(layer.weight.numel() for layer in module.modules() if isinstance(layer, nn.Linear))


def _shape(block: nn.Module) -> tuple[Any, ...]:
    return (type(block), *((name, tuple(p.shape)) for name, p in block.named_parameters()))


def _link(hardware: Hardware, devices: int) -> float:
    """Bytes per second that each device sends on a ring of all.

    What goes around passes each machine once, so that a machine sends to the next one as much as each of its devices
    does, over the network of all of them.
    """
    if devices <= DEVICES_PER_MACHINE:
        return hardware.link
    return min(hardware.link, DEVICES_PER_MACHINE * hardware.network)
