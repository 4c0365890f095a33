"""Folders of shards of which something is damaged, lies or leads elsewhere."""

import json
import os
import pickle
import shutil
from pathlib import Path
from random import Random
from typing import Any

from .place import Command, Place
from .values import Raw, mutated, noisy


class _Payload:
    """An object that makes the canary when it is unpickled."""

    def __init__(self, canary: str) -> None:
        self.canary = canary

    def __reduce__(self):
        return os.mkdir, (self.canary,)


def shards(random: Random, place: Place) -> list[Command]:
    """A folder of shards that is spoiled in one or two ways, checked as data, and perhaps trained on."""
    target = place.folder / "shards"
    shutil.copytree(place.world.shards, target)
    for _ in range(random.choice([1, 1, 2])):
        _spoil(random, place, target)
    data = "data={name: shards, path: shards}"
    weights = [f"tokenizers.acoustic.weights={place.world.system}/tokenizers/acoustic", "tokenizers.acoustic.fit=null"]
    check = ["check", str(place.world.recipe), data, *weights, "--data"]
    if random.random() < 0.2:
        steps = ["stages.main.generator.fit.steps=1", "trainer.logger=false"]
        return [check, ["train", str(place.world.recipe), data, *weights, *steps, "-o", "run", "--no-report"]]
    return [check]


def _spoil(random: Random, place: Place, target: Path) -> None:
    """Damage a file of the folder, or replace it by something else."""
    files = sorted(path for path in target.rglob("*") if path.is_file() and not path.is_symlink())
    if not files:
        return
    file = random.choice(files)
    match random.randrange(8):
        case 0:
            file.unlink()
        case 1:
            file.write_bytes(file.read_bytes()[: random.randrange(1 + file.stat().st_size)])
        case 2:
            file.write_bytes(noisy(random, file.read_bytes()))
        case 3:
            file.unlink()
            file.symlink_to(random.choice(["/dev/zero", "/etc/passwd", str(place.world.sound), file.name]))
        case 4:
            file.write_bytes(pickle.dumps(_Payload(place.canary)))
        case 5:
            indices = [path for path in files if path.name == "index.json"] or [file]
            index = random.choice(indices)
            index.write_text(json.dumps(_reformatted(random, index)))
        case _:
            document = random.choice([path for path in files if path.suffix == ".json"] or [file])
            try:
                values = json.loads(document.read_bytes())
            except ValueError:
                return
            changed = mutated(random, values, place.canary, gentle=random.random() < 0.5)
            text = json.dumps(changed, default=str, skipkeys=True)
            document.write_text(changed.text if isinstance(changed, Raw) else text, encoding="utf-8")


def _reformatted(random: Random, index: Path) -> dict[str, Any]:
    """The index of shards in another format, such as pickles."""
    try:
        values = json.loads(index.read_bytes())
        values["config"]["data_format"] = [random.choice(["pickle", "graph:pickle", "tensor", "bytes", "pil"])]
    except (ValueError, TypeError, KeyError):
        return {"config": {"data_format": ["pickle"]}}
    return values
