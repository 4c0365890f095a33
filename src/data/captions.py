"""Captions composed of the attributes of a clip, in varying words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np

SLOW_BELOW = 76
FAST_FROM = 112
"""Boundaries between slow, moderate and fast tempos, in beats per minute."""

_TEMPO_WORDS = {
    "slow": ("slow", "slow", "calm", "unhurried"),
    "moderate": ("moderate", "moderate", "moderately paced", "walking-pace"),
    "fast": ("fast", "fast", "lively", "quick"),
}
_WORDINGS = (
    "{a tempo} {genre} in {key} for {instruments}",
    "{a tempo} {genre} for {instruments}",
    "{a genre} in {key} played by {instruments}, {tempo}",
    "{instruments} playing {a tempo} {genre} in {key}",
    "{tempo} {genre}, {instruments}",
    "{tempo} {genre}, {instruments}, {key}",
    "{a tempo} {mode}-key {genre} for {instruments}",
    "{a genre} at {bpm} bpm in {key}, {instruments}",
    "{instruments}, {tempo}, {mode} key, {genre}",
)


def tempo_class(tempo: float) -> str:
    """Classify a tempo in beats per minute as ``slow``, ``moderate`` or ``fast``.

    >>> [tempo_class(bpm) for bpm in (60, 90, 132)]
    ['slow', 'moderate', 'fast']
    """
    return "slow" if tempo < SLOW_BELOW else "fast" if tempo >= FAST_FROM else "moderate"


def draw_wording(rng: np.random.Generator, tempo: float) -> tuple[str, str]:
    """Draw a caption template, and a word for a tempo in beats per minute."""
    speed = str(rng.choice(_TEMPO_WORDS[tempo_class(tempo)]))
    return str(rng.choice(_WORDINGS)), speed


def caption(words: tuple[str, str], *, genre: str, key: str, tempo: float, instruments: Sequence[str]) -> str:
    """Return a caption, such as "a slow chorale in G minor for church organ".

    Args:
        words: Template and tempo word, from :func:`draw_wording`.
        genre: Genre of the piece.
        key: Tonic and mode.
        tempo: Tempo in beats per minute.
        instruments: Names of the instruments, in any order.
    """
    return _fill_template(*words, genre=genre, key=key, tempo=tempo, instruments=instruments)


def reworded(text: str, attributes: Mapping[str, Any], replacement: Mapping[str, Any]) -> str | None:
    """Return a caption in the same wording with other attributes; ``None`` if :func:`caption` did not write it.

    Args:
        text: Caption that :func:`caption` composed of ``attributes``.
        attributes: Its ``genre``, ``key``, ``tempo`` and ``instruments``.
        replacement: The attributes of the new caption.

    >>> slow = {"genre": "chorale", "key": "G minor", "tempo": 60, "instruments": ["harp"]}
    >>> reworded("a calm chorale in G minor for harp", slow, slow | {"key": "D major"})
    'a calm chorale in D major for harp'
    >>> reworded("a calm chorale in G minor for harp", slow, slow | {"tempo": 120.0})
    'a lively chorale in G minor for harp'
    """
    words, other = (_TEMPO_WORDS[tempo_class(of["tempo"])] for of in (attributes, replacement))
    for sentence, (speed, changed) in product(_WORDINGS, zip(words, other, strict=True)):
        if _fill_template(sentence, speed, **attributes) == text:
            return _fill_template(sentence, changed, **replacement)
    return None


def _fill_template(sentence: str, speed: str, *, genre: str, key: str, tempo: float, instruments: Sequence[str]) -> str:
    words = {
        "tempo": speed,
        "a tempo": _with_article(speed),
        "genre": genre,
        "a genre": _with_article(genre),
        "key": key,
        "mode": key.split()[-1],
        "bpm": f"{tempo:.0f}",
        "instruments": _enumeration(instruments),
    }
    return sentence.format_map(words)


def _with_article(word: str) -> str:
    return f"{'an' if word[0] in 'aeiouAEIOU' else 'a'} {word}"


def _enumeration(names: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))
