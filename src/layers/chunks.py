"""Running layers over a long sequence chunk by chunk, with the result that they have on the whole sequence.

A local layer depends on a limited stretch of its input. Its chunks are computed with as much context on both sides as
the layer needs, and the context is cropped. A recurrent layer carries its state from chunk to chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Local:
    """A step whose output in a frame depends on a limited number of frames around it.

    Args:
        run: Function from ``[B, C, n · inputs]`` to ``[B, C', n · outputs]`` for any number of frames ``n``.
        before: Number of earlier frames that a frame of the output depends on.
        after: Number of later frames that a frame of the output depends on.
        inputs: Input positions per frame.
        outputs: Output positions per frame.
        least: Number of frames below which the output of a whole sequence is not final, even in its first frame. Layers
            that reflect their input at its edges need more than one.
    """

    run: Callable[[Tensor], Tensor]
    before: int = 0
    after: int = 0
    inputs: int = 1
    outputs: int = 1
    least: int = 1


@dataclass(frozen=True)
class Recurrent:
    """A step that depends on everything before, through a state.

    Args:
        run: Function from ``[B, C, n]`` and the state to ``[B, C', n]`` and the next state. The first state is
            ``None``.
    """

    run: Callable[[Tensor, Any], tuple[Tensor, Any]]


Step = Local | Recurrent


class Chunks:
    """One pass over a sequence that arrives in chunks.

    >>> mean = Local(lambda x: torch.nn.functional.avg_pool1d(x, 3, 1, 1), before=1, after=1)
    >>> chunks = Chunks([mean])
    >>> chunks.push(torch.ones(1, 1, 4)).shape, chunks.push(torch.ones(1, 1, 2), last=True).shape
    (torch.Size([1, 1, 3]), torch.Size([1, 1, 3]))

    Args:
        steps: Steps in the order in which they run.
    """

    def __init__(self, steps: Sequence[Step]) -> None:
        self._runs = [_LocalRun(step) if isinstance(step, Local) else _RecurrentRun(step) for step in steps]

    def push(self, chunk: Tensor | None, last: bool = False) -> Tensor | None:
        """Return the output that becomes final with the next chunk, or ``None`` if there is none.

        Args:
            chunk: The next input ``[B, C, n]``; ``None`` adds nothing.
            last: Whether the sequence ends with this chunk.
        """
        for run in self._runs:
            chunk = run(chunk, last)
        return chunk


class _LocalRun:
    def __init__(self, step: Local) -> None:
        self.step = step
        self.kept: Tensor | None = None  # the input from frame `start` on
        self.start = self.done = 0

    def __call__(self, chunk: Tensor | None, last: bool) -> Tensor | None:
        step = self.step
        if chunk is not None:
            self.kept = chunk if self.kept is None else torch.cat([self.kept, chunk], -1)
        if self.kept is None:
            return None
        total = self.start + self.kept.shape[-1] // step.inputs
        ready = total if last else total - step.after if total >= step.least else 0
        if ready <= self.done:
            return None
        made = step.run(self.kept)[..., (self.done - self.start) * step.outputs : (ready - self.start) * step.outputs]
        start = max(0, ready - step.before)
        self.kept = self.kept[..., (start - self.start) * step.inputs :]
        self.start, self.done = start, ready
        return made


class _RecurrentRun:
    def __init__(self, step: Recurrent) -> None:
        self.step = step
        self.state: Any = None

    def __call__(self, chunk: Tensor | None, last: bool) -> Tensor | None:
        if chunk is None:
            return None
        made, self.state = self.step.run(chunk, self.state)
        return made


def in_chunks(steps: Sequence[Step], whole: Tensor, length: int) -> Tensor:
    """Return the output of steps for a whole sequence ``[B, C, n]``, run ``length`` positions at a time."""
    local = [step for step in steps if isinstance(step, Local)]
    total = whole.shape[-1] // prod(step.inputs for step in local) * prod(step.outputs for step in local)
    chunks, result, done = Chunks(steps), None, 0
    for start in range(0, whole.shape[-1], length):
        made = chunks.push(whole[..., start : start + length], start + length >= whole.shape[-1])
        if made is None:
            continue
        if result is None:  # allocated once: chunks that are kept between large blocks would fragment the memory
            result = made.new_empty(*made.shape[:-1], total)
        result[..., done : done + made.shape[-1]] = made
        done += made.shape[-1]
    assert result is not None
    return result


def steps_of(layers: Sequence[Any], mirrored: bool = False) -> list[Step]:
    """Return the steps of layers that follow each other: one for each group of local layers, and one for each recurrent
    layer.

    A recurrent layer has the method ``run_chunk``, which :attr:`Recurrent.run` describes. A local layer with several
    taps has the method ``needs(start, stop)``, which returns the range of its input on which the range ``start`` to
    ``stop`` of its output depends, and if it changes the rate, the property ``rates``: its input and output positions
    per frame. All other layers process each position by itself.

    Args:
        layers: Layers from ``[B, C, n]`` to ``[B, C', m]``.
        mirrored: Whether layers pad their input by reflecting it at its edges.
    """
    steps: list[Step] = []
    group: list[Any] = []
    for layer in [*layers, None]:
        if layer is not None and not hasattr(layer, "run_chunk"):
            group.append(layer)
            continue
        if group:
            steps.append(_local(group, mirrored))
            group = []
        if layer is not None:
            steps.append(Recurrent(layer.run_chunk))
    return steps


def _local(layers: list[Any], mirrored: bool) -> Local:
    inputs, outputs = rates(layers)
    start, stop = needs(layers, 0, outputs)
    before, after = -(start // inputs), -(-stop // inputs) - 1

    def run(x: Tensor) -> Tensor:
        for layer in layers:
            x = layer(x)
        return x

    # A reflection makes the first frames depend on as many later frames, and the last on as many earlier ones.
    return Local(run, before + mirrored * after, after, inputs, outputs, 1 + mirrored * (before + after))


def rates(layers: Sequence[Any]) -> tuple[int, int]:
    """Return the input and output positions per frame of layers that follow each other."""
    each = [rates(layer) if isinstance(layer, nn.Sequential) else getattr(layer, "rates", (1, 1)) for layer in layers]  # type: ignore[arg-type]
    return prod(inputs for inputs, _ in each), prod(outputs for _, outputs in each)


def needs(layers: Sequence[Any], start: int, stop: int) -> tuple[int, int]:
    """Return the range of the input on which a range of the output of layers depends."""
    for layer in reversed(layers):
        if isinstance(layer, nn.Sequential):
            start, stop = needs(layer, start, stop)  # type: ignore[arg-type]
        elif hasattr(layer, "needs"):
            start, stop = layer.needs(start, stop)
    return start, stop


def convolution_needs(start: int, stop: int, *, taps: int, left: int, stride: int = 1) -> tuple[int, int]:
    """Return the input range of a range of a convolution's output.

    Args:
        start: First output position.
        stop: Output position after the last.
        taps: Length of the filter, including the gaps of a dilation.
        left: Padding on the left.
        stride: Stride of the output.
    """
    return start * stride - left, (stop - 1) * stride - left + taps


def transposed_needs(start: int, stop: int, *, taps: int, left: int, stride: int) -> tuple[int, int]:
    """Return the input range of a range of a transposed convolution's output, of which ``left`` positions are cropped.

    Args:
        start: First output position.
        stop: Output position after the last.
        taps: Length of the filter.
        left: Output positions that are cropped on the left.
        stride: Stride of the input.
    """
    return -(-(start + left - taps + 1) // stride), (stop - 1 + left) // stride + 1
