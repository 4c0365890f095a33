"""Where a case plays: a folder of its own, systems to spoil, and what nothing may touch."""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import soundfile
import torch
import yaml

from hub_server import Hub

RECIPE = """tokenizers:
  acoustic: {name: toy-codec, fit: {steps: 6, batch_size: 2, crop: 0.5}}
conditioners:
  text: toy-letters
stages:
  main:
    generator: {name: toy-bigram, condition_dropout: {together: 0.2}, fit: {steps: 8, batch_size: 2, ema: 0.9}}
    target: acoustic
    given: [text]
    window: 1.0
data: toy-sines
"""
"""The smallest system; its parts are those of ``toys.py``."""


@dataclass
class World:
    """What cases have in common; it is made once and only read.

    Args:
        root: Of everything; all that is written lies below it.
        hub: A server that speaks the Hub's protocol.
    """

    root: Path
    hub: Hub = field(default_factory=Hub)

    @property
    def home(self) -> Path:
        """The home folder, whose path must not be published."""
        return self.root / "home of Señora Überfall"

    @property
    def canary(self) -> Path:
        """A file that only something foreign that is executed would make."""
        return self.root / "canary"

    @property
    def recipe(self) -> Path:
        """The recipe of the toy system."""
        return self.home / "toy.yaml"

    @property
    def system(self) -> Path:
        """A saved system, as it should be."""
        return self.home / "system"

    @property
    def run(self) -> Path:
        """The same as a run leaves it: with data of one's own, an evaluation and a report: all name the home."""
        return self.home / "runs" / "mine"

    @property
    def shards(self) -> Path:
        """Tokens of the toy system, as they should be."""
        return self.home / "shards"

    @property
    def sound(self) -> Path:
        """A second of audio."""
        return self.home / "start.wav"

    @classmethod
    def made(cls, root: Path) -> "World":
        """Build it below a folder that is there."""
        import toys  # noqa: F401  (registers the parts)
        from partita.recipe.plan import load_recipe
        from partita.system.system import System
        from partita.training.tokenize import tokenize

        world = cls(root.resolve())
        world.run.parent.mkdir(parents=True, exist_ok=True)
        world.recipe.write_text(RECIPE, encoding="utf-8")
        torch.manual_seed(0)
        System(load_recipe(world.recipe)).save(world.system)
        System(load_recipe(world.recipe)).save(world.run)
        tokenize(world.system, world.shards, progress=False)
        values = yaml.safe_load((world.run / "recipe.yaml").read_text(encoding="utf-8"))
        values["data"] = {"name": "folder", "path": str(world.home / "music"), "manifest": str(world.home / "x.csv")}
        values["description"] = f"a toy that learned from {world.home}/music"
        (world.run / "recipe.yaml").write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
        (world.run / "evaluation").mkdir()
        weights, left_out = f"{world.home}/w.pth", f"{world.home}/music/a b.wav was left out"
        row = {
            "value": 1.0,
            "better": "lower",
            "embedding": "log-mel-16khz",
            "clips": 2,
            "subject": "system",
            "weights": weights,
        }
        request = {"data": "folder", "pieces": "test", "duration": 1.0, "seed": 0, "clips": 2, "reference_clips": 2}
        results = {"request": request, "notes": [left_out], "metrics": {"fad": row}, "conditions": []}
        (world.run / "evaluation" / "evaluation.json").write_text(json.dumps(results), encoding="utf-8")
        (world.run / "report.html").write_text(f"<p>{world.home.as_uri()}/music, {world.home}</p>", encoding="utf-8")
        samples = 0.5 * np.sin(np.arange(4000) * 0.3)
        soundfile.write(world.sound, samples, 4000, subtype="PCM_16")
        return world


@dataclass
class Place:
    """Where one case plays.

    Args:
        world: Around it.
        folder: Its own, empty at first, in which its commands run.
    """

    world: World
    folder: Path

    @property
    def canary(self) -> str:
        """Path of the file that payloads make."""
        return str(self.world.canary)

    def write(self, name: str, content: bytes | str) -> Path:
        """A file of the case."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content)
        return path

    def pipe(self, name: str = "pipe") -> Path:
        """A named pipe that nobody writes to."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        os.mkfifo(path)
        return path


Command = list[str]
"""Arguments of `partita`."""
