"""Helpers of text conditioners: reading the texts of clips, and word dropout."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import torch

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


def vocabulary_bytes(tokenizer: Any) -> bytes:
    """The words of a text tokenizer and their numbers, for the digest of a part; empty without a tokenizer."""
    return b"" if tokenizer is None else json.dumps(sorted(tokenizer.get_vocab().items())).encode()


def check_word_dropout(word_dropout: float) -> None:
    """Raise ``ValueError`` if the value is not a probability below one."""
    if not 0 <= word_dropout < 1:
        raise ValueError(f"word_dropout must be in [0, 1), not {word_dropout}")
