"""Steps of a transformer that all have the same shapes and addresses, so that they are compiled and recorded once.

On a GPU, most of a step would otherwise pass between its many small kernels. Attention covers all of the memory under a
mask, and the place of a step is a number on the device.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from threading import Lock
from typing import NamedTuple
from weakref import WeakKeyDictionary, finalize

import torch
from torch import Tensor

from . import compiled
from .attention import Mask, biased, key_mask
from .kv_cache import LayerCache
from .positions import Positions
from .transformer_blocks import Again, Transformer

CAPACITY_MULTIPLE = 256
"""Capacities are rounded up to a multiple of this number, so that sequences of similar lengths share a step."""

CROSS_MULTIPLE = 64
"""Lengths of sequences for cross-attention are rounded up to a multiple of this number."""

MOST_KEPT = 4
"""Maximum number of memories per transformer that are kept for further sequences."""


class MemoryShape(NamedTuple):
    """What sequences must have in common to use the same memory, one after the other.

    Attributes:
        batch: Number of samples.
        capacity: Maximum number of places.
        rows: Number of rows of positions and masks: 1 if all samples share them.
        cross: Length of the sequence for cross-attention; 0 without one.
        again: Numbers of the blocks at whose inputs something is added again.
        dtype: Dtype of the input.
        autocast: Dtype of autocast; ``None`` without it.
        device: Device of the input.
    """

    batch: int
    capacity: int
    rows: int
    cross: int
    again: frozenset[int]
    dtype: torch.dtype
    autocast: torch.dtype | None
    device: torch.device


class LayerMemory:
    """Keys and values of one layer.

    Those of all layers are not in one tensor, because compilers write in place to whole inputs, but may copy an input
    of which several parts are written.

    Args:
        capacity: Maximum number of places.

    Attributes:
        keys: ``[B, heads, capacity, head width]``; ``None`` before the first place.
        values: Likewise.
        cross: Keys and values ``[B, heads, L, head width]`` for cross-attention; ``None`` without it.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.keys: Tensor | None = None
        self.values: Tensor | None = None
        self.cross: tuple[Tensor, Tensor] | None = None

    def write(self, at: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Write the keys and values of the places ``at`` ``[N]``, and return the whole memory.

        The memory is allocated in the first call, which must not be compiled, because autocast decides the dtype.
        """
        if self.keys is None or self.values is None:
            batch, heads, _, width = keys.shape
            shape = (batch, heads, self.capacity, width)
            with torch.inference_mode(False):  # also usable outside of inference mode
                self.keys, self.values = (keys.new_zeros(shape) for _ in range(2))
        self.keys.index_copy_(2, at, keys)
        self.values.index_copy_(2, at, values.to(self.values.dtype))
        return self.keys, self.values

    def begin(self, cross: tuple[Tensor, Tensor] | None, length: int) -> None:
        """Begin another sequence. What is not overwritten must be zero, because NaN would pass any mask.

        Args:
            cross: Keys and values for cross-attention; ``None`` without it.
            length: Number of places for them.
        """
        for memory in (self.keys, self.values):
            if memory is not None:
                memory.zero_()
        if cross is None:
            return
        if self.cross is None:
            with torch.inference_mode(False):
                keys, values = (part.new_zeros(*part.shape[:2], length, part.shape[3]) for part in cross)
            self.cross = keys, values
        for memory, part in zip(self.cross, cross, strict=True):
            _fill(memory, part, 2)


class _PlacesInLayer(LayerCache):
    """The memory of a layer in the form of a cache, to which the places ``at`` ``[N]`` are added."""

    def __init__(self, memory: LayerMemory, at: Tensor) -> None:
        super().__init__(memory.capacity, memory.cross)
        self.memory, self.at = memory, at

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Write keys and values, and return those of the whole memory."""
        return self.memory.write(self.at, keys, values)


class Memory:
    """What the steps of a sequence read and write.

    Args:
        shape: Its shape.
        depth: Number of layers.
        width: Width of the input.
        positions: Positions of which it gets as many as the capacity.

    Attributes:
        at: ``[1]`` int64, the place of the next step.
        places: ``[capacity]`` int64, the numbers of all places.
        valid: ``[rows, capacity]`` bool, false on padding of a prefix.
        cross_mask: ``[B, L]`` bool, false on padding; ``None`` without cross-attention.
        input: ``[B, 1, width]``, the input of a step.
        again: What is added again in all places, ``[B, capacity, width]``; ``None`` if nothing is.
        positions: Added positions, rotations or numbers of all places, as in :class:`.positions.Positions`.
        layers: Keys and values of each layer.
        replay: The recorded step; ``None`` where it has not been recorded.
    """

    def __init__(self, shape: MemoryShape, depth: int, width: int, positions: Positions) -> None:
        with torch.inference_mode(False):  # also usable outside of inference mode
            device = shape.device
            self.at = torch.zeros(1, dtype=torch.long, device=device)
            self.places = torch.arange(shape.capacity, device=device)
            self.valid = torch.ones(shape.rows, shape.capacity, dtype=torch.bool, device=device)
            self.cross_mask = (
                torch.ones(shape.batch, shape.cross, dtype=torch.bool, device=device) if shape.cross else None
            )
            self.input = torch.zeros(shape.batch, 1, width, dtype=shape.dtype, device=device)
            self.again: Again | None = None
            if shape.again:
                size = (shape.batch, shape.capacity, width)
                self.again = Again(torch.zeros(size, dtype=shape.dtype, device=device), shape.again)
            table, axis = _table(positions)
            sizes = list(table.shape)
            sizes[0], sizes[axis] = shape.rows, shape.capacity
            self.positions = table.new_zeros(sizes)
        self.layers = [LayerMemory(shape.capacity) for _ in range(depth)]
        self.replay: Callable[[], Tensor] | None = None


def advance(layers: Transformer, memory: Memory, x: Tensor, at: Tensor) -> Tensor:
    """The sequence after the last normalization, ``[B, N, width]``, for the places ``at`` ``[N]``.

    Repeated calls with the same input write and return the same numbers.

    Args:
        layers: The transformer.
        memory: Keys, values and positions.
        x: Input ``[B, N, width]``.
        at: ``[N]`` int64, consecutive numbers.
    """
    keys, queries = memory.places, at[:, None]
    over_self = Mask((((keys <= queries) & memory.valid[:, None]) | (keys == queries))[:, None])
    over_cross = key_mask(memory.cross_mask)
    rotations = None
    if layers.position_kind == "sinusoidal":
        x = x + memory.positions.index_select(1, at)
    elif layers.position_kind == "rotary":
        rotations = memory.positions.index_select(2, at)
    else:
        over_self = biased(over_self, layers.relative(memory.positions.index_select(1, at), memory.positions))
    again = None if memory.again is None else memory.again.values.index_select(1, at)
    for index, (block, layer) in enumerate(zip(layers.blocks, memory.layers, strict=True)):
        if memory.again is not None and again is not None and index in memory.again.blocks:
            x = x + again
        x = block(x, over_self, rotations, None, over_cross, _PlacesInLayer(layer, at))
    return layers.norm(x)


class StaticState:
    """A sequence that a transformer computes place by place in compiled steps.

    Several places at once, as of a prefix, are computed without compilation. Where steps are recorded, the recording is
    kept with the memory for further sequences.

    Args:
        layers: The transformer.
        positions: Positions of all places that the sequence will ever have, with batch size 1 or that of the sequence.
        capacity: Maximum number of places.
        mask: ``[B, capacity]`` bool, false on padding of a prefix; ``None`` means no padding.
        cross: ``[B, L, width]``, the sequence for cross-attention; ``None`` without it.
        cross_mask: ``[B, L]`` bool, false on padding; ``None`` means no padding.
        again: What is added again in all places; ``None`` if nothing is.

    Attributes:
        length: Number of places that have been processed.
    """

    def __init__(
        self,
        layers: Transformer,
        positions: Positions,
        capacity: int,
        *,
        mask: Tensor | None = None,
        cross: Tensor | None = None,
        cross_mask: Tensor | None = None,
        again: Again | None = None,
    ) -> None:
        self.length, self.capacity = 0, capacity
        self._layers = layers
        self._positions, self._mask, self._cross, self._cross_mask = positions, mask, cross, cross_mask
        self._again = again
        self._memory: Memory | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """Return the sequence after the last normalization, ``[B, N, width]``, for the next places ``[B, N, width]``.

        Raises:
            ValueError: There is no room for them.
        """
        places = x.shape[1]
        if self.length + places > self.capacity:
            raise ValueError(f"the cache holds {self.capacity} places, not {self.length + places}")
        memory = self._memory = self._memory or self._begin(x)
        if places > 1 or memory.layers[0].keys is None:
            out = advance(self._layers, memory, x, memory.at + memory.places[:places])
        else:
            out = self._step(memory, x)
        memory.at.add_(places)
        self.length += places
        return out

    def _step(self, memory: Memory, x: Tensor) -> Tensor:
        """One place in a compiled step."""
        memory.input.copy_(x)
        if memory.replay is not None:
            return memory.replay()
        run = partial(compiled.call_compiled, advance, self._layers, memory, memory.input, memory.at)
        if x.device.type not in compiled.RECORDED:
            return run()
        memory.replay = compiled.recorded(run, x.device)
        return memory.replay()

    def _begin(self, x: Tensor) -> Memory:
        """Take a memory for a sequence with inputs like ``x``, and write to it what all places share."""
        positions, mask, cross, cross_mask = self._positions, self._mask, self._cross, self._cross_mask
        table, axis = _table(positions)
        kind = x.device.type
        shape = MemoryShape(
            batch=len(x),
            capacity=_round_up(self.capacity, CAPACITY_MULTIPLE),
            rows=max(len(table), 1 if mask is None else len(mask)),
            cross=0 if cross is None else _round_up(cross.shape[1], CROSS_MULTIPLE),
            again=frozenset() if self._again is None else self._again.blocks,
            dtype=x.dtype,
            autocast=torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None,
            device=x.device,
        )
        pool = _pools.setdefault(self._layers, _Pool())
        memory = pool.take(shape) or Memory(shape, len(self._layers.blocks), self._layers.width, positions)
        finalize(self, pool.give, shape, memory).atexit = False
        memory.at.zero_()
        _fill(memory.positions, table, axis)
        if memory.again is not None and self._again is not None:
            _fill(memory.again.values, self._again.values, 1)
        memory.valid.fill_(True)
        if mask is not None:
            memory.valid[:, : mask.shape[1]] = mask
        if memory.cross_mask is not None and cross is not None:
            valid = cross.new_ones(cross.shape[:2], dtype=torch.bool) if cross_mask is None else cross_mask
            _fill(memory.cross_mask, valid, 1)
        for block, layer in zip(self._layers.blocks, memory.layers, strict=True):
            layer.begin(None if cross is None else block.cross_attention.keys_values(cross), shape.cross)
        return memory


class _Pool:
    """The memories of a transformer that no sequence uses, at most :data:`MOST_KEPT`."""

    def __init__(self) -> None:
        self._free: list[tuple[MemoryShape, Memory]] = []
        self._lock = Lock()

    def take(self, shape: MemoryShape) -> Memory | None:
        """Take a memory of a shape; ``None`` if there is none."""
        with self._lock:
            for index, (free, _) in enumerate(self._free):
                if free == shape:
                    return self._free.pop(index)[1]
        return None

    def give(self, shape: MemoryShape, memory: Memory) -> None:
        """Give back a memory; the one that has been free for longest may be dropped."""
        with self._lock:
            self._free = [*self._free, (shape, memory)][-MOST_KEPT:]


# No memory refers to its transformer, which would then live forever.
_pools: WeakKeyDictionary[Transformer, _Pool] = WeakKeyDictionary()


def _table(positions: Positions) -> tuple[Tensor, int]:
    """The positions of all places, and the axis of the places."""
    if positions.added is not None:
        return positions.added, 1
    if positions.rotary is not None:
        return positions.rotary, 2
    assert positions.relative is not None
    return positions.relative[1], 1


def _fill(memory: Tensor, values: Tensor, axis: int) -> None:
    """Write values to the beginning of a memory along an axis, and zeros to its rest."""
    memory.zero_()
    memory.narrow(axis, 0, values.shape[axis]).copy_(values)


def _round_up(number: int, multiple: int) -> int:
    """The smallest multiple that is not smaller than a number."""
    return -(-number // multiple) * multiple
