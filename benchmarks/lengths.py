"""Time and memory of generation by duration, from the prompt to the audio file's samples.

    python benchmarks/lengths.py --seconds 10 30 60 120

A system of MusicGen-small's stage (windows of 30 s that overlap by 20 s, guidance 3) and EnCodec at 32 kHz, with random
weights, generates one clip. Each duration has a process of its own, whose largest memory is that of the whole system.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from measuring import add_save, save, timed

from partita.recipe.compose import compose
from partita.recipe.plan import check_recipe, load_recipe
from partita.system.system import System

RECIPE = """
tokenizers:
  acoustic: {{preset: encodec-32khz, weights: {codec}}}
conditioners: {{text: {{name: lookup, dim: 768}}}}
stages:
  acoustic:
    generator: musicgen-small
    target: acoustic
    given: {{text: cross}}
    window: 30
    overlap: 20
data: chorales
"""


def build(folder: Path) -> System:
    """A system with random weights."""
    recipe, codec = folder / "recipe.yaml", folder / "codec"
    if not codec.exists():
        slot = {"preset": "encodec-32khz", "weights": None}
        System(check_recipe(compose({"tokenizers": {"codec": slot}, "data": "corpus"}))).tokenizers["codec"].save(codec)
    recipe.write_text(RECIPE.format(codec=codec))
    return System(load_recipe(recipe))


def measure(folder: Path, seconds: float, precision: str) -> dict[str, float | str]:
    """Return time and memory of one clip."""
    torch.manual_seed(0)
    system = build(folder)
    system.generate(["slow strings"], duration=1, precision=precision, progress=False)  # makes the rounded weights
    took = timed(lambda: system.generate(["slow strings"], duration=seconds, precision=precision, progress=False))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"seconds_of_audio": seconds, "precision": precision, "seconds": took, "gibibytes": peak / 2**30}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, nargs="+", default=[10, 30, 60, 120])
    parser.add_argument("--precisions", nargs="+", default=["int8"])
    parser.add_argument("--one", nargs=3, metavar=("FOLDER", "SECONDS", "PRECISION"), help=argparse.SUPPRESS)
    add_save(parser)
    options = parser.parse_args()
    if options.one:
        folder, seconds, precision = options.one
        print(json.dumps(measure(Path(folder), float(seconds), precision)))
        return
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for precision in options.precisions:
            for seconds in options.seconds:
                command = [sys.executable, __file__, "--one", folder, str(seconds), precision]
                said = subprocess.run(command, capture_output=True, text=True, check=False)
                if said.returncode:
                    sys.exit(said.stderr)
                rows.append(json.loads(said.stdout.splitlines()[-1]))
                print(rows[-1])
    if options.save:
        save("lengths", rows, plot=("seconds_of_audio", "seconds", "precision"))


if __name__ == "__main__":
    main()
