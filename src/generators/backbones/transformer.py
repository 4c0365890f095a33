"""The transformer as a backbone, with a key-value cache."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ...core.registry import register
from ...layers.kv_cache import KeyValueCache
from ...layers.native_decoder import DecoderState, has_native_layers
from ...layers.positions import PositionKind, Positions
from ...layers.static_decoder import StaticState
from ...layers.transformer_blocks import DEFAULT_BLOCK, Again, BlockConfig, check_sizes
from ...layers.transformer_blocks import Transformer as Layers
from ..network import NetworkSetting
from .base import Backbone, SequenceContext


@dataclass
class TransformerState:
    """Keys and values of the places so far, and the positions of all places."""

    cache: KeyValueCache
    positions: Positions

    @property
    def length(self) -> int:
        """Number of places that have been processed."""
        return self.cache.length


@register("backbone", "transformer")
class Transformer(Backbone):
    """A pre-norm transformer without biases; the defaults are MusicGen-small's (arXiv 2306.05284).

    Args:
        width: Width of the sequence.
        depth: Number of blocks.
        num_heads: Attention heads; twice their number must divide the width.
        positions: ``sinusoidal``, added to the input, ``rotary``, in every self-attention, or ``relative``, a learned
            bias by distance in every self-attention (T5's, which MusicLM and AudioLM use).
        block: Configuration of the blocks.
        again_every: Distance of the blocks at whose inputs the conditions with fusion ``add`` are added again
            (MusiConGen, arXiv 2407.15060: 4): with 4, these are the blocks 4, 8 and so on, counted from 0. 0 adds them
            once, to the embeddings.
        again_below: Number of the first block from which on they are not added again; ``None`` for all blocks.

    Attributes:
        compiled: Whether steps of generation are compiled.

    Raises:
        ValueError: The width is not divisible by the heads, or a number is out of range.
    """

    compiled: bool = False

    def __init__(
        self,
        *,
        width: int = 1024,
        depth: int = 24,
        num_heads: int = 16,
        positions: PositionKind = "sinusoidal",
        block: BlockConfig = DEFAULT_BLOCK,
        again_every: int = 0,
        again_below: int | None = None,
    ) -> None:
        super().__init__()
        check_sizes(width, depth, num_heads)
        if again_every < 0 or (again_below is not None and again_below < 0):
            raise ValueError("again_every and again_below must be at least 0")
        self.width, self.depth, self.num_heads = width, depth, num_heads
        self.positions, self.block = positions, block
        last = depth if again_below is None else min(depth, again_below)
        self.again_blocks = frozenset(range(again_every, last, again_every) if again_every else ())

    @property
    def adds_again(self) -> bool:  # type: ignore[override]
        """Whether there are blocks at whose inputs conditions are added again."""
        return bool(self.again_blocks)

    def make_layers(self, setting: NetworkSetting) -> None:
        """Create the blocks."""
        self.layers = Layers(
            self.width,
            self.depth,
            self.num_heads,
            block=self.block,
            positions=self.positions,
            cross=setting.cross,
            checkpointing=setting.checkpointing,
        )

    def compile_steps(self) -> None:
        """Compile whole steps. Several places at once, as of a prefix, are not compiled."""
        self.compiled = True

    def new_state(self, context: SequenceContext) -> TransformerState | DecoderState | StaticState:
        """An empty cache with room for all places."""
        native = has_native_layers(self.layers)
        if native or self.compiled:
            return (DecoderState if native else StaticState)(
                self.layers,
                self.layers.positions(context.positions),
                context.positions.shape[1],
                mask=context.mask,
                cross=context.cross,
                cross_mask=context.cross_mask,
                again=self._again(context),
            )
        cache = self.layers.new_cache(
            context.positions.shape[1], mask=context.mask, cross=context.cross, cross_mask=context.cross_mask
        )
        return TransformerState(cache, self.layers.positions(context.positions))

    def forward(
        self,
        x: Tensor,
        context: SequenceContext,
        state: TransformerState | DecoderState | StaticState | None = None,
    ) -> Tensor:
        """The sequence after the last normalization, ``[B, N, width]``."""
        if isinstance(state, DecoderState | StaticState):
            return state(x)
        start = 0 if state is None else state.length
        again = self._again(context)
        if again is not None:
            again = again.slice(start, start + x.shape[1])
        if state is not None:
            places = state.positions.slice(start, start + x.shape[1])
            return self.layers(
                x, places, cross=context.cross, cross_mask=context.cross_mask, cache=state.cache, again=again
            )
        return self.layers(
            x,
            self.layers.positions(context.positions).slice(0, x.shape[1]),
            mask=None if context.mask is None else context.mask[:, : x.shape[1]],
            cross=context.cross,
            cross_mask=context.cross_mask,
            again=again,
        )

    def _again(self, context: SequenceContext) -> Again | None:
        return None if context.added is None else Again(context.added, self.again_blocks)
