"""A transformer over hashed words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...core.registry import register
from ...layers.positions import PositionKind
from ...layers.transformer_blocks import DEFAULT_BLOCK, BlockConfig, Transformer, check_sizes
from ..words import hashed_words, padded_words
from .base import TextTower


@register("text_tower", "words-transformer")
class WordsTransformer(TextTower):
    """A non-causal transformer over embeddings of words, as BERT but from scratch and without a vocabulary.

    Words are lower-cased, stripped of punctuation and hashed into a fixed number of embeddings, as those of ``lookup``.
    A learned start token precedes them. The defaults are the sizes of BERT-base (arXiv 1810.04805).

    Args:
        width: Width of the transformer.
        depth: Number of blocks.
        num_heads: Attention heads.
        num_embeddings: Number of embeddings that words are hashed into.
        max_words: Maximum number of words of a text; the rest is left out.
        positions: ``sinusoidal``, ``rotary`` or ``relative``.
        pooling: The output at the start token (``first``), or the ``mean`` of the outputs at it and all words.
        block: Configuration of the blocks.

    Raises:
        ValueError: A size is out of range.
    """

    def __init__(
        self,
        *,
        width: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        num_embeddings: int = 30522,
        max_words: int = 512,
        positions: PositionKind = "sinusoidal",
        pooling: Literal["first", "mean"] = "first",
        block: BlockConfig = DEFAULT_BLOCK,
    ) -> None:
        super().__init__()
        check_sizes(width, depth, num_heads)
        if min(num_embeddings, max_words) < 1:
            raise ValueError(f"num_embeddings and max_words must be at least 1, not {num_embeddings} and {max_words}")
        self.width, self.depth, self.num_heads = width, depth, num_heads
        self.num_embeddings, self.max_words = num_embeddings, max_words
        self.positions, self.pooling, self.block = positions, pooling, block

    def build(self, dim: int) -> None:
        """Create the embeddings and the transformer."""
        super().build(dim)
        self.embeddings = nn.Embedding(self.num_embeddings, self.width)
        self.start = nn.Parameter(torch.randn(1, 1, self.width))
        self.transformer = Transformer(
            self.width, self.depth, self.num_heads, block=self.block, positions=self.positions, causal=False
        )
        self.output = nn.Linear(self.width, dim)

    def tokenize(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Convert texts to the numbers of their words ``[B, L]`` and their mask ``[B, L]``."""
        return padded_words([hashed_words(text, self.num_embeddings, self.max_words) for text in texts])

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Embed words ``[B, L]`` as ``[B, dim]``."""
        words = self.embeddings(tokens)
        x = torch.cat([self.start.expand(len(words), -1, -1).to(words.dtype), words], 1)
        mask = F.pad(mask, (1, 0), value=True)
        ids = torch.arange(x.shape[1], device=x.device)[None]
        x = self.transformer(x, self.transformer.positions(ids), mask=mask)
        if self.pooling == "first":
            return self.output(x[:, 0])
        return self.output((x * mask[..., None]).sum(1) / mask.sum(1, keepdim=True))
