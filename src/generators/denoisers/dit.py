"""The diffusion transformer as a denoiser."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from ...core.registry import register
from ...layers.diffusion_transformer import DiffusionTransformer
from ...layers.transformer_blocks import DEFAULT_BLOCK, BlockConfig, check_sizes
from .base import Denoiser, DenoiserContext, DenoiserSetting


@register("denoiser", "dit")
class DiT(Denoiser):
    """A diffusion transformer (DiT, arXiv 2212.09748) with the modulation of PixArt-α (arXiv 2310.00426).

    Args:
        width: Width of the sequence.
        depth: Number of blocks.
        num_heads: Attention heads; twice their number must divide the width.
        block: Configuration of the blocks.

    Raises:
        ValueError: The width is not divisible by the heads, or a number is out of range.
    """

    def __init__(
        self, *, width: int = 1024, depth: int = 24, num_heads: int = 16, block: BlockConfig = DEFAULT_BLOCK
    ) -> None:
        super().__init__()
        check_sizes(width, depth, num_heads)
        self.width, self.depth, self.num_heads, self.block = width, depth, num_heads, block

    def make_layers(self, setting: DenoiserSetting) -> None:
        """Create the blocks."""
        self.layers = DiffusionTransformer(
            self.width,
            setting.outputs,
            self.depth,
            self.num_heads,
            block=self.block,
            cross=setting.cross,
            checkpointing=setting.checkpointing,
        )

    def prepare(self, context: DenoiserContext, frames: int) -> DenoiserContext:
        """The keys and values of cross-attention, the masks and the positions."""
        prepared = self.layers.prepare(frames, context.mask, context.cross, context.cross_mask)
        return replace(context, prepared=prepared)

    def forward(self, x: Tensor, noise_level: Tensor, context: DenoiserContext) -> Tensor:
        """The prediction ``[B, S, outputs]``."""
        return self.layers(
            x,
            noise_level,
            mask=context.mask,
            cross=context.cross,
            cross_mask=context.cross_mask,
            pooled=context.pooled,
            prepared=context.prepared,
        )
