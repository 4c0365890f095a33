"""Upper bounds on sizes and counts in files and requests, checked before memory is allocated or work is done.

The bounds are far above any practical need. They prevent an untrusted file from exhausting memory or computing time.
The environment variable ``PARTITA_LIMITS=off`` lifts all of them at once, for trusted files. Content that could access
or execute anything outside the file is refused regardless.
"""

from __future__ import annotations

import os

from .errors import PartitaError

SWITCH = "PARTITA_LIMITS"

LARGEST_RECIPE = 1_000_000
"""Maximum size of a recipe, a preset or an ablation file, in bytes."""
LARGEST_CONFIG = 1_000_000
"""Maximum size of a JSON configuration, in bytes."""
LARGEST_SIDECAR = 10_000_000
"""Maximum size of the label file of a piece, in bytes; beats, chords and melody of one hour take 0.5 million."""
LARGEST_PROMPTS = 20_000_000
"""Maximum size of a prompt file, in bytes."""
LARGEST_RESULTS = 64_000_000
"""Maximum size of a report or a results file, in bytes."""
LARGEST_VOCABULARY = 24_000_000
"""Maximum size of a text tokenizer file, in bytes; that of mT5 has 17 million."""
LARGEST_HEADER = 10_000_000
"""Maximum size of a safetensors header, in bytes; that of a model with 1,500 tensors has 0.2 million."""
LARGEST_AUDIO = 4_000_000_000
"""Maximum size of the audio in one row of a data set, in bytes; an hour of 24-bit stereo at 96 kHz has 2 billion."""
LARGEST_INDEX = 256_000_000
"""Maximum size of an index of shards, in bytes; that of a million pieces has 20 million."""
MOST_SHARDS = 1_000_000
"""Maximum number of shards of one split; at 64 MB each, they hold 64 TB."""

MOST_DIMENSIONS = 16
"""Maximum number of dimensions of a saved tensor."""
MOST_VALUES = 20_000
"""Maximum number of values in a recipe, including keys, with aliases expanded; the largest shipped recipe has 285,
including all defaults."""
MOST_PARTS = 200
"""Maximum number of parts in a recipe, including nested parts; every shipped recipe has fewer than 10."""
DEEPEST = 100
"""Maximum nesting depth of a recipe."""
LARGEST_NUMBER = 10_000_000
"""Largest number in the arguments of a saved part; real widths, lengths and counts are far smaller."""

MOST_LAYERS = 30_000
"""Maximum number of modules, parameters and buffers in a system; the largest shipped system has about 4,500."""
MOST_OUTLINED = 256_000_000
"""Maximum size, in bytes, of the tensors that constructors allocate while a system is built on the meta device; the
window functions and filters of each shipped recipe take less than 50 million."""
SPARE_BYTES = 1 << 29
"""Memory, in bytes, that a part may take beyond its saved weights, for unsaved discriminators and buffers."""

LONGEST_WINDOW = 600.0
"""Maximum length of a stage's window, in seconds."""
LONGEST_CLIP = 3600.0
"""Maximum length of a generated clip, in seconds."""
MOST_WINDOWS = 10_000
"""Maximum number of windows in which a stage generates a clip."""
MOST_STEPS = 10_000
"""Maximum number of sampling steps of a stage."""
MOST_VARIANTS = 1_000
"""Maximum number of runs in an ablation, which trains each variant with each seed."""
MOST_CLIPS = 1_000_000
"""Maximum number of clips that an evaluation compares."""

MOST_LISTED = 10_000
"""Maximum number of files that are listed from a repository."""
MOST_FETCHED = 1_000
"""Maximum number of files that are downloaded from a repository."""

LONGEST_SILENCE = 60.0
"""Time, in seconds, within which a server must send or accept at least ``LEAST_PROGRESS`` bytes of a request."""
LEAST_PROGRESS = 6_000
"""Minimum number of bytes transferred within ``LONGEST_SILENCE`` seconds, which is 100 per second."""
MOST_ANSWERS = 20_000
"""Maximum number of server responses during one download or upload."""

MOST_LETTERS = 4_000_000
"""Maximum total number of characters in the vocabulary of a text tokenizer; that of mT5 has 1.6 million."""
LONGEST_WORD = 256
"""Maximum number of characters in one vocabulary entry of a text tokenizer."""
MOST_ENTRIES = 1_000
"""Maximum number of entries in a list or mapping of a text tokenizer other than its vocabulary, such as special tokens,
templates and processing steps."""
LARGEST_COUNT = 10_000
"""Largest count in the configuration of a text tokenizer, such as a number of special tokens."""
LARGEST_CHARSMAP = 2_000_000
"""Maximum size of a text tokenizer's normalization table, in characters; that of T5 and mT5 has 0.3 million."""
MOST_GROWTH = 64
"""Maximum factor by which the replacements of a text tokenizer can lengthen a text."""
LONGEST_REPLACEMENT = 256
"""Maximum number of bytes that can replace one character when a text is normalized."""


class TooMuch(PartitaError):
    """A file or a request exceeds a limit. The message ends with how to lift all limits."""

    def __init__(self, message: str) -> None:
        super().__init__(f"{message} (if you trust where it comes from, {SWITCH}=off lifts every limit)")


def limits_apply() -> bool:
    """Return whether limits apply, which they do unless the environment variable ``PARTITA_LIMITS`` is ``off``."""
    return os.environ.get(SWITCH, "").lower() not in ("off", "0", "no", "none", "false")


def beyond(value: float, most: float) -> bool:
    """Return whether a value exceeds a limit. NaN always exceeds it; no value does if limits are lifted.

    >>> beyond(3, 2), beyond(2, 2), beyond(float("nan"), 2)
    (True, False, True)
    """
    return not value <= most and limits_apply()
