"""Commands for ablations."""

from __future__ import annotations

import os
import re
import signal
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

import partita

from ..core.console import err, logged, out, showing_progress
from ..errors import PartitaError
from .evaluate import ScoreOptions
from .options import grouped


@dataclass(frozen=True)
class EvaluationOptions(ScoreOptions):
    """How each run is evaluated. ``None`` keeps the value of the ablation file or the default of an evaluation."""

    clips: Annotated[int | None, typer.Option(help="Number of generated clips on which each run is evaluated.")] = None
    reference_clips: Annotated[
        int | None, typer.Option(help="Number of real clips to which distributions are compared.")
    ] = None
    duration: Annotated[
        float | None,
        typer.Option("--duration", "-d", help="Length of each clip in seconds; by default, the shortest window."),
    ] = None

    def values(self) -> dict[str, Any]:
        """Return the options that are set, as :func:`~partita.evaluation.ablation.read_ablation` takes them."""
        given = {"clips": self.clips, "reference_clips": self.reference_clips, "duration": self.duration}
        return {name: value for name, value in given.items() if value is not None} | {"scores": self.chosen()}


@dataclass(frozen=True)
class LaunchOptions:
    """Where the tasks of an ablation run."""

    jobs: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Number of simultaneous trainings; by default, one per GPU, one without GPUs, no limit on a cluster.",
        ),
    ] = None
    cluster: Annotated[str | None, typer.Option(help="Cluster to which submitit submits the tasks: slurm.")] = None
    cluster_option: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="Option of submitit, such as timeout_min=600 or slurm_partition=gpu."),
    ] = None


@grouped
def ablate(
    recipe: Annotated[
        str,
        typer.Argument(
            help="Name or path of a recipe, or of an ablation file (keys: recipe, vary, variants, set, budget, "
            "evaluation); partita list ablation shows those that are packaged.",
            show_default=False,
        ),
    ],
    evaluation: EvaluationOptions,
    launch: LaunchOptions,
    changes: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=A,B]…",
            help="Keys to vary, each with its values, the baseline first, such as "
            "tokenizers.acoustic=spectral-tiny,soundstream-tiny seed=0,1,2. A single value changes all variants.",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Output folder; by default, runs/ablation-RECIPE.")
    ] = None,
    budget: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[GROUP.]UNIT=AMOUNT",
            help="Training budget of every stage: steps=2000, tokens=5e7 or minutes=20; of tokenizers, such as "
            "tokenizers.minutes=5. The default is that of the recipe.",
        ),
    ] = None,
    skip_unfit: Annotated[
        bool, typer.Option("--skip-unfit", help="Skip variants whose parts do not fit together.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be done, without training.")] = False,
) -> None:
    """Train variants of a recipe and compare them on one page with scores, costs, curves and players.

    Parts that variants share are trained once. Run the same command again to resume.
    """
    ablation = partita.read_ablation(recipe, changes or [], budget or [], evaluation.values())
    folder = output or Path("runs") / f"ablation-{Path(recipe).stem}"
    if dry_run:
        for line in partita.preview_ablation(ablation, folder, skip_unfit=skip_unfit):
            out.print(line)
        return
    with showing_progress(), logged(out):
        problems = partita.ablate(
            ablation,
            folder,
            launcher=_cluster(folder, launch),
            jobs=launch.jobs,
            skip_unfit=skip_unfit,
        )
    out.print((folder / "ablation.md").read_text(encoding="utf-8"))
    out.print(f"{folder / 'ablation.html'}, {folder / 'ablation.csv'}")
    if problems:
        err.print(f"{len(problems)} without a result; run the same command again to retry", style="red")
        raise typer.Exit(1)


def task(folder: Path, key: str) -> None:
    """Perform one task of an ablation, and stop when the process that started it ends."""

    def watch() -> None:
        while os.read(0, 1):
            pass
        os.kill(os.getpid(), signal.SIGTERM)  # standard input is closed, so the parent process has ended

    threading.Thread(target=watch, daemon=True).start()
    with logged(out):
        partita.perform_task(folder, key)


def _cluster(folder: Path, launch: LaunchOptions) -> Any:
    """Return the cluster that the options select, or ``None`` to run on this machine."""
    if launch.cluster is None:
        if launch.cluster_option:
            raise PartitaError("--cluster-option requires --cluster")
        return None
    settings: dict[str, int | str] = {}
    for option in launch.cluster_option or ():
        key, equals, value = option.partition("=")
        if not equals:
            raise PartitaError(f"--cluster-option takes key=value, such as timeout_min=600, not {option!r}")
        settings[key] = (
            int(value) if re.fullmatch(r"0|[1-9]\d{0,17}", value) else value
        )  # YAML would read 1:30:00 as a number
    return partita.Cluster(folder, launch.cluster, settings, launch.jobs)
