"""Pseudo-words: learned vectors that stand for words in prompts (textual inversion, arXiv 2208.01618)."""

from __future__ import annotations

import re
from collections.abc import Iterator

import torch
from torch import Tensor, nn

_MARKED = re.compile(r"<([A-Za-z][\w-]{0,63})>")
NAME = re.compile(r"[A-Za-z][\w-]{0,63}")
"""What a pseudo-word can be called. A prompt has it in angle brackets: ``<name>``."""


class PseudoWords(nn.Module):
    """The pseudo-words that a text conditioner knows. They are not saved with it.

    A pseudo-word is one or more vectors in the space of the conditioner's word embeddings. Their numbers follow those
    of the words of the vocabulary.
    """

    def __init__(self) -> None:
        super().__init__()
        self.vectors = nn.ParameterDict()

    def __bool__(self) -> bool:
        return len(self.vectors) > 0

    def add(self, name: str, vectors: Tensor) -> None:
        """Make a pseudo-word known: its vectors ``[n, dim]``.

        Raises:
            ValueError: The name is taken, or cannot be one.
        """
        if not NAME.fullmatch(name):
            raise ValueError(
                f"a pseudo-word has at most 64 letters, digits, _ and -, and begins with a letter, unlike {name!r:.80}"
            )
        if name in self.vectors:
            raise ValueError(f"the pseudo-word <{name}> is known already")
        self.vectors[name] = nn.Parameter(vectors.clone())

    def pieces(self, text: str) -> Iterator[tuple[str, list[int]]]:
        """Yield the plain parts of a text, each with the numbers of the vectors that follow it.

        Numbers count from 0. What is in angle brackets but no pseudo-word is plain text.
        """
        begin = 0
        for found in _MARKED.finditer(text):
            if found[1] in self.vectors:
                yield text[begin : found.start()], self._numbers(found[1])
                begin = found.end()
        yield text[begin:], []

    def embedded(self, numbers: Tensor, words: Tensor, known: int) -> Tensor:
        """Embeddings of words and pseudo-words ``[B, L, dim]``.

        Args:
            numbers: ``[B, L]`` int64: below ``known`` for words, from there on for pseudo-words.
            words: Embeddings ``[B, L, dim]`` of the words; what stands in the places of pseudo-words is replaced.
            known: Number of words of the vocabulary.
        """
        if not self:
            return words
        table = torch.cat([vector.to(words.dtype) for vector in self.vectors.values()])
        pseudo = numbers >= known
        return torch.where(pseudo[..., None], table[(numbers - known).clamp(min=0)], words)

    def _numbers(self, name: str) -> list[int]:
        first = 0
        for other, vectors in self.vectors.items():
            if other == name:
                return list(range(first, first + len(vectors)))
            first += len(vectors)
        raise KeyError(name)
