"""What text conditioners share: which texts say something, and word dropout."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch


def texts_of(inputs: Sequence[Any], word_dropout: float = 0.0, seeds: Sequence[int] | None = None) -> list[str | None]:
    """The texts of a batch, ``None`` where there is none: nothing given, nothing but spaces, or every word dropped.

    Args:
        inputs: A text or ``None`` for each sample.
        word_dropout: Probability that a word, as separated by spaces, is left out (audiocraft's T5 conditioner: 0.3).
        seeds: One per sample, in training; they decide what is left out. Without them nothing is.

    Raises:
        TypeError: An input is neither.

    >>> texts_of(["slow waltz", None, "  "])
    ['slow waltz', None, None]
    """
    texts: list[str | None] = []
    for index, text in enumerate(inputs):
        if text is not None and not isinstance(text, str):
            raise TypeError(f"a prompt is text, not {type(text).__name__}: {text!r}")
        words = (text or "").split()
        if seeds is not None and word_dropout:
            keep = torch.rand(len(words), generator=torch.Generator().manual_seed(seeds[index])) >= word_dropout
            words = [word for word, kept in zip(words, keep.tolist(), strict=True) if kept]
        texts.append(" ".join(words) or None)
    return texts


def check_word_dropout(word_dropout: float) -> None:
    """Raise ``ValueError`` where it is no probability below one."""
    if not 0 <= word_dropout < 1:
        raise ValueError(f"word_dropout must be in [0, 1), not {word_dropout}")
