"""Memorization: how often a system reproduces the continuations of training clips (MusicLM, arXiv 2301.11325 §4.4)."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from matplotlib.figure import Figure

from ...core.registry import register
from ...errors import PartitaError
from ...pages.plots import curves_figure
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

    Args:
        prompts: Lengths of the prompts, in seconds, such as ``[0, 1, 2.5, 5, 10]`` for a curve. ``None`` takes half of
            the window of the stage.
        continued: Length of the continuations, in seconds (MusicLM: 5). ``None`` takes half a window.

    Raises:
        ValueError: A length is out of range.
    """

    about: ClassVar = {
        "memorized exactly": "Fraction of continued training clips whose generated codes equal the codes of the clip.",
        "memorized approximately": "Fraction of continued training clips whose generated codes equal the codes of the "
        "clip or have nearly the same histogram.",
    }
    subject = "memorization"
    runs_by_default = False
    needs_stages = True

    def __init__(self, *, prompts: tuple[float, ...] | None = None, continued: float | None = None) -> None:
        if prompts is not None and (not prompts or len(set(prompts)) < len(prompts)):
            raise ValueError("prompts must be different lengths in seconds, at least one")
        for prompt in prompts or ():
            if not 0 <= prompt < math.inf:
                raise ValueError(f"prompts must be at least 0 seconds long, not {prompt}")
        if continued is not None and not 0 < continued < math.inf:
            raise ValueError(f"continued must be above 0 seconds, not {continued}")
        self.prompts = None if prompts is None else tuple(sorted(prompts))
        self.continued = continued

    def obstacle(self, system: System) -> str | None:
        """Return a reason if the system has no codes to compare, or if its training clips are unknown."""
        if (reason := super().obstacle(system)) is not None:
            return reason
        try:
            self._comparisons(system)
        except PartitaError as error:
            return str(error)
        return None

    def measure(self, comparison: Comparison) -> Rows:
        """Return two rows for each length of prompts; none if too few continuations have a sufficient entropy."""
        rows: Rows = {}
        for continuations in self._comparisons(comparison.system):
            after = self._after(continuations.prompt_seconds)
            log.info("memorization%s", after)
            folder = self._folder(comparison.folder, continuations.prompt_seconds, continuations.continued_seconds)
            rows |= _measured(comparison, continuations, folder, after)
        return rows

    def _comparisons(self, system: System) -> list[Continuations]:
        """Return the comparison for each length of prompts."""
        found = Continuations.of(system)
        return [found.after(prompt, self.continued) for prompt in self.prompts or (None,)]

    def _after(self, seconds: float) -> str:
        """Return the end of the names of rows: the length of their prompts if lengths were chosen."""
        return "" if self.prompts is None else f" (after {_exact(seconds)} s)"

    def _folder(self, folder: Path, prompt: float, continued: float) -> Path:
        """Return the folder of the continuations of these lengths in seconds, in the folder of an evaluation."""
        chosen = self.prompts is not None or self.continued is not None
        return folder / FOLDER / (f"{_exact(prompt)}s-{_exact(continued)}s" if chosen else "")

    def explanation(self, rows: Rows) -> str:
        """Return sentences on the compared clips, the thresholds and the chance level."""
        row = list(rows.values())[-1]
        left_out = f" {100 * row['left_out']:.0f} % of the clips were left out because their continuations are trivial."
        return (
            f"The system was prompted with the first {_lengths(rows)} s of training clips and with their "
            "training conditions, and continued them with greedy decoding where it is possible and without guidance, "
            "following MusicLM (arXiv 2301.11325 §4.4). The prompts are codes: those of whole clips that are as "
            "long as the stage's window, cut. The continuation is compared with that of the clip, by "
            f"{row['embedding']}. It counts as memorized exactly if all codes are equal, "
            "and as memorized approximately if the optimal transport cost between the histograms of its codes and of "
            f"the clip's codes is less than {row['threshold']:.3g}; fewer than 1 % of pairs of clips from different "
            "training pieces are as similar. Chance: the same continuations compared with clips of other pieces."
            + (left_out if row["left_out"] else "")
            + " Below are the continuations that are nearest to their clips, the nearest first. Nearest does not mean "
            "memorized: see the cost."
        )

    def clips(self, rows: Rows, folder: Path) -> Iterator[tuple[str, Path]]:
        """Yield the training clips with the nearest continuations of the longest prompts, each before its own."""
        row = list(rows.values())[-1]
        for near in row["nearest"]:
            place = self._folder(folder, row["prompt_seconds"], row["continued_seconds"])
            path = place / f"{near['clip']:05d}.flac"
            how = "exactly" if near["exact"] else f"cost {near['cost']:.3g}, threshold {row['threshold']:.3g}"
            yield f"training clip ({near['piece']})", training_clip_path(path)
            yield f"its continuation: {how}", path

    def plots(self, rows: Rows) -> Iterator[tuple[str, Figure]]:
        """Yield the curve over the lengths of prompts, if there are several."""
        curves: dict[str, tuple[list[float], list[float]]] = {}
        for name, row in rows.items():
            for label, value in (("", row["value"]), (", chance", row["chance"])):
                lengths, values = curves.setdefault(name.partition(" (")[0] + label, ([], []))
                lengths.append(row["prompt_seconds"])
                values.append(100 * value)
        if len(next(iter(curves.values()))[0]) > 1:
            figure = curves_figure(curves, "memorized training clips (%)")
            figure.axes[0].set_xlabel("length of the prompt (s)")
            yield "memorized training clips over the length of the prompt", figure


def _measured(comparison: Comparison, continuations: Continuations, folder: Path, after: str) -> Rows:
    """Return the rows of one length of prompts."""
    options = comparison.options
    continued = continuations.generate(folder, options.clips, options.batch_size, options.seed)
    try:
        found, chance, more = continuations.measure(continued)
    except PartitaError as error:
        log.info("memorization%s is not measured: %s", after, error)
        return {}
    embedding, clips = more.pop("embedding"), int(found["clips"])
    return {
        f"memorized {how}{after}": make_row(found, figure, "lower", embedding, clips, chance=chance[figure], **more)
        for how, figure in (("exactly", "exact"), ("approximately", "approximate"))
    }


def _exact(seconds: float) -> str:
    """Return a length as text that different lengths do not share."""
    return f"{seconds:.15g}"


def _lengths(rows: Rows) -> str:
    """Return the lengths of prompts, in seconds, as text."""
    return ", ".join(dict.fromkeys(_exact(row["prompt_seconds"]) for row in rows.values()))
