"""Upper bounds on what a file may claim: all in one place, and checked before memory is allocated or work is done.

The bounds are far beyond what anybody needs. They are there so that a file from a stranger can neither fill the memory
nor cause endless work. The environment variable ``PARTITA_LIMITS=off`` lifts all of them at once, for files that one
trusts. What could touch or execute anything outside the file is refused in either case.
"""

from __future__ import annotations

import os

from .errors import PartitaError

SWITCH = "PARTITA_LIMITS"

LARGEST_RECIPE = 1_000_000
"""Maximum size of a recipe, a preset or an ablation file, in bytes."""
LARGEST_CONFIG = 1_000_000
"""Maximum size of a configuration in JSON, in bytes."""
LARGEST_SIDECAR = 10_000_000
"""Maximum bytes of a file of labels beside a piece; the beats, chords and melody of an hour take 0.5 million."""
LARGEST_PROMPTS = 20_000_000
"""Maximum size of a file of prompts, in bytes."""
LARGEST_RESULTS = 64_000_000
"""Maximum size of a report or of a file of results, in bytes."""
LARGEST_VOCABULARY = 24_000_000
"""Maximum size of a file of a text tokenizer, in bytes; that of mT5 has 17 million."""
LARGEST_HEADER = 10_000_000
"""Maximum size of a safetensors header, in bytes; that of a model of 1,500 tensors has 0.2 million."""

MOST_DIMENSIONS = 16
"""Maximum number of dimensions of a saved tensor."""
MOST_VALUES = 20_000
"""Maximum number of values of a recipe, including its keys and with aliases expanded; the largest shipped recipe has
285, including all defaults."""
MOST_PARTS = 200
"""Maximum number of parts of a recipe, including parts inside other parts; every shipped recipe has fewer than 10."""
DEEPEST = 100
"""Maximum nesting depth of a recipe."""
LARGEST_NUMBER = 10_000_000
"""Largest number in the arguments of a part of a saved system; real widths, lengths and counts are far smaller."""

MOST_LAYERS = 10_000
"""Maximum number of modules, parameters and buffers of a system; the largest shipped system has 1,790."""
MOST_OUTLINED = 256_000_000
"""Maximum size, in bytes, of the tensors that constructors make while a system is outlined without its weights; the
windows and mel bands of all shipped recipes take less than 23 million."""
SPARE_BYTES = 1 << 29
"""Bytes that a part may hold beyond its saved weights, for discriminators and buffers that are not saved."""

LONGEST_WINDOW = 600.0
"""Maximum length of the window that a stage sees at once, in seconds."""
LONGEST_CLIP = 3600.0
"""Maximum length of a clip to generate, in seconds."""
MOST_WINDOWS = 10_000
"""Maximum number of windows in which a stage generates a clip."""
MOST_STEPS = 10_000
"""Maximum number of sampling steps of a stage."""
MOST_VARIANTS = 1_000
"""Maximum number of runs of an ablation, which trains each variant with each seed."""
MOST_CLIPS = 1_000_000
"""Maximum number of clips that an evaluation compares."""

MOST_LISTED = 10_000
"""Maximum number of files of a repository that are listed."""
MOST_FETCHED = 1_000
"""Maximum number of files of a repository that are downloaded."""

LONGEST_SILENCE = 60.0
"""Time, in seconds, in which a server must send or accept at least ``LEAST_PROGRESS`` bytes of a request."""
LEAST_PROGRESS = 6_000
"""Minimum number of bytes that are transferred in ``LONGEST_SILENCE`` seconds: 100 a second."""
MOST_ANSWERS = 20_000
"""Maximum number of responses of a server to one download or upload."""

MOST_LETTERS = 4_000_000
"""Maximum number of characters of all words of a text tokenizer together; those of mT5 have 1.6 million."""
LONGEST_WORD = 256
"""Maximum number of characters of a word of a text tokenizer."""
MOST_ENTRIES = 1_000
"""Maximum number of entries of a list or mapping of a text tokenizer other than its vocabulary, such as special tokens,
templates and steps."""
LARGEST_COUNT = 10_000
"""Largest count that the configuration of a text tokenizer may ask for, such as a number of special tokens."""
LARGEST_CHARSMAP = 2_000_000
"""Maximum size of a text tokenizer's normalization table, in characters; that of T5 and mT5 has 0.3 million."""
MOST_GROWTH = 64
"""Maximum factor by which the replacements of a text tokenizer can lengthen a text."""
LONGEST_REPLACEMENT = 256
"""Maximum number of bytes that can replace one character when a text is normalized."""


class TooMuch(PartitaError):
    """A file or a request goes beyond a bound. The message ends with how to lift all of them."""

    def __init__(self, message: str) -> None:
        super().__init__(f"{message} (if you trust where it comes from, {SWITCH}=off lifts every limit)")


def kept() -> bool:
    """Whether limits apply. They do unless the environment variable ``PARTITA_LIMITS`` is ``off``."""
    return os.environ.get(SWITCH, "").lower() not in ("off", "0", "no", "none", "false")


def beyond(value: float, most: float) -> bool:
    """Whether a value exceeds a bound. NaN does; nothing does where limits are lifted.

    >>> beyond(3, 2), beyond(2, 2), beyond(float("nan"), 2)
    (True, False, True)
    """
    return not value <= most and kept()
