"""A transformer over patches of a spectrum."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...core.registry import register
from ...layers.positions import Positions, sinusoidal
from ...layers.transformer_blocks import DEFAULT_BLOCK, BlockConfig, Transformer, check_sizes
from .base import AudioTower


@register("audio_tower", "spectrogram-transformer")
class SpectrogramTransformer(AudioTower):
    """Patches of the spectrum in a non-causal transformer (AST, arXiv 2104.01778; ViT, arXiv 2010.11929).

    The defaults are the sizes of ViT-B. The spectrum is padded with zeros to whole patches. The blocks have no biases.

    Args:
        width: Width of the transformer.
        depth: Number of blocks.
        num_heads: Attention heads.
        patch: Frames and bands of a patch; patches do not overlap.
        positions: ``learned``, or ``sinusoidal``, of which one half encodes the time and the other half the frequency.
        pooling: ``mean`` of all outputs, or the output of a learned ``class`` token.
        block: Configuration of the blocks.
        checkpointing: Whether to recompute each block in the backward pass, which saves memory.

    Raises:
        ValueError: A size is out of range.
    """

    def __init__(
        self,
        *,
        width: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        patch: tuple[int, int] = (16, 16),
        positions: Literal["learned", "sinusoidal"] = "learned",
        pooling: Literal["mean", "class"] = "mean",
        block: BlockConfig = DEFAULT_BLOCK,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        check_sizes(width, depth, num_heads)
        if min(patch) < 1:
            raise ValueError(f"patch must be two positive numbers, not {list(patch)}")
        if positions == "sinusoidal" and width % 4:
            raise ValueError(f"width must be a multiple of 4 with sinusoidal positions, not {width}")
        self.width, self.depth, self.num_heads = width, depth, num_heads
        self.patch = (patch[0], patch[1])
        self.positions, self.pooling = positions, pooling
        self.block, self.checkpointing = block, checkpointing

    def build(self, frames: int, bands: int, dim: int) -> None:
        """Create the patches, the positions and the transformer."""
        super().build(frames, bands, dim)
        grid = (-(-frames // self.patch[0]), -(-bands // self.patch[1]))
        self.grid = grid
        self.patches = nn.Linear(self.patch[0] * self.patch[1], self.width)
        if self.positions == "learned":
            self.places = nn.Parameter(0.02 * torch.randn(1, grid[0] * grid[1], self.width))
        else:
            time, band = torch.meshgrid(*(torch.arange(size) for size in grid), indexing="ij")
            both = [sinusoidal(ids.flatten(), self.width // 2) for ids in (time, band)]
            self.register_buffer("places", torch.cat(both, 1)[None], persistent=False)
        self.start = nn.Parameter(0.02 * torch.randn(1, 1, self.width)) if self.pooling == "class" else None
        self.transformer = Transformer(
            self.width,
            self.depth,
            self.num_heads,
            block=self.block,
            causal=False,
            checkpointing=self.checkpointing,
        )
        self.output = nn.Linear(self.width, dim)

    def forward(self, spectrum: Tensor) -> Tensor:
        """Embed spectra ``[N, frames, bands]`` as ``[N, dim]``."""
        (frames, bands), (times, rows) = self.patch, self.grid
        padded = F.pad(spectrum, (0, rows * bands - spectrum.shape[2], 0, times * frames - spectrum.shape[1]))
        cut = padded.unflatten(1, (times, frames)).unflatten(3, (rows, bands))
        x = self.patches(cut.transpose(2, 3).flatten(3).flatten(1, 2)) + self.places
        if self.start is not None:
            x = torch.cat([self.start.expand(len(x), -1, -1).to(x.dtype), x], 1)
        x = self.transformer(x, Positions())
        return self.output(x[:, 0] if self.start is not None else x.mean(1))
