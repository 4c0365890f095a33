"""Helpers of text conditioners: reading the texts of clips, and word dropout."""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..core.contracts import Clip


def texts_of(clips: Sequence[Clip], inputs: Sequence[str], word_dropout: float = 0.0) -> list[str | None]:
    """The texts of a batch; ``None`` if a text is missing or blank, or if word dropout removed every word.

    Args:
        clips: One clip per sample.
        inputs: Names of text fields; the texts of several fields are concatenated.
        word_dropout: Probability that a word, as separated by spaces, is left out (audiocraft's T5 conditioner: 0.3).
            The seed of each clip decides which words; a clip without a seed keeps all.

    Raises:
        TypeError: An input is not a text.

    >>> texts_of([Clip({"text": text}, 1.0) for text in ("slow waltz", None, "  ")], ["text"])
    ['slow waltz', None, None]
    """
    texts: list[str | None] = []
    for clip in clips:
        words: list[str] = []
        for name in inputs:
            text = clip.fields.get(name)
            if text is not None and not isinstance(text, str):
                raise TypeError(f"a prompt must be text, not {type(text).__name__}: {text!r}")
            words += (text or "").split()
        if clip.seed is not None and word_dropout:
            keep = torch.rand(len(words), generator=torch.Generator().manual_seed(clip.seed)) >= word_dropout
            words = [word for word, kept in zip(words, keep.tolist(), strict=True) if kept]
        texts.append(" ".join(words) or None)
    return texts


def hashed_words(text: str, num_embeddings: int, max_words: int) -> list[int]:
    """The numbers of the words of a text, lower-cased, stripped of punctuation and hashed.

    Args:
        text: The text.
        num_embeddings: The numbers are below this.
        max_words: Maximum number of words; the rest is left out.

    >>> hashed_words("Slow, slow waltz!", 4096, 64)
    [477, 477, 3376]
    """
    words = re.findall(r"\w+", text.lower())[:max_words]
    return [zlib.crc32(word.encode()) % num_embeddings for word in words]


def padded_words(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """The numbers of words ``[B, L]`` int64 and their mask ``[B, L]`` bool, padded to the longest row."""
    length = max(1, *(len(row) for row in rows))
    words = torch.tensor([[*row, *[0] * (length - len(row))] for row in rows])
    counts = torch.tensor([[len(row)] for row in rows])
    return words, torch.arange(length) < counts


def vocabulary_bytes(tokenizer: Any) -> bytes:
    """The words of a text tokenizer and their numbers, for the digest of a part; empty without a tokenizer."""
    return b"" if tokenizer is None else json.dumps(sorted(tokenizer.get_vocab().items())).encode()


def check_word_dropout(word_dropout: float) -> None:
    """Raise ``ValueError`` if the value is not a probability below one."""
    if not 0 <= word_dropout < 1:
        raise ValueError(f"word_dropout must be in [0, 1), not {word_dropout}")
