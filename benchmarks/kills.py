"""Whether a training that is killed again and again ends as if nothing had happened.

    python benchmarks/kills.py --kills 8

Trains chorales-tiny, shrunk to a few dozen steps of four accumulated batches, with an adversary from early on and
averaged weights, once without interruption. Then again, ended by SIGKILL at random moments and taken up each time,
until there were enough kills. Prints when each kill came and what was on the disk then, and how many tensors of the
finished systems differ. Needs a system with fork.
"""

import argparse
import os
import random
import signal
import tempfile
import time
import traceback
from pathlib import Path

import torch
from safetensors.torch import load_file

from partita.recipe.plan import Plan, load_recipe
from partita.system.system import System
from partita.training.training import train

CHANGES = [
    "data.limit=24",
    "tokenizers.acoustic.autoencoder.encoder_width=32",
    "tokenizers.acoustic.autoencoder.decoder_width=32",
    "tokenizers.acoustic.autoencoder.decoder_depth=2",
    "tokenizers.acoustic.bottleneck.warmup_steps=4",
    "tokenizers.acoustic.adversarial_start=8",
    "tokenizers.acoustic.losses.balanced=true",
    "tokenizers.acoustic.fit={steps: 24, batch_size: 2, accumulate: 4, crop: 0.5, lr: 1e-3, ema: 0.9, "
    "warmup_steps: 4, validate_every: 10, validation_examples: 2, checkpoint_every: 2}",
    "stages.acoustic.window=2",
    "stages.acoustic.generator.backbone.width=32",
    "stages.acoustic.generator.backbone.depth=2",
    "stages.acoustic.generator.fit={steps: 24, batch_size: 2, accumulate: 4, lr: 3e-3, ema: 0.9, "
    "warmup_steps: 4, validate_every: 10, validation_examples: 2, checkpoint_every: 2, precision: 32-true}",
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    plan, draw = load_recipe("chorales-tiny", CHANGES), random.Random(options.seed)
    System(plan).source.setup()  # what is parsed once is not timed
    with tempfile.TemporaryDirectory() as folder:
        whole, killed, series = Path(folder) / "whole", 0, 0
        begun = time.monotonic()
        assert train_apart(plan, whole) is None
        length = time.monotonic() - begun
        print(f"uninterrupted: {length:.0f} s")
        while killed < options.kills:
            run, series = Path(folder) / f"killed-{series}", series + 1
            while (after := train_apart(plan, run, draw.uniform(0.1, 0.4) * length)) is not None:
                killed += 1
                print(f"kill {killed} after {after:.1f} s: {', '.join(standing(run)) or 'nothing written yet'}")
            one, other = tensors(whole), tensors(run)
            different = [key for key in one.keys() | other.keys() if key not in one or not same(one, other, key)]
            print(f"series {series} finished: {len(different)} of {len(one)} tensors differ {different[:5] or ''}")


def train_apart(plan: Plan, run: Path, until: float = float("inf")) -> float | None:
    """Train in a process of its own; seconds after which it was killed, if it had not ended by then."""
    child, begun = os.fork(), time.monotonic()
    if not child:
        try:
            train(plan, run)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    while time.monotonic() - begun < until:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            assert status == 0, "the training failed"
            return None
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return time.monotonic() - begun


def standing(run: Path) -> list[str]:
    """What a kill left."""
    found = [f"{path.parent.relative_to(run)} finished" for path in run.rglob("model.safetensors")]
    for path in run.rglob("*.ckpt"):
        found.append(f"{path.stem} at step {torch.load(path, weights_only=True)['global_step']}")
    return found + [f"{path.name} left over" for path in run.rglob(".*.part")]


def tensors(run: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a finished system."""
    files = list(run.rglob("model.safetensors"))
    return {f"{f.parent.relative_to(run)}: {key}": value for f in files for key, value in load_file(f).items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], key: str) -> bool:
    """Whether a tensor is there twice, bit for bit."""
    return key in other and one[key].shape == other[key].shape and torch.equal(one[key], other[key])


if __name__ == "__main__":
    main()
