"""The contract of scores: one class for each, which measures a system's clips and says what its figures mean."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar, NamedTuple

from ..core.configured import Configured
from ..system.system import System
from .comparison import Comparison
from .embedders import Embedders
from .rows import Rows


class Subject(NamedTuple):
    """What scores measure.

    Args:
        title: Heading of its tables.
        column: Heading of the values.
        note: How to read the table.
    """

    title: str
    column: str
    note: str


SUBJECTS = {
    "system": Subject(
        "Generated clips",
        "generated",
        "Real clips, coded: real clips after the codec that makes this system's audio, which its stages can hardly "
        "surpass. Chance: clips that have nothing to do with the prompt, such as the labels of other pieces. Chance is "
        "not beaten where it lies within the interval or on its better side. A cell is empty where there is no such "
        "figure.",
    ),
    "codec": Subject(
        "The codec", "after the codec", "Measured on real clips. Chance: the best sound that never changes."
    ),
    "memorization": Subject("Memorized training clips", "generated", ""),
}
"""What scores measure, in the order of their tables."""


class Score(Configured, ABC):
    """One registered way to measure a system. Its options are the arguments of its constructor.

    Attributes:
        about: By name of a row, a sentence on it. A row's name can go on with what it is measured in, in parentheses:
            ``FAD (clap)`` is explained as ``FAD`` is.
        subject: What it measures: ``system`` (generated clips), ``codec`` (real clips after the system's codec) or
            ``memorization`` (of training clips).
        runs_by_default: Whether it is measured without being asked for.
        needs_stages: Whether it needs a system with stages; a codec alone generates nothing.
        needs_inputs: The system must read one of these inputs, such as ``text``; empty for a score that needs none.
        needs_packages: Importable names of packages that it needs, all of which ``pip install 'partita[metrics]'``
            brings.
        reading: How to read its rows, in sentences for pages and model cards; may be empty.
    """

    about: ClassVar[Mapping[str, str]]
    subject: ClassVar[str] = "system"
    runs_by_default: ClassVar[bool] = True
    needs_stages: ClassVar[bool] = False
    needs_inputs: ClassVar[frozenset[str]] = frozenset()
    needs_packages: ClassVar[tuple[str, ...]] = ()
    reading: ClassVar[str] = ""

    def __init__(self) -> None:
        """A score without options; one with options replaces this."""

    @abstractmethod
    def measure(self, comparison: Comparison) -> Rows:
        """The rows of a system's clips, by name; no rows where the clips or pieces lack what is compared."""

    def load(self, embedders: Embedders) -> None:
        """Load the embedders it measures with, before anything slow happens.

        Raises:
            PartitaError: One of them cannot be loaded, or cannot be used for this score.
        """

    def obstacle(self, system: System) -> str | None:
        """Why a system cannot be measured; ``None`` if it can be."""
        if self.needs_stages and not system.stages:
            return "it measures what stages generate, and this system is a codec alone"
        inputs = set(system.inputs)
        if self.needs_inputs and not self.needs_inputs & inputs:
            return f"this system reads no {' or '.join(sorted(self.needs_inputs))}"
        return None

    def explanation(self, rows: Rows) -> str:
        """How to read these rows of it, for pages and model cards."""
        return self.reading

    def clips(self, rows: Rows, folder: Path) -> Iterator[tuple[str, Path]]:
        """Audio files with their captions to be shown below its rows; ``folder`` is the evaluation's."""
        yield from ()

    @classmethod
    def missing_packages(cls) -> list[str]:
        """The packages it needs that are not installed."""
        return [name for name in cls.needs_packages if find_spec(name) is None]

    @classmethod
    def description(cls) -> Iterator[str]:
        """Lines on its rows, what it needs, and when it is measured, for ``partita list``."""
        for name, sentence in cls.about.items():
            yield f"{name}: {sentence}"
        if cls.needs_stages:
            yield "It needs a system with stages."
        if cls.needs_inputs:
            yield f"It needs a system that reads {' or '.join(sorted(cls.needs_inputs))}."
        if cls.needs_packages:
            yield f"It needs {' and '.join(cls.needs_packages)}: pip install 'partita[metrics]'."
        name = cls.registered_name
        yield (
            f"Measured unless left out with --no-score {name}."
            if cls.runs_by_default
            else f"Measured when asked for with --score {name}."
        )


def sentence(score: Score, row: str) -> str:
    """What a score's class says about the row of this name.

    Raises:
        KeyError: It says nothing, which is a mistake in the class.
    """
    name = row if row in score.about else row.partition(" (")[0]
    if name not in score.about:
        raise KeyError(f"{type(score).__name__}.about has no sentence on the row {row!r}")
    return score.about[name]
