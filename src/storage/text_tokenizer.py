"""Reading text tokenizers of transformers from a folder, after checks that make them safe and cheap to use.

Such a tokenizer is a small program in JSON. It contains no code, but its patterns can take ages, its replacements can
multiply the length of a text, its padding and its templates can fill the memory, and its tables can point outside
themselves.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import PartitaError
from ..limits import (
    LARGEST_CHARSMAP,
    LARGEST_COUNT,
    LARGEST_VOCABULARY,
    LONGEST_REPLACEMENT,
    LONGEST_WORD,
    MOST_ENTRIES,
    MOST_GROWTH,
    MOST_LETTERS,
    TooMuch,
    beyond,
)
from .files import kind
from .untrusted import read_json

CLASSES = (
    *("PreTrainedTokenizerFast", "TokenizersBackend"),
    *("T5Tokenizer", "T5TokenizerFast", "MT5Tokenizer", "MT5TokenizerFast", "RobertaTokenizer", "RobertaTokenizerFast"),
    *("BertTokenizer", "BertTokenizerFast", "MPNetTokenizer", "MPNetTokenizerFast"),
    *("XLMRobertaTokenizer", "XLMRobertaTokenizerFast"),
)
"""Tokenizer classes that a configuration may name."""

PATTERNS = (" {2,}", r"\s+", r"\s{2,}", "▁{2,}")
"""Regular expressions that a tokenizer may use; others could take ages on some texts."""


def read_text_tokenizer(folder: Path, kinds: Any = None) -> Any:
    """The text tokenizer in a folder.

    Args:
        folder: Folder with the files of a tokenizer, as transformers writes them.
        kinds: The class of transformers that reads it. ``None`` takes the class that its configuration names.

    Raises:
        PartitaError: The tokenizer is rejected, or cannot be read.
    """
    from transformers import AutoTokenizer

    check_text_tokenizer(folder)
    try:
        found = (kinds or AutoTokenizer).from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        found(["a"], padding="longest", truncation=True, max_length=16, return_tensors="pt")
    except BaseException as error:
        raise _failure(error, f"the text tokenizer in {folder} cannot be read") from None
    return found


def tokenized(tokenizer: Any, texts: Sequence[str], max_length: int, vocabulary: int) -> Any:
    """Tokenize texts, padded to the longest: tensors ``input_ids`` and ``attention_mask``.

    Args:
        tokenizer: A tokenizer from :func:`read_text_tokenizer`.
        texts: One text per sample.
        max_length: Maximum number of text tokens; the rest is cut off.
        vocabulary: Number of text tokens that the model knows.

    Raises:
        PartitaError: The tokenizer fails, or returns text tokens that the model does not know.
    """
    try:
        found = tokenizer(list(texts), padding="longest", truncation=True, max_length=max_length, return_tensors="pt")
    except BaseException as error:
        raise _failure(error, "the text tokenizer fails on this text") from None
    ids = found["input_ids"]
    if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < vocabulary:
        raise PartitaError(
            f"the text tokenizer does not belong to this model: it returns token {int(ids.max())} of {vocabulary}"
        )
    return found


def check_text_tokenizer(folder: Path) -> None:
    """Check that the files of a text tokenizer use only features that those of known models use.

    Raises:
        PartitaError: They use others, or are damaged.
    """
    config = folder / "tokenizer_config.json"
    if kind(config):
        _check_config(read_json(config, LARGEST_VOCABULARY), config)
    for name in ("special_tokens_map.json", "added_tokens.json"):
        if kind(folder / name):
            _check_small(read_json(folder / name, LARGEST_VOCABULARY), folder / name)
    if kind(folder / "vocab.json"):
        _check_words(read_json(folder / "vocab.json", LARGEST_VOCABULARY), folder / "vocab.json")
    if kind(path := folder / "tokenizer.json"):
        content = read_json(path, LARGEST_VOCABULARY)
        model = content.pop("model", None)
        if not isinstance(model, Mapping):
            raise PartitaError(f"{path} is damaged: it describes no model")
        _check_words(model.get("vocab"), path)
        _check_words(model.get("merges") or [], path)
        _check_small({k: v for k, v in model.items() if k not in ("vocab", "merges")}, path)
        _check_small(content, path)
        _check_steps(content, path)


def _failure(error: BaseException, what: str) -> BaseException:
    """The message for an error of the library. Errors from Rust do not derive from ``Exception``."""
    if isinstance(error, Exception) or type(error).__module__.startswith("pyo3"):
        return PartitaError(f"{what}: {' '.join(str(error).split())[:300] or type(error).__name__}")
    return error


def _check_config(config: Mapping[str, Any], path: Path) -> None:
    _check_small(config, path)
    for key, value in config.items():
        if key == "auto_map" or (key.endswith("_file") and value is not None):
            raise PartitaError(f"{path}: {key} names code, or a file elsewhere: refused")
        if key.endswith("_class") and value is not None and value not in CLASSES:
            raise PartitaError(f"{path}: {key} is {value!r:.80}, and not one of {', '.join(CLASSES)}: refused")
        # the maximum length of a model is often written as 1e30
        number = isinstance(value, int | float) and key != "model_max_length"
        if number and beyond(abs(value), LARGEST_COUNT):
            raise TooMuch(f"{path}: {key} is more than any text tokenizer asks for: refused")


def _check_small(content: Any, path: Path) -> None:
    """Reject long lists other than the vocabulary, which would cost time with every text."""
    for value in _inside(content):
        if isinstance(value, Mapping | list) and beyond(len(value), MOST_ENTRIES):
            raise TooMuch(f"{path} has a list of {len(value):,} where a few are enough: refused")


def _check_words(words: Any, path: Path) -> None:
    """Check a vocabulary (a list of pairs or a mapping) or a list of merges."""
    if not isinstance(words, Mapping | list):
        raise PartitaError(f"{path} is damaged: it has no vocabulary")
    longest = total = 0
    for entry in words:
        parts = entry[:2] if isinstance(entry, list) else [entry]
        lengths = [len(part) for part in parts if isinstance(part, str)]
        longest, total = max(longest, *lengths, 0), total + sum(lengths)
    if beyond(longest, LONGEST_WORD) or beyond(total, MOST_LETTERS * 4):
        raise TooMuch(f"{path} has a vocabulary of {total:,} letters, the longest word of {longest:,}: refused")


def _check_steps(content: Mapping[str, Any], path: Path) -> None:
    growth = 1
    for step in _inside(content):
        if not isinstance(step, Mapping):
            continue
        if step.get("type") in ("Replace", "Prepend"):
            text = step.get("content", step.get("prepend"))
            growth *= max(1, len(text)) if isinstance(text, str) else 1
        if isinstance(pattern := step.get("Regex"), str) and pattern not in PATTERNS:
            raise TooMuch(f"{path} splits or replaces by {pattern[:80]!r}, which could take ages: refused")
        if "precompiled_charsmap" in step:
            _check_charsmap(step["precompiled_charsmap"], path)
        length = step.get("Fixed", step.get("pad_to_multiple_of"))
        if length is not None and (not isinstance(length, int) or beyond(length, LARGEST_COUNT)):
            raise TooMuch(f"{path} pads every text to {length!r:.40}: refused")
    if beyond(growth, MOST_GROWTH):
        raise TooMuch(f"{path} makes a text {growth:,} times as long: refused")


def _check_charsmap(encoded: Any, path: Path) -> None:
    """Check SentencePiece's normalization table: a double-array trie over bytes, whose leaves point into texts.

    Everything that can be reached from the root must lie within the arrays (Aoe, 1989; SentencePiece's
    ``normalizer.cc``).
    """
    damaged = PartitaError(f"{path} is damaged: its precompiled_charsmap leads outside itself")
    if not encoded:
        return
    if isinstance(encoded, str) and beyond(len(encoded), LARGEST_CHARSMAP):
        raise TooMuch(f"{path} has a precompiled_charsmap of {len(encoded):,} letters: refused")
    try:
        blob = base64.b64decode(encoded, validate=True)
        size = int.from_bytes(blob[:4], "little")
        units = np.frombuffer(blob, "<u4", size // 4, 4)
        texts = blob[4 + size :]
        texts.decode()
    except (TypeError, ValueError, binascii.Error):
        raise damaged from None
    if size % 4 or not len(units):
        raise damaged
    if texts and beyond(max(map(len, texts.split(b"\0"))), LONGEST_REPLACEMENT):
        raise TooMuch(f"{path} replaces a letter by a whole text: refused")
    begins = (np.frombuffer(texts, np.uint8) & 0xC0) != 0x80
    reached = np.zeros(len(units), bool)
    front = _offset(units[:1], np.zeros(1, np.int64))
    while len(front):
        if (front | 255).max() >= len(units):  # a byte can lead to any of these units
            raise damaged
        found = []
        for letter in range(1, 256):  # and is a transition if it is the label
            at = front ^ letter
            found.append(at[(units[at] & 0x800000FF) == letter])
        nodes = np.unique(np.concatenate(found))
        nodes = nodes[~reached[nodes]]
        reached[nodes] = True
        front = _offset(units[nodes], nodes)
        leaves = front[(units[nodes] >> 8 & 1).astype(bool)]
        if len(leaves) and leaves.max() >= len(units):
            raise damaged
        values = units[leaves] & 0x7FFFFFFF
        if len(values) and (values.max() >= len(begins) or not begins[values].all()):
            raise damaged


def _offset(units: np.ndarray, nodes: np.ndarray) -> np.ndarray:
    """Offset of the children of nodes, before their bytes are added."""
    wide = units.astype(np.int64)
    return nodes ^ ((wide >> 10) << ((wide & 0x200) >> 6))


def _inside(value: Any) -> Iterator[Any]:
    """A value and all values nested in it."""
    yield value
    for inner in value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ():
        yield from _inside(inner)
