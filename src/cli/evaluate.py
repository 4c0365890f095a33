"""The command that evaluates a system, and the evaluation options that it shares with ablations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

import partita

from ..core.console import logged, out, showing_progress
from ..errors import PartitaError
from ..recipe.recipe_files import read_value
from .options import Device, InferencePrecisionName, Model, grouped


@dataclass(frozen=True)
class ScoreOptions:
    """Options that select scores."""

    score: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[={…}]",
            help="Score to measure, optionally with its options: --score memorization, or "
            "--score 'fad={embeddings: \\[encodec-24khz]}'. Can be repeated; partita list score shows all scores.",
        ),
    ] = None
    no_score: Annotated[
        list[str] | None,
        typer.Option("--no-score", metavar="NAME", help="Default score to omit. Can be repeated."),
    ] = None

    def chosen(self) -> dict[str, Any]:
        """Return the selected scores in the form of :attr:`Evaluation.scores`.

        Raises:
            PartitaError: An option is not valid YAML, or a score is given twice.
        """
        found: dict[str, Any] = {}
        for text in self.score or ():
            name, equals, value = text.partition("=")
            if name in found:
                raise PartitaError(f"--score {name} is given twice: give all of its options at once")
            try:
                found[name] = read_value(value) if equals else True
            except ValueError as error:
                raise PartitaError(f"--score {name}: {error}") from None
            if equals and not isinstance(found[name], Mapping):
                raise PartitaError(
                    f"--score {name} takes options as {{option: value}}, such as "
                    f"'fad={{embeddings: [encodec-24khz]}}', not {value!r:.80}; partita list score/{name} shows them"
                )
        for name in self.no_score or ():
            if name in found:
                raise PartitaError(f"--score {name} and --no-score {name} contradict each other")
            found[name] = False
        return found


@dataclass(frozen=True)
class MeasurementOptions(ScoreOptions):
    """Options for the clips to generate and the scores to measure."""

    clips: Annotated[int, typer.Option(help="Number of clips to generate from the captions of test pieces.")] = 64
    reference_clips: Annotated[int, typer.Option(help="Number of real clips to which distributions are compared.")] = (
        256
    )
    duration: Annotated[float | None, typer.Option("--duration", "-d", help="Length of each clip in seconds.")] = None
    seed: Annotated[int, typer.Option(help="Seed of the first clip.")] = 0
    precision: InferencePrecisionName = "fp32"


@grouped
def evaluate(
    model: Model,
    measurement: MeasurementOptions,
    data: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[DATA=VALUE]…",
            help="Data to use instead of the recipe's, such as data=folder data.path=/music.",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Output folder; by default, MODEL/evaluation.")
    ] = None,
    device: Device = "auto",
) -> None:
    """Generate from captions of test pieces, score the clips and write a page. Run the same command again to resume."""
    options = partita.Evaluation(
        measurement.clips,
        measurement.reference_clips,
        measurement.duration,
        measurement.seed,
        precision=measurement.precision,
        scores=measurement.chosen(),
    )
    folder = output or Path(model) / "evaluation"
    with showing_progress(), logged(out):
        results = partita.evaluate(model, output, data=data or [], options=options, device=device)
    out.print(partita.score_table(results["metrics"]))
    out.print(f"{folder / 'evaluation.json'}, {folder / 'evaluation.html'}")
