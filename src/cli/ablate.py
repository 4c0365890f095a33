"""The commands of ablations."""

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
    """How each run is evaluated; what is not given is as in the ablation file, or as usual."""

    clips: Annotated[int | None, typer.Option(help="Clips that each run is evaluated on.")] = None
    reference_clips: Annotated[int | None, typer.Option(help="Real clips that distributions are compared with.")] = None
    duration: Annotated[
        float | None, typer.Option("--duration", "-d", help="Seconds of each clip; the shortest window unless given.")
    ] = None

    def values(self) -> dict[str, Any]:
        """Those that are given, as :func:`~partita.evaluation.ablation.read_ablation` takes them."""
        given = {"clips": self.clips, "reference_clips": self.reference_clips, "duration": self.duration}
        return {name: value for name, value in given.items() if value is not None} | {"scores": self.chosen()}


@dataclass(frozen=True)
class LaunchOptions:
    """Where the tasks are done."""

    jobs: Annotated[
        int | None,
        typer.Option(
            min=1, help="Trainings at once: one for each GPU, or one, unless given; without limit on a cluster."
        ),
    ] = None
    cluster: Annotated[str | None, typer.Option(help="Submit to a cluster by submitit: slurm.")] = None
    cluster_option: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="Of submitit, such as timeout_min=600 or slurm_partition=gpu."),
    ] = None


@grouped
def ablate(
    recipe: Annotated[
        str,
        typer.Argument(
            help="Name or path of a recipe, or path of an ablation file (keys: recipe, vary, variants, set, budget, "
            "evaluation).",
            show_default=False,
        ),
    ],
    evaluation: EvaluationOptions,
    launch: LaunchOptions,
    changes: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=A,B]…",
            help="What is varied, the baseline's value first, such as "
            "tokenizers.acoustic=spectral-tiny,soundstream-tiny seed=0,1,2; with one value, a change to all variants.",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder; runs/ablation-RECIPE unless given.")
    ] = None,
    budget: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[GROUP.]UNIT=AMOUNT",
            help="Of every stage: steps=2000, tokens=5e7 or minutes=20; of tokenizers, tokenizers.minutes=5. "
            "What the recipe says unless given.",
        ),
    ] = None,
    skip_unfit: Annotated[
        bool, typer.Option("--skip-unfit", help="Leave out variants whose parts do not fit together.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")] = False,
) -> None:
    """Train and compare variants of a recipe: one page with scores, costs, curves and players.

    Parts that variants have in common are trained once. Run the same command again to continue.
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
        err.print(f"{len(problems)} without a result; the same command tries again", style="red")
        raise typer.Exit(1)


def task(folder: Path, key: str) -> None:
    """Do one task of an ablation, as long as whoever started it lives."""

    def watch() -> None:
        while os.read(0, 1):
            pass
        os.kill(os.getpid(), signal.SIGTERM)  # the end of the input: that process is gone

    threading.Thread(target=watch, daemon=True).start()
    with logged(out):
        partita.perform_task(folder, key)


def _cluster(folder: Path, launch: LaunchOptions) -> Any:
    """The cluster, if there is to be one."""
    if launch.cluster is None:
        if launch.cluster_option:
            raise PartitaError("--cluster-option is for a --cluster")
        return None
    settings: dict[str, int | str] = {}
    for option in launch.cluster_option or ():
        key, equals, value = option.partition("=")
        if not equals:
            raise PartitaError(f"--cluster-option takes key=value, such as timeout_min=600, not {option!r}")
        settings[key] = int(value) if re.fullmatch(r"0|[1-9]\d{0,17}", value) else value  # 1:30:00 is no number here
    return partita.Cluster(folder, launch.cluster, settings, launch.jobs)
