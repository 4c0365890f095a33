"""What a file may claim, at most: every bound in one place, applied before memory is taken or work is done.

The bounds are far beyond what anybody needs, and there so that a stranger's file can neither fill the memory nor work
without end. The environment variable ``PARTITA_LIMITS=off`` lifts all of them at once, for files one trusts. What could
touch or execute something elsewhere is refused with or without it.
"""

from __future__ import annotations

import os

from .errors import PartitaError

SWITCH = "PARTITA_LIMITS"

LARGEST_RECIPE = 1_000_000
"""Bytes of a recipe, a preset or an ablation file."""
LARGEST_CONFIG = 1_000_000
"""Bytes of a configuration in JSON."""
LARGEST_SIDECAR = 10_000_000
"""Bytes of a file beside a piece; the beats, chords and melody of an hour have 0.5 million."""
LARGEST_PROMPTS = 20_000_000
"""Bytes of a file of prompts."""
LARGEST_RESULTS = 64_000_000
"""Bytes of a report, or of results."""
LARGEST_VOCABULARY = 24_000_000
"""Bytes of a file of a text tokenizer; that of mT5 has 17 million."""
LARGEST_HEADER = 10_000_000
"""Bytes of a safetensors header; that of a model of 1,500 tensors has 0.2 million."""

MOST_DIMENSIONS = 16
"""Of a saved tensor."""
MOST_VALUES = 20_000
"""Of a recipe, keys counted and aliases written out; the largest shipped one has 285, defaults and all."""
MOST_PARTS = 200
"""Of a recipe, parts inside others counted; no shipped one has 10."""
DEEPEST = 100
"""Levels of a recipe."""
LARGEST_NUMBER = 10_000_000
"""In the arguments of a part of a saved system: no width, length or count is anywhere near."""

MOST_LAYERS = 10_000
"""Modules, parameters and buffers of a system; the largest shipped one has 1,790."""
MOST_OUTLINED = 256_000_000
"""Bytes of tensors that constructors make while a system is outlined without its weights; windows and mel bands of all
shipped recipes take less than 23 million."""
SPARE_BYTES = 1 << 29
"""What a part may hold beyond its saved weights: discriminators, buffers that are not saved."""

LONGEST_WINDOW = 600.0
"""Seconds that a stage sees at once."""
LONGEST_CLIP = 3600.0
"""Seconds of a clip to generate."""
MOST_WINDOWS = 10_000
"""Stretches in which a stage generates a clip."""
MOST_STEPS = 10_000
"""In which a stage draws."""
MOST_VARIANTS = 1_000
"""Runs of an ablation: variants, each with each seed."""
MOST_CLIPS = 1_000_000
"""That an evaluation compares."""

MOST_LISTED = 10_000
"""Files of a repository."""
MOST_FETCHED = 1_000
"""Files of a repository that are downloaded."""

LONGEST_SILENCE = 60.0
"""Seconds in which a server that was asked something sends or takes at least ``LEAST_PROGRESS`` bytes."""
LEAST_PROGRESS = 6_000
"""Bytes; 100 a second."""
MOST_ANSWERS = 20_000
"""Of a server, to one download or upload."""

MOST_LETTERS = 4_000_000
"""Of all words of a text tokenizer together; those of mT5 have 1.6 million."""
LONGEST_WORD = 256
"""Letters of a word of a text tokenizer."""
MOST_ENTRIES = 1_000
"""Of a list or mapping beside the vocabulary of a text tokenizer: special tokens, templates, steps."""
LARGEST_COUNT = 10_000
"""Of anything that the configuration of a text tokenizer asks for, such as special tokens."""
LARGEST_CHARSMAP = 2_000_000
"""Letters of a text tokenizer's table of normalization; that of T5 and mT5 has 0.3 million."""
MOST_GROWTH = 64
"""How many times longer the replacements of a text tokenizer can make a text."""
LONGEST_REPLACEMENT = 256
"""Bytes that can take the place of one letter when a text is normalized."""


class TooMuch(PartitaError):
    """A file or a request goes beyond a bound. The message ends with how to lift all of them."""

    def __init__(self, message: str) -> None:
        super().__init__(f"{message} (if you trust where it comes from, {SWITCH}=off lifts every limit)")


def kept() -> bool:
    """Whether there are bounds; not where the environment variable says so."""
    return os.environ.get(SWITCH, "").lower() not in ("off", "0", "no", "none", "false")


def beyond(value: float, most: float) -> bool:
    """Whether a value is more than a bound, where bounds are kept. NaN is.

    >>> beyond(3, 2), beyond(2, 2), beyond(float("nan"), 2)
    (True, False, True)
    """
    return not value <= most and kept()
