"""Learned embeddings of words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..core.contracts import Clip, Condition, ConditionSpec
from ..core.processes import largest_of_all
from ..core.registry import register
from .base import Conditioner
from .pseudo_words import PseudoWords
from .words import check_word_dropout, hashed_words, padded_words, texts_of


@register("conditioner", "lookup")
class Lookup(Conditioner):
    """Word embeddings that learn together with the stage; no download is needed.

    Words are lower-cased, stripped of punctuation and hashed into a fixed number of embeddings, so there is no
    vocabulary to build or to store: any word has an embedding, and rare ones may share theirs. The order of words is
    ignored. The state records which embeddings occurred in training: those of other words are random, which
    :meth:`knows` reports.

    Args:
        dim: Width of an embedding.
        num_embeddings: Number of embeddings that words are hashed into.
        max_words: Maximum number of words of a text; the rest is left out.
        word_dropout: Probability that a word of a training text is left out.
        inputs: Names of the text fields that the conditioner reads.

    Raises:
        ValueError: A value is out of range.
    """

    inputs: tuple[str, ...] = ("text",)
    kinds: ClassVar[tuple[str, ...]] = ("text",)
    trained_with_stage: ClassVar[bool] = True
    training_only = ("pseudo_words.",)
    met: Tensor

    def __init__(
        self,
        *,
        dim: int = 256,
        num_embeddings: int = 4096,
        max_words: int = 64,
        word_dropout: float = 0.0,
        inputs: tuple[str, ...] = ("text",),
    ) -> None:
        super().__init__(inputs)
        if min(dim, num_embeddings, max_words) < 1:
            raise ValueError("dim, num_embeddings and max_words must be at least 1")
        check_word_dropout(word_dropout)
        self.max_words = max_words
        self.word_dropout = word_dropout
        self.embeddings = nn.Embedding(num_embeddings, dim)
        self.pseudo_words = PseudoWords()
        # which embeddings occurred in training; the last one is for padding
        self.register_buffer("met", torch.zeros(num_embeddings + 1, dtype=torch.uint8))

    @property
    def spec(self) -> ConditionSpec:
        """One embedding per word."""
        return ConditionSpec(dim=self.embeddings.embedding_dim)

    @property
    def draws(self) -> bool:
        """Whether words are left out at random."""
        return self.word_dropout > 0

    def prepare(self, clips: Sequence[Clip]) -> dict[str, Tensor]:
        """``words`` ``[B, L]`` int64 and ``mask`` ``[B, L]`` bool of the texts, padded to the longest."""
        texts = texts_of(clips, self.inputs, self.word_dropout)
        words, mask = padded_words([self._hash(text or "") for text in texts])
        return {"words": words, "mask": mask}

    def forward(self, prepared: dict[str, Tensor]) -> Condition:
        """Embeddings ``[B, L, dim]``, zero where masked."""
        words, mask = prepared["words"], prepared["mask"]
        known = self.embeddings.num_embeddings
        plain = words.clamp(max=known - 1)
        if self.training:
            now = torch.zeros_like(self.met)
            now[torch.where(mask, plain, len(now) - 1)] = 1
            self.met |= largest_of_all(now)
        values = self.pseudo_words.embedded(words, self.embeddings(plain), known)
        return Condition(values * mask[..., None], mask)

    def word_vectors(self, text: str) -> Tensor:
        """Embeddings ``[n, dim]`` of the words of a text, from which pseudo-words can start."""
        return self.embeddings(torch.tensor(self._hash(text), dtype=torch.long, device=self.embeddings.weight.device))

    def knows(self, value: Any) -> bool:
        """Whether any word of a text shares its embedding with a word that occurred in training."""
        words = self._hash(value) if isinstance(value, str) else []
        met = self.met[:-1]
        if any(word >= len(met) for word in words):
            return True
        return not words or not bool(met.any()) or bool(met[words].any())

    def _hash(self, text: str) -> list[int]:
        known = self.embeddings.num_embeddings
        found: list[int] = []
        for plain, pseudo in self.pseudo_words.pieces(text):
            found += [*hashed_words(plain, known, self.max_words), *(known + number for number in pseudo)]
        return found[: self.max_words]
