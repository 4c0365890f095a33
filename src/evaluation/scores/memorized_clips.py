"""Memorization: how often a system reproduces the continuations of training clips (MusicLM, arXiv 2301.11325 §4.4)."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from ...core.registry import register
from ...errors import PartitaError
from ...system.system import System
from ..comparison import Comparison
from ..continuations import Continuations, training_clip_path
from ..rows import Rows, make_row
from ..score import Score

FOLDER = "memorization"
"""Name of the folder with continuations, in the folder of an evaluation."""

log = logging.getLogger(__name__)


@register("score", "memorization")
class Memorization(Score):
    """Fraction of training clips whose continuation the system reproduces.

    The number of training clips is the number of generated clips. The chance level compares the same continuations with
    other training clips.
    """

    about: ClassVar = {
        "memorized exactly": "Fraction of continued training clips whose generated codes equal the codes of the clip.",
        "memorized approximately": "Fraction of continued training clips whose generated codes equal the codes of the "
        "clip or have nearly the same histogram.",
    }
    subject = "memorization"
    runs_by_default = False
    needs_stages = True

    def obstacle(self, system: System) -> str | None:
        """Return a reason if the system has no codes to compare, or if its training clips are unknown."""
        if (reason := super().obstacle(system)) is not None:
            return reason
        try:
            Continuations.of(system)
        except PartitaError as error:
            return str(error)
        return None

    def measure(self, comparison: Comparison) -> Rows:
        """Return two rows, or none if too few training clips have a continuation of sufficient entropy."""
        log.info("memorization")
        options, continuations = comparison.options, Continuations.of(comparison.system)
        continued = continuations.generate(comparison.folder / FOLDER, options.clips, options.batch_size, options.seed)
        try:
            found, chance, more = continuations.measure(continued)
        except PartitaError as error:
            log.info("memorization is not measured: %s", error)
            return {}
        embedding, clips = more.pop("embedding"), int(found["clips"])
        return {
            f"memorized {how}": make_row(found, figure, "lower", embedding, clips, chance=chance[figure], **more)
            for how, figure in (("exactly", "exact"), ("approximately", "approximate"))
        }

    def explanation(self, rows: Rows) -> str:
        """Return sentences on the compared clips, the thresholds and the chance level."""
        row = next(iter(rows.values()))
        left_out = f" {100 * row['left_out']:.0f} % of the clips were left out because their continuations are trivial."
        return (
            f"The system was prompted with the first {row['prompt_seconds']:g} s of training clips and with their "
            "training conditions, and continued them with greedy decoding where it is possible and without guidance, "
            "following MusicLM (arXiv 2301.11325 §4.4). The continuation is compared with "
            f"that of the clip, by {row['embedding']}. It counts as memorized exactly if all codes are equal, "
            "and as memorized approximately if the optimal transport cost between the histograms of its codes and of "
            f"the clip's codes is less than {row['threshold']:.3g}; fewer than 1 % of pairs of clips from different "
            "training pieces are as similar. Chance: the same continuations compared with clips of other pieces."
            + (left_out if row["left_out"] else "")
            + " Below are the continuations that are nearest to their clips, the nearest first. Nearest does not mean "
            "memorized: see the cost."
        )

    def clips(self, rows: Rows, folder: Path) -> Iterator[tuple[str, Path]]:
        """Yield the training clips with the nearest continuations, each followed by its continuation."""
        row = next(iter(rows.values()))
        for near in row["nearest"]:
            path = folder / FOLDER / f"{near['clip']:05d}.flac"
            how = "exactly" if near["exact"] else f"cost {near['cost']:.3g}, threshold {row['threshold']:.3g}"
            yield f"training clip ({near['piece']})", training_clip_path(path)
            yield f"its continuation: {how}", path
