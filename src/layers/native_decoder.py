"""Steps of a transformer in one call each, with keys and values in memory that is allocated once."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor, nn

from .large_pages import LargePages
from .native_library import native_library
from .native_linear import LinearStruct, NativeLinear, ScratchStruct, address, cores, rounding_memory
from .positions import Positions
from .transformer_blocks import Again, Block, Transformer

MOST_ROWS = 512
"""Number of rows of a prefix that are computed at once, which bounds the memory."""


NORMS = (nn.LayerNorm, nn.RMSNorm)
"""Norms that the kernels compute."""


class NormStruct(ctypes.Structure):
    """The ``Norm`` of ``csrc/decoder.c``."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("weight", "bias")),
        ("epsilon", ctypes.c_double),
        *((name, ctypes.c_int64) for name in ("root_mean_square", "present")),
    ]


class BlockStruct(ctypes.Structure):
    """The ``Block`` of ``csrc/decoder.c``."""

    _fields_ = [
        *((name, NormStruct) for name in ("self_norm", "cross_norm", "feed_forward_norm")),
        *((name, NormStruct) for name in ("self_queries", "self_keys", "cross_queries")),
        *((name, LinearStruct) for name in ("self_input", "self_output", "cross_input", "cross_output")),
        *((name, LinearStruct) for name in ("expand", "contract")),
        ("again", ctypes.c_int64),
    ]


class StackStruct(ctypes.Structure):
    """The ``Stack`` of ``csrc/decoder.c``."""

    _fields_ = [
        ("blocks", ctypes.POINTER(BlockStruct)),
        ("norm", NormStruct),
        *((name, ctypes.c_int64) for name in ("depth", "width", "heads", "hidden", "gated", "cross")),
    ]


class SequenceStruct(ctypes.Structure):
    """The ``Sequence`` of ``csrc/decoder.c``."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("keys", "values", "cross_keys", "cross_values", "cross_lengths")),
        *((name, ctypes.c_void_p) for name in ("order", "ranks", "added", "again", "rotations", "numbers", "biases")),
        *(
            (name, ctypes.c_int64)
            for name in ("batch", "capacity", "cross_capacity", "half", "shared_positions", "distances")
        ),
    ]


def has_native_layers(layers: Transformer) -> bool:
    """Whether all layers of a transformer are such that the kernels compute them."""
    linears = (NativeLinear, *NORMS, nn.Identity)
    return all(
        isinstance(module, linears) for block in layers.blocks for module in block.modules() if not [*module.children()]
    ) and isinstance(layers.norm, NORMS)


class DecoderState:
    """A sequence that a transformer with native layers computes place by place.

    A sample has the same bits in every batch, whatever the padding. With rounded weights, keys and values are stored in
    bfloat16.

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
        library = native_library()
        assert library is not None
        self._step = library.partita_step
        self.length, self.capacity = 0, capacity
        first = layers.blocks[0]
        self._width, self._heads, self._hidden = layers.width, layers.num_heads, first.feed_forward.contract.in_features
        self._wide = max(3 * layers.width, first.feed_forward.expand.out_features)
        self._work = sum(layer.weight.numel() for layer in first.modules() if isinstance(layer, NativeLinear))
        rounded = first.self_attention.query_key_value.precision != "fp32"
        self._dtype = torch.bfloat16 if rounded else torch.float32
        self._blocks = (BlockStruct * len(layers.blocks))(*(_block(block) for block in layers.blocks))
        self._stack = StackStruct(
            blocks=self._blocks,
            norm=_norm(layers.norm),
            depth=len(layers.blocks),
            width=layers.width,
            heads=layers.num_heads,
            hidden=self._hidden,
            gated=first.feed_forward.gated,
            cross=cross is not None,
        )
        self._tables = _position_tables(positions, layers)
        if again is not None:
            for index in again.blocks:
                self._blocks[index].again = True
        self._sequence = SequenceStruct(
            capacity=capacity,
            half=rounded,
            shared_positions=len(next(iter(self._tables.values()))) == 1,
            distances=self._tables["biases"].shape[1] if "biases" in self._tables else 0,
        )
        if cross is not None:
            self._sequence.cross_capacity = cross.shape[1]
            self._tables |= _cross(layers, cross, cross_mask, self._dtype)
        if again is not None:
            self._tables["again"] = again.values.float().contiguous()
        if mask is not None and not bool(mask.all()):
            self._tables["order"] = mask.logical_not().long().argsort(dim=1, stable=True).int()
            self._tables["ranks"] = mask.long().cumsum(1)
        self._scratches: dict[tuple[int, int], tuple[ScratchStruct, list[Tensor]]] = {}

    def _allocate(self, batch: int) -> None:
        """Allocate keys and values, and pass on where all tables are."""
        shape = (self._stack.depth, batch, self._heads, self.capacity, self._width // self._heads)
        memory = LargePages()
        self._tables |= {name: memory.empty(*shape, dtype=self._dtype) for name in ("keys", "values")}
        self._sequence.batch = batch
        for name, table in self._tables.items():
            setattr(self._sequence, name, address(table))

    def __call__(self, x: Tensor) -> Tensor:
        """Return the sequence after the last normalization, ``[B, N, width]``, for the next places ``[B, N, width]``.

        Raises:
            ValueError: There is no room for them.
        """
        batch, places, _ = x.shape
        if self.length + places > self.capacity:
            raise ValueError(f"the cache holds {self.capacity} places, not {self.length + places}")
        if not self._sequence.batch:
            self._allocate(batch)
        parts = [self._some(part) for part in x.split(max(1, MOST_ROWS // batch), dim=1)]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def _some(self, x: Tensor) -> Tensor:
        batch, places, _ = x.shape
        out = x.float().clone(memory_format=torch.contiguous_format)
        threads = cores(self._work * batch * places)
        scratch = self._scratch(batch * places, threads)
        self._step(
            ctypes.byref(self._stack),
            ctypes.byref(self._sequence),
            ctypes.c_void_p(out.data_ptr()),
            ctypes.c_int64(places),
            ctypes.c_int64(self.length),
            ctypes.byref(scratch),
            ctypes.c_int64(threads),
        )
        self.length += places
        return out

    def _scratch(self, rows: int, threads: int) -> ScratchStruct:
        """Return working memory for a number of rows and threads; only the last is kept."""
        key = (rows, threads)
        if key not in self._scratches:
            widest = max(self._width, self._hidden)
            scores = threads * (self.capacity + self._sequence.cross_capacity)
            sizes = {"normed": widest, "mixed": self._width, "wide": self._wide}
            memory = {name: torch.empty(rows, size) for name, size in sizes.items()}
            memory |= {"scores": torch.empty(scores), **rounding_memory(rows, widest)}
            pointers = {name: address(tensor) for name, tensor in memory.items()}
            self._scratches = {key: (ScratchStruct(**pointers), [*memory.values()])}
        return self._scratches[key][0]


def _norm(norm: nn.Module) -> NormStruct:
    """Return a norm for the kernels; an identity is not present."""
    if isinstance(norm, nn.RMSNorm):
        epsilon = torch.finfo(torch.float32).eps if norm.eps is None else norm.eps
        return NormStruct(address(norm.weight), None, epsilon, True, True)
    if isinstance(norm, nn.LayerNorm):
        return NormStruct(address(norm.weight), address(norm.bias), norm.eps, False, True)
    return NormStruct(None, None, 0.0, False, False)


def _block(block: Block) -> BlockStruct:
    """Return a block for the kernels."""
    own, feed_forward = block.self_attention, block.feed_forward
    fields = {
        "self_norm": _norm(block.self_norm),
        "feed_forward_norm": _norm(block.feed_forward_norm),
        "self_queries": _norm(own.query_norm),
        "self_keys": _norm(own.key_norm),
        "self_input": own.query_key_value.struct,
        "self_output": own.output.struct,
        "expand": feed_forward.expand.struct,
        "contract": feed_forward.contract.struct,
    }
    if hasattr(block, "cross_attention"):
        cross = block.cross_attention
        fields |= {
            "cross_norm": _norm(block.cross_norm),
            "cross_queries": _norm(cross.query_norm),
            "cross_input": cross.query.struct,
            "cross_output": cross.output.struct,
        }
    return BlockStruct(**fields)


def _cross(layers: Transformer, cross: Tensor, mask: Tensor | None, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return keys and values for cross-attention of all blocks, those that are no padding first, and their numbers."""
    batch, length, _ = cross.shape
    lengths = torch.full((batch,), length) if mask is None else mask.sum(1)
    if mask is not None:
        order = mask.logical_not().long().argsort(dim=1, stable=True)
        cross = cross.gather(1, order[..., None].expand_as(cross))
    pairs = [block.cross_attention.keys_values(cross) for block in layers.blocks]
    keys, values = (torch.stack([pair[i].to(dtype) for pair in pairs]).contiguous() for i in (0, 1))
    return {"cross_keys": keys, "cross_values": values, "cross_lengths": lengths}


def _position_tables(positions: Positions, layers: Transformer) -> dict[str, Tensor]:
    """Return the tables of positions, without gaps."""
    if positions.added is not None:
        return {"added": positions.added.float().contiguous()}
    if positions.rotary is not None:
        return {"rotations": torch.view_as_real(positions.rotary).contiguous()}
    assert positions.relative is not None
    numbers = positions.relative[1].int().contiguous()
    most = int(numbers.max())
    biases = layers.relative.of_distances(torch.arange(-most, most + 1)).float().T.contiguous()
    return {"numbers": numbers, "biases": biases}
