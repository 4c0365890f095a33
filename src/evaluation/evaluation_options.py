"""Options of an evaluation: the number of clips and the choice of scores."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..core.registry import UnknownName, lookup
from ..core.schema import check
from ..errors import PartitaError
from ..layers.lowered import InferencePrecision, check_precision
from ..limits import LONGEST_CLIP, MOST_CLIPS, TooMuch, beyond

SHORTEST = 0.01
"""Seconds of the shortest clip that is scored."""


@dataclass(frozen=True)
class Evaluation:
    """Options of an evaluation.

    Args:
        clips: Number of clips to generate.
        reference_clips: Number of real clips with which distributions are compared.
        duration: Length of each clip in seconds. ``None`` takes the window of the system's last stage.
        seed: Seed that the seeds of all clips are derived from.
        batch_size: Number of clips that are generated together.
        precision: Precision of the weights of all stages in generation, as in :class:`partita.Request`.
        scores: Choice of scores by name: a mapping of options, ``true`` to measure a score with its default options,
            or ``false`` to leave it out. Scores that are not named are measured if they run by default.
    """

    clips: int = 64
    reference_clips: int = 256
    duration: float | None = None
    seed: int = 0
    batch_size: int = 8
    precision: InferencePrecision = "fp32"
    scores: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("clips", "reference_clips", "batch_size"):
            if type(getattr(self, name)) is not int or getattr(self, name) < 1:
                raise PartitaError(f"{name} must be a whole number of at least 1, not {getattr(self, name)!r}")
            if beyond(getattr(self, name), MOST_CLIPS):
                raise TooMuch(f"{name} is {getattr(self, name):,}, and at most {MOST_CLIPS:,} are allowed: refused")
        if self.duration is not None and not SHORTEST <= self.duration < math.inf:
            raise PartitaError(f"duration must be at least {SHORTEST:g} seconds, not {self.duration}")
        if self.duration is not None and beyond(self.duration, LONGEST_CLIP):
            raise TooMuch(f"duration is {self.duration:g} s, and a clip is at most {LONGEST_CLIP:g} s long: refused")
        check_precision(self.precision)
        for name, choice in self.scores.items():
            _check_choice(name, choice)


def _check_choice(name: str, choice: Any) -> None:
    """Check the options of one score.

    Raises:
        PartitaError: There is no such score, or its options are invalid.
    """
    try:
        score = lookup("score", name)
    except UnknownName as error:
        raise PartitaError(f"scores: {error}") from None
    if choice is False:
        return
    if choice is not True and not isinstance(choice, Mapping):
        raise PartitaError(
            f"scores.{name} must be a mapping of options, true or false, not {choice!r:.80} (partita list score/{name} "
            "shows its options)"
        )
    if mistakes := check(score, {} if choice is True else choice, key=f"scores.{name}"):
        raise PartitaError("; ".join(f"{m.key}: {m.message}{m.suggestion}" for m in mistakes))
