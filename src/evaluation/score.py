"""The contract of scores: a class that measures a system's clips and explains its results."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from ..core.configured import Configured
from ..system.system import System
from .comparison import Comparison
from .embedders import Embedders
from .rows import Rows

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Subject(NamedTuple):
    """A kind of thing that scores measure, with the texts of its table.

    Args:
        title: Heading of the table.
        column: Heading of the column of values.
        note: Explanation below the table.
    """

    title: str
    column: str
    note: str


SUBJECTS = {
    "system": Subject(
        "Generated clips",
        "generated",
        "“Real clips, coded” are real clips reconstructed by this system's codec, whose scores the stages can hardly "
        "surpass. “Chance” compares clips with unrelated prompts or labels; it is not beaten if it lies within the "
        "interval or on its better side. p is the p-value of the difference between clips with their own prompts and "
        "with those of other pieces (sign-flip test over pieces). A cell is empty if there is no such number.",
    ),
    "codec": Subject(
        "The codec", "reconstructed", "Measured on real clips. “Chance” is the best sound that is constant over time."
    ),
    "memorization": Subject("Memorized training clips", "generated", ""),
}
"""What scores measure, by the ``subject`` of their rows and in the order of the tables."""


class Score(Configured, ABC):
    """A registered score of systems, whose options are the arguments of the constructor.

    Attributes:
        about: A sentence on each row, by its name. The name of a row can end with an embedding in parentheses:
            ``FAD (clap)`` has the sentence of ``FAD``.
        subject: What the score measures: ``system`` (generated clips), ``codec`` (real clips reconstructed by the
            system's codec) or ``memorization`` (of training clips).
        runs_by_default: Whether the score is measured unless it is left out.
        needs_stages: Whether the score needs a system with stages instead of a codec alone.
        needs_inputs: Names of inputs, such as ``text``, of which the system must read at least one. If empty, the
            score needs no inputs.
        needs_packages: Importable names of required packages, which ``pip install 'partita[metrics]'`` installs.
        reading: Sentences on how to read the rows, for pages and model cards; may be empty.
    """

    about: ClassVar[Mapping[str, str]]
    subject: ClassVar[str] = "system"
    runs_by_default: ClassVar[bool] = True
    needs_stages: ClassVar[bool] = False
    needs_inputs: ClassVar[frozenset[str]] = frozenset()
    needs_packages: ClassVar[tuple[str, ...]] = ()
    reading: ClassVar[str] = ""

    def __init__(self) -> None:
        """Create a score without options; scores with options override this."""

    @abstractmethod
    def measure(self, comparison: Comparison) -> Rows:
        """Return the rows by name; empty if the clips or pieces lack the compared properties."""

    def load(self, embedders: Embedders) -> None:
        """Load the embedders of this score, so that errors appear before slow steps.

        Raises:
            PartitaError: An embedder cannot be loaded, or cannot be used for this score.
        """

    def obstacle(self, system: System) -> str | None:
        """Return the reason why a system cannot be measured; ``None`` if it can be."""
        if self.needs_stages and not system.stages:
            return "it measures generated clips, and this system is a codec alone"
        inputs = set(system.inputs)
        if self.needs_inputs and not self.needs_inputs & inputs:
            return f"this system reads no {' or '.join(sorted(self.needs_inputs))}"
        return None

    def explanation(self, rows: Rows) -> str:
        """Return sentences on how to read these rows, for pages and model cards."""
        return self.reading

    def clips(self, rows: Rows, folder: Path) -> Iterator[tuple[str, Path]]:
        """Yield captions and audio files that are shown below the rows; ``folder`` is the folder of the evaluation."""
        yield from ()

    def plots(self, rows: Rows) -> Iterator[tuple[str, Figure]]:
        """Yield titles and figures that are shown below the rows."""
        yield from ()

    @classmethod
    def missing_packages(cls) -> list[str]:
        """Return the required packages that are not installed."""
        return [name for name in cls.needs_packages if find_spec(name) is None]

    @classmethod
    def description(cls) -> Iterator[str]:
        """Yield lines on the rows, the requirements and the default use of the score, for ``partita list``."""
        for name, sentence in cls.about.items():
            yield f"{name}: {sentence}"
        if cls.needs_stages:
            yield "Needs a system with stages."
        if cls.needs_inputs:
            yield f"Needs a system that reads {' or '.join(sorted(cls.needs_inputs))}."
        if cls.needs_packages:
            yield f"Needs {' and '.join(cls.needs_packages)}: pip install 'partita[metrics]'."
        name = cls.registered_name
        yield (
            f"Measured unless left out with --no-score {name}."
            if cls.runs_by_default
            else f"Measured only with --score {name}."
        )


def sentence_on_row(score: Score, row: str) -> str:
    """Return the sentence of a score's class on the row of this name.

    Raises:
        KeyError: The class has no such sentence, which is a mistake in the class.
    """
    name = row if row in score.about else row.partition(" (")[0]
    if name not in score.about:
        raise KeyError(f"{type(score).__name__}.about has no sentence on the row {row!r}")
    return score.about[name]
