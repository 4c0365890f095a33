"""Running an ablation: every part trained once, every variant evaluated, and one page of results."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from ..core.part_key import PartKey
from ..core.schema import plain
from ..errors import PartitaError
from ..storage.files import replacing_file
from ..storage.saved_format import numbered
from ..system.assembly import INDEX
from .ablation import Ablation
from .ablation_page import write_results
from .ablation_runs import Run, dependencies, fingerprint, recipe_of, runs, separate, trained, with_steps
from .embedders import Embedders
from .launch import Launcher, Processes, run_tasks
from .scoring import chosen_scores, measurable
from .tasks import SPEED, Task

REQUEST = "ablation.yaml"

LASTING = ("duration", "seed")
"""The options that clips depend on. Their number and the scores can change later."""

log = logging.getLogger(__name__)


def ablate(
    ablation: Ablation,
    folder: str | Path,
    *,
    launcher: Launcher | None = None,
    jobs: int | None = None,
    skip_unfit: bool = False,
) -> dict[str, str]:
    """Train and evaluate every variant with every seed, and write ``ablation.html``, ``.csv`` and ``.md``.

    Parts that several variants have in common are trained once for each seed. Run it again to continue after an
    interruption, to retry what failed, or with more variants or seeds. What is done is logged (``partita.evaluation``,
    INFO), and its progress goes to :func:`partita.core.progress.reporting`.

    Args:
        ablation: What is compared.
        folder: Folder for all results; ``variants`` in it holds every variant's runs, each an ordinary run.
        launcher: Does the tasks; ``None`` for processes of this machine.
        jobs: Number of these processes; ``None`` for as many as the GPUs allow, or one without GPUs.
        skip_unfit: Whether variants that make no valid system are left out instead of refused.

    Returns:
        By title of a variant (with its seed), why it has no result.

    Raises:
        PartitaError: A variant makes no valid system, or the folder holds another ablation.
    """
    if not isinstance(ablation, Ablation):
        raise PartitaError(f"ablate takes what read_ablation returns, not {ablation!r}")
    root = Path(folder)
    wanted, problems = _checked(ablation, skip_unfit)
    ablation = _alike(ablation, wanted)
    _claim(ablation, root)
    if launcher is None:
        devices = [run.plan.trainer.get("devices") for run in wanted]
        launcher = Processes(root, jobs, max((n for n in devices if type(n) is int and n > 0), default=1))
    measurements = _measurements(wanted, ablation)
    tasks: list[Task] = []
    everything = list(wanted)
    try:
        if measurements:
            slow = run_tasks(list({t.key: t for t in measurements.values()}.values()), root, launcher)
            broken = {run.folder: slow[task.key] for (run, _), task in _each(measurements, wanted) if task.key in slow}
            problems |= {_title(run): broken[run.folder] for run in wanted if run.folder in broken}
            wanted = [_timed(run, ablation, measurements, root) for run in wanted if run.folder not in broken]
            timed = {run.folder: run for run in wanted}
            everything = [timed.get(run.folder, run) for run in everything]
        for run in wanted:
            _same(run, root)
        tasks = work(wanted, ablation)
        log.info("%s", summary(wanted, tasks))
        failed = run_tasks(tasks, root, launcher)
        runs_of = {_evaluation_key(run): _title(run) for run in wanted}
        problems |= {runs_of[key]: reason for key, reason in failed.items() if key in runs_of}
    finally:
        places = {task.folder: task.parts for task in tasks if task.kind == "evaluate"}
        if places:
            write_results(root, ablation, everything, places, problems)
    return problems


def preview_ablation(ablation: Ablation, folder: str | Path, *, skip_unfit: bool = False) -> list[str]:
    """Lines on what :func:`ablate` would do.

    Raises:
        PartitaError: A variant makes no valid system.
    """
    root = Path(folder)
    wanted, unfit = _checked(ablation, skip_unfit)
    ablation = _alike(ablation, wanted)
    _claim(ablation, root, write=False)
    lines = [f"left out: {name}: {reason}" for name, reason in unfit.items()]
    measurements = _measurements(wanted, ablation)
    tasks = list({task.key: task for task in measurements.values()}.values())
    if all(task.done(root) for task in tasks):
        wanted = [_timed(run, ablation, measurements, root) for run in wanted]
    else:
        lines.append("how many steps fit into the minutes is measured first; there are more or fewer of them then")
    if all(task.done(root) for task in tasks):
        for run in wanted:
            _same(run, root)
    parts = work(wanted, ablation)
    evaluations = {task.folder: task for task in parts if task.kind == "evaluate"}
    steps = {
        evaluations[run.folder].parts[key]: f": {part.fit_options.steps:,} steps of {part.fit_options.examples}"
        for run in wanted
        for key, part in trained(run).items()
    }
    done = {True: "done", False: "to do"}
    lines += [f"{done[task.done(root)]}: {task.label}{steps.get(task.folder, '')}" for task in [*tasks, *parts]]
    return [f"{summary(wanted, parts)}; baseline: {wanted[0].variant.title}; in {root}", *lines]


def work(wanted: Sequence[Run], ablation: Ablation) -> list[Task]:
    """The tasks of an ablation, each part's training once."""
    tasks: dict[str, Task] = {}
    for run in wanted:
        made: dict[PartKey, Task] = {}
        for key in separate(run):
            recipe = recipe_of(run, key)
            task_key = fingerprint(recipe, key)
            if task_key not in tasks:
                before = {name: made[name] for name in dependencies(run, key) if name in made}
                tasks[task_key] = Task(
                    task_key,
                    "train",
                    f"{key} of {_title(run)}",
                    f"parts/{task_key}",
                    _yaml(recipe),
                    key,
                    {name: other.folder for name, other in before.items()},
                    tuple(dict.fromkeys(other.key for other in before.values())),
                )
            made[key] = tasks[task_key]
            if key.group == "stages":
                joint = run.outline.stages[key.name].joint
                made |= {PartKey.of("conditioners", name): made[key] for name in joint}
        task_key = _evaluation_key(run)
        tasks[task_key] = Task(
            task_key,
            "evaluate",
            f"evaluation of {_title(run)}",
            run.folder,
            _yaml(run.plan.values),
            parts={name: other.folder for name, other in made.items()},
            needs=tuple(dict.fromkeys(other.key for other in made.values())),
            options=json.loads(json.dumps(plain(ablation.evaluation))),
        )
    return list(tasks.values())


def summary(wanted: Sequence[Run], tasks: Sequence[Task]) -> str:
    """A line on the number of variants, trainings and evaluations."""
    apart = sum(len(trained(run)) for run in wanted)
    evaluations = {task.folder: task for task in tasks if task.kind == "evaluate"}
    shared = {evaluations[run.folder].parts[folder] for run in wanted for folder in trained(run)}
    return (
        f"{len({run.variant.name for run in wanted})} variants, {len(wanted)} runs: {len(shared)} parts to train "
        f"(in runs that share nothing, {apart}), {len(wanted)} evaluations"
    )


def _checked(ablation: Ablation, skip_unfit: bool) -> tuple[list[Run], dict[str, str]]:
    """Check everything that can be checked before anything is trained."""
    wanted, unfit = runs(ablation, skip_unfit=skip_unfit)
    scores, embedders = chosen_scores(ablation.evaluation), Embedders()
    sources: dict[str, Run] = {}
    for run in wanted:
        measurable(scores, ablation.evaluation, run.outline)
        sources.setdefault(_yaml(run.plan.values.get("data")), run)
    for score in scores.values():
        score.load(embedders)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # what was skipped, every training says
        for run in sources.values():
            run.outline.source.setup()
            run.outline.check_fields()
    return wanted, unfit


def _alike(ablation: Ablation, wanted: Sequence[Run]) -> Ablation:
    """The ablation with clips of one length, if the windows of its variants differ."""
    windows = {run.plan.last_stage.window for run in wanted if run.plan.stages}
    if ablation.evaluation.duration is not None or len(windows) < 2:
        return ablation
    return replace(ablation, evaluation=replace(ablation.evaluation, duration=min(windows)))


def _claim(ablation: Ablation, root: Path, write: bool = True) -> None:
    """Make the folder this ablation's, or check that it is. It may grow, but its clips must stay comparable."""
    path, values = root / REQUEST, plain(ablation)
    if path.is_file():
        then, now = yaml.safe_load(path.read_text(encoding="utf-8")).get("evaluation", {}), values["evaluation"]
        if lines := [f"  {key}: {then.get(key)} → {now[key]}" for key in LASTING if then.get(key) != now[key]]:
            raise PartitaError(
                f"the clips in {root} were generated in another way, and could not be compared with new ones; choose "
                "another folder with -o. What differs:\n" + "\n".join(lines)
            )
    elif root.exists() and any(p.name != "tasks" and not p.name.startswith(".") for p in root.iterdir()):
        raise PartitaError(f"{root} is not empty and holds no ablation: choose another folder with -o")
    if not write:
        return
    with replacing_file(path) as new:
        new.write_text(_yaml(values), encoding="utf-8")


def _same(run: Run, root: Path) -> None:
    """Check that a run that is there already has the same recipe."""
    index = root / run.folder / INDEX
    if index.is_file() and fingerprint(yaml.safe_load(index.read_text(encoding="utf-8"))) != fingerprint(
        numbered(run.plan.values)
    ):
        raise PartitaError(
            f"{root / run.folder} is a run of another recipe than {_title(run)} is now (or has another budget): choose "
            "another folder with -o, or delete that one"
        )


def _measurements(wanted: Sequence[Run], ablation: Ablation) -> dict[tuple[str, str], Task]:
    """For each run and part with a budget in minutes, the task that measures its speed, once for all seeds."""
    tasks: dict[tuple[str, str], Task] = {}
    for run in wanted:
        first = replace(run, seed=0)
        for key in trained(run):
            if "minutes" in ablation.budget.get(key.group, {}):
                recipe = recipe_of(first, key)
                task_key = f"measure-{fingerprint(recipe, key)}"
                label = f"measuring {key} of {run.variant.title}"
                tasks[run.folder, key] = Task(task_key, "measure", label, f"parts/{task_key}", _yaml(recipe), key)
    return tasks


def _each(measurements: Mapping[tuple[str, str], Task], wanted: Sequence[Run]) -> list[tuple[tuple[Run, str], Task]]:
    by_folder = {run.folder: run for run in wanted}
    return [((by_folder[place], part), task) for (place, part), task in measurements.items()]


def _timed(run: Run, ablation: Ablation, measurements: Mapping[tuple[str, str], Task], root: Path) -> Run:
    """The run with as many steps as fit into its minutes."""
    seconds: dict[str, Any] = {
        part: json.loads((root / task.folder / SPEED).read_text(encoding="utf-8"))["seconds_per_step"]
        for (place, part), task in measurements.items()
        if place == run.folder
    }
    return with_steps(run, ablation.budget, seconds)


def _title(run: Run) -> str:
    return f"{run.variant.title}, seed {run.seed}"


def _evaluation_key(run: Run) -> str:
    return f"evaluate-{run.variant.name}-seed-{run.seed}"


def _yaml(values: Any) -> str:
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
