"""What an evaluation generates and compares."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..errors import PartitaError
from ..limits import LONGEST_CLIP, MOST_CLIPS, TooMuch, beyond


@dataclass(frozen=True)
class Evaluation:
    """What is generated and compared.

    Args:
        clips: To generate.
        reference_clips: Of real audio to compare distributions with.
        duration: Seconds of each clip; the system's window where none are given.
        seed: Of the first clip.
        batch_size: Clips generated at once.
        embeddings: Names of tokenizers or joint conditioners, or recipe slots, in whose latents or embeddings
            distributions are compared (Fréchet audio distance).
        classifiers: Names of tokenizers, or recipe slots, that yield logits: what they hear in clips is compared with
            what they hear in the pieces of the same captions (Kullback–Leibler divergence).
        joint: Names of joint conditioners, or recipe slots, that say how well clips and captions go together.
        memorization: Whether as many training clips are continued, and compared with how they go on.
    """

    clips: int = 64
    reference_clips: int = 256
    duration: float | None = None
    seed: int = 0
    batch_size: int = 8
    embeddings: tuple[str, ...] = ("log-mel-16khz",)
    classifiers: tuple[str, ...] = ()
    joint: tuple[str, ...] = ()
    memorization: bool = False

    def __post_init__(self) -> None:
        for name in ("clips", "reference_clips", "batch_size"):
            if getattr(self, name) < 1:
                raise PartitaError(f"{name} must be at least 1, not {getattr(self, name)}")
            if beyond(getattr(self, name), MOST_CLIPS):
                raise TooMuch(f"{name} is {getattr(self, name):,}, and at most {MOST_CLIPS:,} are compared: refused")
        if self.duration is not None and not 0 < self.duration < math.inf:
            raise PartitaError(f"duration must be a number of seconds above 0, not {self.duration}")
        if self.duration is not None and beyond(self.duration, LONGEST_CLIP):
            raise TooMuch(f"duration is {self.duration:g} s, and a clip is at most {LONGEST_CLIP:g} s long: refused")
