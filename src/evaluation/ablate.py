"""Running an ablation: train each distinct part once, evaluate every variant, and write one page of results."""

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
from ..data.overview import check_training_pieces
from ..errors import PartitaError
from ..recipe.recipe_files import read_yaml
from ..storage.files import replacing_file
from ..system.assembly import INDEX, index_yaml
from ..training.token_plan import check_tokens
from .ablation import Ablation
from .ablation_page import write_results
from .ablation_runs import (
    Run,
    dependencies,
    fingerprint,
    identity_of,
    make_runs,
    recipe_of,
    standalone_parts,
    stored_tokens,
    tokens_identity,
    trained_parts,
    with_steps,
)
from .embedders import Embedders
from .launch import Launcher, Processes, run_tasks
from .scoring import chosen_scores, measurable
from .tasks import SPEED, Task

REQUEST = "ablation.yaml"

FIXED_OPTIONS = ("duration", "seed", "precision")
"""Evaluation options that cannot change between calls, because the generated clips depend on them."""

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

    A part that several variants share is trained once for each seed. Call it again to continue after an interruption,
    to retry failed tasks, or to add variants or seeds. Messages are logged to ``partita.evaluation`` (INFO), and
    progress is reported to :func:`partita.core.progress.reporting`.

    Args:
        ablation: The variants, budgets and evaluation options.
        folder: Folder for all results. Its subfolder ``variants`` holds an ordinary run for each variant and seed.
        launcher: Launcher that runs the tasks. ``None`` runs them as processes on this machine.
        jobs: Number of these processes. ``None`` runs as many as the GPUs allow, or one without GPUs.
        skip_unfit: Whether to leave out variants that are not valid systems instead of raising an error.

    Returns:
        The reason for each variant without a result, by the title of the variant with its seed.

    Raises:
        PartitaError: A variant is not a valid system, or the folder holds another ablation.
    """
    if not isinstance(ablation, Ablation):
        raise PartitaError(f"ablate takes an Ablation, such as read_ablation returns, not {ablation!r}")
    root = Path(folder)
    requested, problems = _checked_runs(ablation, skip_unfit)
    ablation = _with_common_duration(ablation, requested)
    _claim_folder(ablation, root)
    if launcher is None:
        devices = [run.plan.trainer.get("devices") for run in requested]
        launcher = Processes(root, jobs, max((n for n in devices if type(n) is int and n > 0), default=1))
    measurements = _measurements(requested, ablation)
    tasks: list[Task] = []
    everything = list(requested)
    try:
        if measurements:
            slow = run_tasks(list({t.key: t for t in measurements.values()}.values()), root, launcher)
            broken = {
                run.folder: slow[task.key] for (run, _), task in _with_runs(measurements, requested) if task.key in slow
            }
            problems |= {_title(run): broken[run.folder] for run in requested if run.folder in broken}
            requested = [
                _with_measured_steps(run, ablation, measurements, root) for run in requested if run.folder not in broken
            ]
            timed = {run.folder: run for run in requested}
            everything = [timed.get(run.folder, run) for run in everything]
        for run in requested:
            _check_same_recipe(run, root)
        tasks = plan_tasks(requested, ablation)
        log.info("%s", summary(requested, tasks))
        failed = run_tasks(tasks, root, launcher)
        titles = {_evaluation_key(run): _title(run) for run in requested}
        problems |= {titles[key]: reason for key, reason in failed.items() if key in titles}
    finally:
        part_folders = {task.folder: task.parts for task in tasks if task.kind == "evaluate"}
        if part_folders:
            write_results(root, ablation, everything, part_folders, problems)
    return problems


def preview_ablation(ablation: Ablation, folder: str | Path, *, skip_unfit: bool = False) -> list[str]:
    """Return lines of text that describe what :func:`ablate` would do.

    Raises:
        PartitaError: A variant is not a valid system, or the folder holds another ablation.
    """
    root = Path(folder)
    requested, unfit = _checked_runs(ablation, skip_unfit)
    ablation = _with_common_duration(ablation, requested)
    _claim_folder(ablation, root, write=False)
    lines = [f"left out: {name}: {reason}" for name, reason in unfit.items()]
    measurements = _measurements(requested, ablation)
    tasks = list({task.key: task for task in measurements.values()}.values())
    if all(task.done(root) for task in tasks):
        requested = [_with_measured_steps(run, ablation, measurements, root) for run in requested]
    else:
        lines.append("step speeds are measured first; budgets in minutes then change the numbers of steps below")
    if all(task.done(root) for task in tasks):
        for run in requested:
            _check_same_recipe(run, root)
    parts = plan_tasks(requested, ablation)
    evaluations = {task.folder: task for task in parts if task.kind == "evaluate"}
    steps = {
        evaluations[run.folder].parts[key]: f": {part.fit_options.steps:,} steps of {part.fit_options.examples}"
        for run in requested
        for key, part in trained_parts(run).items()
    }
    done = {True: "done", False: "to do"}
    lines += [f"{done[task.done(root)]}: {task.label}{steps.get(task.folder, '')}" for task in [*tasks, *parts]]
    return [f"{summary(requested, parts)}; baseline: {requested[0].variant.title}; in {root}", *lines]


def plan_tasks(requested: Sequence[Run], ablation: Ablation) -> list[Task]:
    """Return the tasks of an ablation, with one training task for each distinct part."""
    tasks: dict[str, Task] = {}
    for run in requested:
        part_tasks: dict[PartKey, Task] = {}
        stored: Task | None = None
        for key in standalone_parts(run):
            task_key = identity_of(run, key)
            if task_key not in tasks:
                if key.group == "stages" and stored_tokens(run) and key in trained_parts(run) and stored is None:
                    stored = _storing(run, part_tasks)
                    tasks.setdefault(stored.key, stored)
                before = {name: part_tasks[name] for name in dependencies(run, key) if name in part_tasks}
                tasks[task_key] = Task(
                    task_key,
                    "train",
                    f"{key} of {_title(run)}",
                    f"parts/{task_key}",
                    _yaml(recipe_of(run, key)),
                    key,
                    {name: other.folder for name, other in before.items()},
                    tuple(dict.fromkeys(other.key for other in (*before.values(), *([stored] if stored else [])))),
                    stored.folder if stored else "",
                )
            part_tasks[key] = tasks[task_key]
            if key.group == "stages":
                joint = run.outline.stages[key.name].joint
                part_tasks |= {PartKey.of("conditioners", name): part_tasks[key] for name in joint}
        task_key = _evaluation_key(run)
        tasks[task_key] = Task(
            task_key,
            "evaluate",
            f"evaluation of {_title(run)}",
            run.folder,
            _yaml(run.plan.values),
            parts={name: other.folder for name, other in part_tasks.items()},
            needs=tuple(dict.fromkeys(other.key for other in part_tasks.values())),
            options=json.loads(json.dumps(plain(ablation.evaluation))),
        )
    return list(tasks.values())


def _storing(run: Run, part_tasks: Mapping[PartKey, Task]) -> Task:
    """Return the task that stores the tokens of a run, once its tokenizers and conditioners are trained."""
    before = {key: task for key, task in part_tasks.items() if key.group != "stages" and task.part == key}
    return Task(
        f"tokens-{tokens_identity(run)}",
        "store",
        f"tokens of {_title(run)}",
        f"parts/tokens-{tokens_identity(run)}",
        _yaml(run.plan.values),
        parts={key: task.folder for key, task in before.items()},
        needs=tuple(dict.fromkeys(task.key for task in before.values())),
    )


def summary(requested: Sequence[Run], tasks: Sequence[Task]) -> str:
    """Return a line with the numbers of variants, runs, parts to train and evaluations."""
    unshared = sum(len(trained_parts(run)) for run in requested)
    evaluations = {task.folder: task for task in tasks if task.kind == "evaluate"}
    shared = {evaluations[run.folder].parts[folder] for run in requested for folder in trained_parts(run)}
    return (
        f"{len({run.variant.name for run in requested})} variants, {len(requested)} runs: {len(shared)} parts to train "
        f"({unshared} without sharing), {len(requested)} evaluations"
    )


def _checked_runs(ablation: Ablation, skip_unfit: bool) -> tuple[list[Run], dict[str, str]]:
    """Return the runs and the variants left out, after checking everything that can be checked before training."""
    requested, unfit = make_runs(ablation, skip_unfit=skip_unfit)
    scores, embedders = chosen_scores(ablation.evaluation), Embedders()
    sources: dict[str, Run] = {}
    for run in requested:
        measurable(scores, ablation.evaluation, run.outline)
        if (options := stored_tokens(run)) is not None:
            check_tokens(run.outline, options)
        sources.setdefault(_yaml(run.plan.values.get("data")), run)
    for score in scores.values():
        score.load(embedders)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # every training warns about skipped files again
        for run in sources.values():
            run.outline.source.setup()
            check_training_pieces(run.outline.source)
            run.outline.check_fields()
    return requested, unfit


def _with_common_duration(ablation: Ablation, requested: Sequence[Run]) -> Ablation:
    """Return the ablation with the shortest window as the clip duration, if the windows of its variants differ."""
    windows = {run.plan.window for run in requested if run.plan.stages}
    if ablation.evaluation.duration is not None or len(windows) < 2:
        return ablation
    return replace(ablation, evaluation=replace(ablation.evaluation, duration=min(windows)))


def _claim_folder(ablation: Ablation, root: Path, write: bool = True) -> None:
    """Claim the folder for this ablation, or check that its earlier clips are comparable with new ones."""
    path, values = root / REQUEST, plain(ablation)
    if path.is_file():
        then, now = read_yaml(path).get("evaluation", {}), values["evaluation"]
        if not isinstance(then, dict):
            raise PartitaError(f"{path} is damaged: delete it and run the same command again, or choose another folder")
        if lines := [f"  {key}: {then.get(key)} → {now[key]}" for key in FIXED_OPTIONS if then.get(key) != now[key]]:
            raise PartitaError(
                f"the clips in {root} were generated in another way, so new clips cannot be compared with them: choose "
                "another folder with -o. Differences:\n" + "\n".join(lines)
            )
    elif root.exists() and any(p.name != "tasks" and not p.name.startswith(".") for p in root.iterdir()):
        raise PartitaError(f"{root} is not empty and holds no ablation: choose another folder with -o")
    if not write:
        return
    with replacing_file(path) as new:
        new.write_text(_yaml(values), encoding="utf-8")


def _check_same_recipe(run: Run, root: Path) -> None:
    """Check that an existing run folder has the same recipe as the run."""
    index = root / run.folder / INDEX
    if index.is_file() and fingerprint(read_yaml(index)) != fingerprint(yaml.safe_load(index_yaml(run.plan))):
        raise PartitaError(
            f"{root / run.folder} holds a run of another recipe or budget than {_title(run)}: choose another folder "
            "with -o, or delete that one"
        )


def _measurements(requested: Sequence[Run], ablation: Ablation) -> dict[tuple[str, str], Task]:
    """Return the speed-measuring task of each run and part with a budget in minutes; all seeds share one task."""
    tasks: dict[tuple[str, str], Task] = {}
    for run in requested:
        first = replace(run, seed=0)
        for key in trained_parts(run):
            if "minutes" in ablation.budget.get(key.group, {}):
                task_key = f"measure-{identity_of(first, key)}"
                label = f"measuring {key} of {run.variant.title}"
                recipe = _yaml(recipe_of(first, key))
                tasks[run.folder, key] = Task(task_key, "measure", label, f"parts/{task_key}", recipe, key)
    return tasks


def _with_runs(
    measurements: Mapping[tuple[str, str], Task], requested: Sequence[Run]
) -> list[tuple[tuple[Run, str], Task]]:
    by_folder = {run.folder: run for run in requested}
    return [((by_folder[place], part), task) for (place, part), task in measurements.items()]


def _with_measured_steps(run: Run, ablation: Ablation, measurements: Mapping[tuple[str, str], Task], root: Path) -> Run:
    """Return the run with the number of steps that its budget in minutes allows at the measured speed."""
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
