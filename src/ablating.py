"""Running an ablation: every part trained once, every variant evaluated, and one page of results."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import yaml

from .ablation import Ablation, Run, dependencies, fingerprint, recipe_of, runs, separate, trained, with_steps
from .ablation_results import write_results
from .compose import flat
from .errors import PartitaError
from .files import replacing_file
from .launch import Launcher, Processes, run_tasks
from .schema import plain
from .system import INDEX, index_text
from .tasks import SPEED, Task

REQUEST = "ablation.yaml"


def ablate(
    ablation: Ablation,
    folder: str | Path,
    *,
    launcher: Launcher | None = None,
    skip_unfit: bool = False,
    say: Callable[[str], None] = lambda line: None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, str]:
    """Train and evaluate every variant with every seed, and write ``ablation.html``, ``.csv`` and ``.md``.

    What several variants have in common is trained once for each seed. Run again to go on where a run was stopped, to
    try again what failed, or with more variants or seeds.

    Args:
        ablation: What is compared.
        folder: Of everything it makes; every variant's runs are in ``variants``, each like any other run.
        launcher: Who does the work; processes of this machine where none is given.
        skip_unfit: Whether variants that no system can be made of are left out instead of refused.
        say: Gets a line on each thing done.
        progress: Called with (tasks that have ended, tasks in all).

    Returns:
        By name of a variant and its seed, why there is no result of it.

    Raises:
        PartitaError: Variants cannot be, or the folder holds another ablation.
    """
    root = Path(folder)
    found = _checked(ablation, skip_unfit)
    _claim(ablation, root)
    launcher = launcher or Processes(root)
    wanted, problems = found
    if any("minutes" in amount for amount in ablation.budget.values()):
        wanted, slow = _in_time(wanted, ablation, root, launcher, say)
        problems |= slow
    for run in wanted:
        _same(run, root)
    tasks = work(wanted, ablation)
    say(summary(wanted))
    failed = run_tasks(tasks, root, launcher, say, progress)
    evaluations = {_evaluation_key(run): f"{run.variant.name}, seed {run.seed}" for run in wanted}
    problems |= {evaluations[key]: reason for key, reason in failed.items() if key in evaluations}
    places = {task.folder: task.parts for task in tasks if task.kind == "evaluate"}
    write_results(root, ablation, wanted, places, problems)
    return problems


def preview(ablation: Ablation, folder: str | Path, *, skip_unfit: bool = False) -> list[str]:
    """What :func:`ablate` would do, in lines.

    Raises:
        PartitaError: Variants cannot be.
    """
    wanted, unfit = _checked(ablation, skip_unfit)
    lines = [summary(wanted), *(f"left out: {name}: {reason}" for name, reason in unfit.items())]
    done = {True: "done", False: "to do"}
    return lines + [f"{done[task.done(Path(folder))]}: {task.label}" for task in work(wanted, ablation)]


def work(wanted: Sequence[Run], ablation: Ablation) -> list[Task]:
    """The tasks of an ablation, each part's training once."""
    tasks: dict[str, Task] = {}
    for run in wanted:
        made: dict[str, Task] = {}
        for folder in separate(run):
            recipe = recipe_of(run, folder)
            key = fingerprint(recipe, folder)
            before = {name: made[name] for name in dependencies(run, folder) if name in made}
            task = Task(
                key,
                "train",
                f"{folder} of {run.variant.name}, seed {run.seed}",
                f"parts/{key}",
                index_text(recipe),
                folder,
                {name: other.folder for name, other in before.items()},
                tuple(dict.fromkeys(other.key for other in before.values())),
            )
            made[folder] = tasks.setdefault(key, task)
            group, name = folder.split("/")
            if group == "stages":
                made |= {f"conditioners/{joint}": made[folder] for joint in run.outline.stages[name].joint}
        key = _evaluation_key(run)
        tasks[key] = Task(
            key,
            "evaluate",
            f"evaluation of {run.variant.name}, seed {run.seed}",
            run.folder,
            index_text(run.plan),
            parts={name: other.folder for name, other in made.items()},
            needs=tuple(dict.fromkeys(other.key for other in made.values())),
            options=json.loads(json.dumps(plain(ablation.evaluation))),
        )
    return list(tasks.values())


def summary(wanted: Sequence[Run]) -> str:
    """A line on how much there is to do."""
    parts = [(run, folder) for run in wanted for folder in trained(run)]
    apart = len({fingerprint(recipe_of(run, folder), folder) for run, folder in parts})
    return (
        f"{len({run.variant.name for run in wanted})} variants, {len(wanted)} runs: {apart} parts to train "
        f"(in runs that share nothing, {len(parts)}), {len(wanted)} evaluations"
    )


def _checked(ablation: Ablation, skip_unfit: bool) -> tuple[list[Run], dict[str, str]]:
    wanted, unfit = runs(ablation)
    if unfit and not skip_unfit:
        lines = "\n".join(f"{name}: {reason}" for name, reason in unfit.items())
        raise PartitaError(f"these variants cannot be made; mend them, or leave them out with --skip-unfit:\n{lines}")
    return wanted, unfit


def _claim(ablation: Ablation, root: Path) -> None:
    """Make the folder this ablation's, or see that it is: it may grow, but what is there must stay comparable."""
    path, values = root / REQUEST, plain(ablation)
    if path.is_file():
        old = yaml.safe_load(path.read_text(encoding="utf-8"))
        constant = [
            {key: value for key, value in flat(v) if not key.startswith(("vary", "variants"))} for v in (old, values)
        ]
        changed = [key for key in constant[0] | constant[1] if constant[0].get(key) != constant[1].get(key)]
        if changed:
            lines = [f"  {key}: {constant[0].get(key, 'unset')} → {constant[1].get(key, 'unset')}" for key in changed]
            raise PartitaError(
                f"{root} holds another ablation, which can get more variants and seeds, but not other values of what "
                "they have in common; choose another folder with -o. What differs:\n" + "\n".join(lines[:12])
            )
    elif root.exists() and any(path.name != "tasks" for path in root.iterdir()):  # a launcher may have begun that one
        raise PartitaError(f"{root} is not empty and holds no ablation: choose another folder with -o")
    with replacing_file(path) as new:
        new.write_text(yaml.safe_dump(values, sort_keys=False, allow_unicode=True), encoding="utf-8")


def _same(run: Run, root: Path) -> None:
    """See that a run that is there already is of the same recipe."""
    index = root / run.folder / INDEX
    if index.is_file() and index.read_text(encoding="utf-8") != index_text(run.plan):
        raise PartitaError(
            f"{root / run.folder} is a run of another recipe than {run.variant.name} is now: choose another folder "
            "with -o, or delete that one"
        )


def _in_time(
    wanted: Sequence[Run], ablation: Ablation, root: Path, launcher: Launcher, say: Callable[[str], None]
) -> tuple[list[Run], dict[str, str]]:
    """The runs with as many steps as fit into their minutes, which are measured once for each variant."""
    tasks: dict[tuple[str, str], Task] = {}
    for run in wanted:
        first = replace(run, seed=ablation.seeds[0])
        for folder in trained(run):
            if "minutes" in ablation.budget.get(folder.split("/")[0], {}):
                recipe = recipe_of(first, folder)
                key = f"measure-{fingerprint(recipe, folder)}"
                label = f"measuring {folder} of {run.variant.name}"
                tasks[run.folder, folder] = Task(key, "measure", label, f"parts/{key}", index_text(recipe), folder)
    failed = run_tasks(list({task.key: task for task in tasks.values()}.values()), root, launcher, say)
    timed, problems = [], {}
    for run in wanted:
        mine = {folder: task for (place, folder), task in tasks.items() if place == run.folder}
        broken = [failed[task.key] for task in mine.values() if task.key in failed]
        if broken:
            problems[f"{run.variant.name}, seed {run.seed}"] = broken[0]
            continue
        seconds = {
            folder: json.loads((root / task.folder / SPEED).read_text(encoding="utf-8"))["seconds_per_step"]
            for folder, task in mine.items()
        }
        timed.append(with_steps(run, ablation.budget, seconds))
    if not timed:
        raise PartitaError(f"no variant's steps could be timed: {next(iter(problems.values()))}")
    return timed, problems


def _evaluation_key(run: Run) -> str:
    return f"evaluate-{run.variant.name}-seed-{run.seed}"
