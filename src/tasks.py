"""The pieces of work of an ablation: trainings, measurements and evaluations, each done by a process of its own."""

from __future__ import annotations

import json
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

from .compose import compose
from .data.examples import Examples
from .evaluate import Evaluation, evaluate
from .files import replacing_file, replacing_folder
from .recipe import Plan
from .recipe import plan as check_recipe
from .schema import build
from .scores import again
from .system import INDEX, System
from .training import seconds_per_step, train

SPEED = "speed.json"
"""What a measurement found, in its folder."""

DONE = "done.json"
"""Marks a run as evaluated, in its ``evaluation`` folder, and says how fast it generates."""


@dataclass(frozen=True)
class Task:
    """One piece of work; it is kept as a file, so that another process can do it, and do it again.

    Args:
        key: Its name, fit for a file's.
        kind: What is to be done: train a part, measure how long its training would take, or evaluate a system.
        label: Its name for people.
        folder: The run it works in, in the folder of the ablation.
        recipe: Of that run, resolved.
        part: Folder of the part that is trained or measured.
        parts: Parts that other tasks have trained: where each is, by folder.
        needs: Keys of those tasks.
        options: Of an evaluation.
    """

    key: str
    kind: Literal["train", "measure", "evaluate"]
    label: str
    folder: str
    recipe: str
    part: str = ""
    parts: dict[str, str] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)

    def write(self, root: Path) -> None:
        """Write the file that :func:`perform` reads."""
        with replacing_file(root / "tasks" / f"{self.key}.json") as new:
            new.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")

    def done(self, root: Path) -> bool:
        """Whether it is."""
        result = {
            "train": f"{self.part}/model.safetensors",
            "measure": SPEED,
            "evaluate": f"evaluation/{DONE}",
        }[self.kind]
        if not (root / self.folder / result).is_file():
            return False
        return self.kind != "evaluate" or _read(root / self.folder / result)["options"] == self.options

    def log(self, root: Path) -> Path:
        """The file that whatever it says goes to."""
        return root / "tasks" / f"{self.key}.log"


def perform(root: str | Path, key: str) -> None:
    """Do a task, from where it stands.

    Nobody does the same one twice: who comes second waits, and finds it done. Of the processes that train one part
    together, the first does what only one can.

    Args:
        root: Folder of the ablation.
        key: Of the task.
    """
    root = Path(root)
    task = Task(**_read(root / "tasks" / f"{key}.json"))
    run, plan = root / task.folder, check_recipe(compose(yaml.safe_load(task.recipe)))
    if getattr(rank_zero_only, "rank", 0):
        while not (run / INDEX).is_file() and task.kind == "train":
            time.sleep(0.1)
        _fit(task, plan, run)
        return
    with FileLock(root / "tasks" / f"{key}.lock"):
        if task.done(root):
            return
        for folder, place in task.parts.items():
            _take_over(root / place, run, folder)
        with replacing_file(run / INDEX) as new:  # last: it tells the other processes that all is there
            new.write_text(task.recipe, encoding="utf-8")
        result = _fit(task, plan, run)
        if isinstance(result, float):
            _write(run / SPEED, {"seconds_per_step": result})
        elif task.kind == "evaluate":
            device = "cuda" if torch.cuda.is_available() else "cpu"
            evaluate(run, options=build(Evaluation, task.options), device=device, say=_say)
            _write(run / "evaluation" / DONE, {"options": task.options, **_generation_speed(result.to(device))})


def _fit(task: Task, plan: Plan, run: Path) -> System | float:
    """What several processes may do together: train, or measure that. For an evaluation, there is nothing to train."""
    return seconds_per_step(plan, task.part) if task.kind == "measure" else train(plan, run, say=_say)


def _generation_speed(system: System) -> dict[str, Any]:
    """Seconds of audio that a second makes, one clip at a time, or brings through a codec alone; the better of two."""
    piece = Examples.at(system.output.representation, system.source, "test", 1, 10.0, seed=0)[0]
    seconds, prompts = [], system.prompts_of([piece.fields])
    for _ in range(2):
        start = time.perf_counter()
        if system.stages:
            audio = system.generate(prompts, seed=0).cpu()
        else:
            audio = again(system.output, piece.audio[None], system.device)
        seconds.append(time.perf_counter() - start)
    device = torch.cuda.get_device_name() if system.device.type == "cuda" else "cpu"
    return {"audio_seconds_per_second": audio.shape[-1] / system.sample_rate / min(seconds), "device": device}


def _take_over(source: Path, run: Path, folder: str) -> None:
    """A trained part and its logs from another run, without a second copy where the file system can do that."""
    for name, sign in ((folder, "model.safetensors"), (f"logs/{folder}", ".")):
        if (source / name).is_dir() and not (run / name / sign).exists():
            with replacing_folder(run / name) as new:
                shutil.copytree(source / name, new, copy_function=_link, dirs_exist_ok=True)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _say(line: object) -> None:
    print(line, flush=True)  # noqa: T201  (to the log of the task)


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _write(path: Path, values: Mapping[str, Any]) -> None:
    with replacing_file(path) as new:
        new.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
