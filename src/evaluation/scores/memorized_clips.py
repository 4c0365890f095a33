"""Memorization: how often a system continues training clips as they continue (MusicLM, arXiv 2301.11325 §4.4)."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from ...core.registry import register
from ...errors import PartitaError
from ...system.system import System
from ..comparison import Comparison
from ..continuations import Continuations, training_clip
from ..rows import Rows, make_row
from ..score import Score

FOLDER = "memorization"
"""Where the continuations are, in the folder of an evaluation."""

log = logging.getLogger(__name__)


@register("score", "memorization")
class Memorization(Score):
    """Fraction of training clips that the system continues as they continue, as many as clips are generated.

    Its chance level compares the same continuations with other training clips.
    """

    about: ClassVar = {
        "memorized exactly": "Fraction of continued training clips whose codes are the very ones of the clip.",
        "memorized approximately": "Fraction of continued training clips whose codes are those of the clip, or the "
        "same ones nearly as often.",
    }
    subject = "memorization"
    runs_by_default = False
    needs_stages = True

    def obstacle(self, system: System) -> str | None:
        """Codes are compared, and the training clips must be known."""
        if (reason := super().obstacle(system)) is not None:
            return reason
        try:
            Continuations.of(system)
        except PartitaError as error:
            return str(error)
        return None

    def measure(self, comparison: Comparison) -> Rows:
        """Two rows; none where too little follows in the training clips."""
        log.info("memorization")
        options, way = comparison.options, Continuations.of(comparison.system)
        continued = way.tokens(comparison.folder / FOLDER, options.clips, options.batch_size, options.seed)
        try:
            found, chance, more = way.measure(continued)
        except PartitaError as error:
            log.info("memorization is not measured: %s", error)
            return {}
        embedding, clips = more.pop("embedding"), int(found["clips"])
        return {
            f"memorized {how}": make_row(found, figure, "lower", embedding, clips, chance=chance[figure], **more)
            for how, figure in (("exactly", "exact"), ("approximately", "approximate"))
        }

    def explanation(self, rows: Rows) -> str:
        """What was compared, and how."""
        row = next(iter(rows.values()))
        left_out = f" {100 * row['left_out']:.0f} % of the clips were left out, as next to nothing follows in them."
        return (
            f"The system was given the first {row['prompt_seconds']:g} s of training clips, with the conditions that "
            "they have in training, and continued them: with the likeliest code each time where it can, and without "
            "guidance, after the study of MusicLM (arXiv 2301.11325, section 4.4). The continuation is compared with "
            f"that of the clip, by {row['embedding']}. It counts as memorized exactly where all codes are the same, "
            "and as memorized approximately where turning the frequencies of its codes into those of the clip costs "
            f"less than {row['threshold']:.3g}: fewer than 1 % of pairs of clips from different training pieces are as "
            "alike. Chance: the same continuations beside clips of other training pieces."
            + (left_out if row["left_out"] else "")
            + " Below are the continuations that are nearest to their clips, the nearest first. Nearest does not mean "
            "memorized: see the cost."
        )

    def clips(self, rows: Rows, folder: Path) -> Iterator[tuple[str, Path]]:
        """The training clips whose continuations are nearest to them, each followed by its continuation."""
        row = next(iter(rows.values()))
        for near in row["nearest"]:
            path = folder / FOLDER / f"{near['clip']:05d}.flac"
            how = "exactly" if near["exact"] else f"cost {near['cost']:.3g}, threshold {row['threshold']:.3g}"
            yield f"training clip ({near['piece']})", training_clip(path)
            yield f"its continuation: {how}", path
