"""Examples in which one clip is laid over another, as in the training of AudioGen."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..core.contracts import Example

LEVELS = (-5.0, 5.0)
"""Range of the level of the first clip above that of the second one, in dB."""

MIN_OVERLAP = 0.5
"""Smallest fraction of a clip in which the second one sounds, unless it is shorter."""

HEADROOM = 0.99
"""Largest magnitude of a mix, to which louder ones are scaled."""

KEPT = ("id", "seconds_start", "seconds_total")
"""Fields of the first clip that hold for the mix."""


def overlaid(first: Example, second: Example, seed: int) -> Example:
    """Return an example in which the second clip starts somewhere in the first (arXiv 2209.15352, section 3.2).

    The captions are joined, unless one is missing, so that a caption never describes one clip alone. The ``id`` is that
    of the first clip; fields that describe the music of one clip, such as its chords, are left out. Levels, starts and
    overlap are those of audiocraft; the first clip keeps its loudness.

    Args:
        first: A clip with audio ``[C, T]``.
        second: Another clip of the same shape.
        seed: Seed of the position and the level of the second clip.
    """
    rng = np.random.default_rng(seed)
    mix, over = first.audio.clone(), second.audio[:, : second.num_samples]
    length = mix.shape[-1]
    start = int(rng.integers(int(length * (1 - MIN_OVERLAP)) + 1))
    over = over[:, : length - start]
    gain = 10 ** (-rng.uniform(*LEVELS) / 20)
    loudness = _rms(first.audio[:, : first.num_samples]), _rms(second.audio[:, : second.num_samples])
    if all(loudness):
        gain *= loudness[0] / loudness[1]
    mix[:, start : start + over.shape[-1]] += gain * over
    mix *= min(1.0, HEADROOM / max(float(mix.abs().max()), 1e-9))
    texts = [example.fields.get("text") or "" for example in (first, second)]
    text = " ".join(dict.fromkeys(texts)) if all(texts) else None
    kept = {name: first.fields[name] for name in KEPT if name in first.fields}
    samples = max(first.num_samples, min(length, start + second.num_samples))
    return Example(mix, samples, kept | {"text": text})


def _rms(audio: Tensor) -> float:
    return float(torch.sqrt((audio**2).mean())) if audio.numel() else 0.0
