"""The tasks of an ablation: trainings, stored tokens, measurements and evaluations, each run in its own process."""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from filelock import FileLock
from lightning.pytorch.utilities import rank_zero_only

from ..core.part_key import PartKey
from ..core.registry import UnknownName
from ..core.schema import build
from ..data.token_catalog import CATALOG
from ..errors import PartitaError
from ..recipe.compose import compose
from ..recipe.plan import Plan, check_recipe
from ..storage.files import replacing_file, replacing_folder
from ..system.assembly import INDEX, index_yaml
from ..system.system import System, load
from ..training.tokenize import tokenize
from ..training.training import TOKENS, seconds_per_step, train
from .comparison import reconstruct
from .evaluate import evaluate
from .evaluation_options import Evaluation

SPEED = "speed.json"
"""Name of the file with a measured training speed, in the folder of the task."""

DONE = "done.json"
"""Name of the file that marks a run as evaluated and holds its generation speed, in the ``evaluation`` folder."""

RANK_ZERO_TIMEOUT = 600.0
"""Seconds that the other processes of a distributed training wait for the first one to prepare the run."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Task:
    """One task of an ablation. It is stored as a file, so that any process can run or repeat it.

    Args:
        key: Identifier of the task, and name of its files.
        kind: Kind of task: train (or load) a part, store the tokens on which stages are trained, measure the training
            speed of a part, or evaluate a system.
        label: Name of the task in messages.
        folder: Folder of the task's run, relative to the folder of the ablation.
        recipe: Recipe of the run, as YAML.
        part: Key of the part that is trained or measured.
        parts: Folder of the run that holds each part trained by another task, by key of the part.
        needs: Keys of the tasks that must be completed before.
        tokens: Folder of the task that stored the tokens on which a stage is trained. Empty to train it on the data.
        options: Options of an evaluation.
    """

    key: str
    kind: Literal["train", "store", "measure", "evaluate"]
    label: str
    folder: str
    recipe: str
    part: str = ""
    parts: dict[str, str] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    tokens: str = ""
    options: dict[str, Any] = field(default_factory=dict)

    def write(self, root: Path) -> None:
        """Write the file that :func:`perform_task` reads."""
        _write(root / "tasks" / f"{self.key}.json", asdict(self))

    def done(self, root: Path) -> bool:
        """Return whether the results of the task exist."""
        results = {"train": f"{self.part}/model.safetensors", "store": f"{TOKENS}/{CATALOG}", "measure": SPEED}
        result = root / self.folder / results.get(self.kind, f"evaluation/{DONE}")
        return result.is_file() and (self.kind != "evaluate" or _read(result)["options"] == self.options)

    def log(self, root: Path) -> Path:
        """Return the path of the file with the task's output."""
        return root / "tasks" / f"{self.key}.log"

    def error(self, root: Path) -> Path:
        """Return the path of the file with the reason of a failure."""
        return root / "tasks" / f"{self.key}.error"


def perform_task(root: str | Path, key: str) -> None:
    """Run a task, or resume it.

    Tasks never run twice: a second process waits for the first one and finds the task completed. In a distributed
    training, only the process of rank zero prepares the run.

    Args:
        root: Folder of the ablation.
        key: Key of the task.
    """
    root = Path(root)
    task = Task(**_read(root / "tasks" / f"{key}.json"))
    try:
        if getattr(rank_zero_only, "rank", 0):
            if task.kind in ("train", "measure") and not task.done(root):
                _wait(task, root)
                _ACTIONS[task.kind](task, root)
            return
        with FileLock(root / "tasks" / f"{key}.lock"):
            if not task.done(root):
                task.error(root).unlink(missing_ok=True)
                _prepare(task, root)
                _ACTIONS[task.kind](task, root)
    except Exception as error:
        if not task.error(root).exists():  # in a distributed training, the first failure is the cause
            ours = isinstance(error, PartitaError | UnknownName)
            task.error(root).write_text(str(error) if ours else f"{type(error).__name__}: {error}", encoding="utf-8")
        raise


def _prepare(task: Task, root: Path) -> None:
    """Copy the parts that a task needs, and write the recipe last, which tells other processes to start."""
    for key, place in task.parts.items():
        if not (root / place / key / "model.safetensors").is_file():
            raise PartitaError(f"{key} is no longer in {root / place}: run the same command again")
        _copy_folder(root / place, root / task.folder, key)
        _copy_folder(root / place, root / task.folder, f"logs/{key}")
    index = root / task.folder / INDEX
    if not index.is_file():
        with replacing_file(index) as new:
            new.write_text(index_yaml(check_recipe(compose(yaml.safe_load(task.recipe)))), encoding="utf-8")


def _wait(task: Task, root: Path) -> None:
    files = [root / task.folder / INDEX, *(root / task.folder / part / "model.safetensors" for part in task.parts)]
    begin = time.monotonic()
    while not all(file.is_file() for file in files):
        if time.monotonic() - begin > RANK_ZERO_TIMEOUT:
            raise PartitaError(
                f"the first process of {task.label} did not start within {RANK_ZERO_TIMEOUT:g} s: run the same command "
                "again"
            )
        time.sleep(0.1)


def _train(task: Task, root: Path) -> None:
    tokens, key = root / task.tokens / TOKENS if task.tokens else None, PartKey(task.part)
    system = train(_plan(task, root), root / task.folder, only=key, tokens=tokens)
    if system.adapter_of(key) is not None and not getattr(rank_zero_only, "rank", 0):
        system.parts[key].save(root / task.folder / key)  # with the adapter, as any other part of the variants


def _store(task: Task, root: Path) -> None:
    plan = _plan(task, root)
    workers = max(stage.fit_options.num_workers for stage in System.outline(plan).stages.values())
    device = "cpu" if plan.trainer.get("accelerator") == "cpu" else "auto"
    how: dict[str, Any] = {"workers": workers, "device": device, "node": (0, 1)}  # the first process does all of it
    tokenize(root / task.folder, root / task.folder / TOKENS, progress=False, **how)


def _measure(task: Task, root: Path) -> None:
    seconds = seconds_per_step(_plan(task, root), PartKey(task.part))
    if not getattr(rank_zero_only, "rank", 0):
        _write(root / task.folder / SPEED, {"seconds_per_step": seconds})


def _evaluate(task: Task, root: Path) -> None:
    run, device = root / task.folder, "cuda" if torch.cuda.is_available() else "cpu"
    for key, part in System(_plan(task, root)).parts.items():
        if part.weightless:
            part.save(run / key)
        elif _read(run / key / "config.json") != json.loads(json.dumps(part.saved_config)):
            _write(run / key / "config.json", part.saved_config)  # a shared part can differ in generation settings
    evaluate(run, options=build(Evaluation, task.options), device=device)
    _write(run / "evaluation" / DONE, {"options": task.options, **_speed(load(run, device=device))})


_ACTIONS = {"train": _train, "store": _store, "measure": _measure, "evaluate": _evaluate}


def _plan(task: Task, root: Path) -> Plan:
    return check_recipe(compose(root / task.folder / INDEX))


def _speed(system: System) -> dict[str, Any]:
    """Return seconds of audio generated (or reconstructed by a codec) per second: the better of two single clips."""
    system.source.setup()
    piece = system.examples("test", 1, seed=0, seconds=10.0)[0]
    seconds, prompts = [], system.prompts_of([piece.fields])
    for _ in range(2):
        start = time.perf_counter()
        if system.stages:
            audio = system.generate(prompts, seed=0).cpu()
        else:
            audio = reconstruct(system.output, piece.audio[None], system.device)
        seconds.append(time.perf_counter() - start)
    device = torch.cuda.get_device_name() if system.device.type == "cuda" else "cpu"
    return {"audio_seconds_per_second": audio.shape[-1] / system.sample_rate / min(seconds), "device": device}


def _copy_folder(source: Path, run: Path, name: str) -> None:
    """Copy a folder from another run, with hard links where the file system supports them."""
    if (source / name).is_dir() and not _same_files(source / name, run / name):
        with replacing_folder(run / name) as new:
            shutil.copytree(source / name, new, copy_function=_link, dirs_exist_ok=True)


def _same_files(one: Path, other: Path) -> bool:
    """Return whether another folder holds all files of a folder with the same sizes and times."""

    def kept(path: Path) -> tuple[int, int]:
        stat = path.stat()
        return stat.st_size, stat.st_mtime_ns

    files = [path.relative_to(one) for path in one.rglob("*") if path.is_file() and path.name != "config.json"]
    return other.is_dir() and all((other / f).is_file() and kept(one / f) == kept(other / f) for f in files)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _write(path: Path, values: Mapping[str, Any]) -> None:
    with replacing_file(path) as new:
        new.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
