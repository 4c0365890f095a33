"""One training step of each stage of a recipe at its full size on this processor: loss, peak memory and seconds.

    python benchmarks/full_size.py musiclm
    python benchmarks/full_size.py audiolm --stages semantic fine

A stage has its published size and crop. The codes that it learns and those that it is given are random, so that no
other part of the system is needed. A step is, for one clip, the forward pass with dropout, the backward pass, which
computes each block again, and an update by the optimizer of the preset; the second of two steps is timed. Each stage
has a process of its own, whose peak memory is reported.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import resource
from typing import Any

import torch
from measuring import add_save, save, timed
from torch import Tensor

from partita.core.configured import Configured
from partita.core.contracts import Condition
from partita.recipe.plan import load_recipe
from partita.system.system import System

TOKENS = 64
"""Tokens of a text, or of codes without a frame rate."""


def rebuilt(made: Any) -> Any:
    """The same object with memory and random weights, from one that was built without."""
    if not isinstance(made, Configured):
        return made
    return type(made)(**{name: rebuilt(value) for name, value in made.arguments.items()})


def random_codes(cardinalities: tuple[int, ...], length: int) -> Tensor:
    """Random codes ``[1, K, length]``."""
    return torch.stack([torch.randint(size, (1, length)) for size in cardinalities], 1)


def measure(recipe: str, name: str, changes: list[str], precision: str) -> dict[str, Any]:
    """Take two training steps of a stage."""
    system = System.outline(load_recipe(recipe, [*changes, f"stages.{name}.generator.checkpointing=true"]))
    outlined, crop = system.stages[name], system.plan.stages[name].window
    torch.manual_seed(0)
    stage = rebuilt(outlined).train()
    stage.joint.clear()
    optimizer = outlined.fit_options.make_optimizer(stage.parameters(), stage.hidden_matrices)
    frames = stage.target.frames(crop)
    target, mask = random_codes(stage.target.cardinalities, frames), torch.ones(1, frames, dtype=torch.bool)
    given = {}
    for source, one in stage.given.items():
        columns = TOKENS // (one.spec.num_codebooks or 1)
        length = columns if one.spec.frame_rate is None else round(one.spec.frame_rate * crop)
        values = torch.randn(1, length, one.spec.dim) if one.spec.dim else random_codes(one.spec.cardinalities, length)
        given[source] = Condition(values, torch.ones(1, length, dtype=torch.bool))
    losses: list[float] = []

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision != "32-true"):
            loss = stage.loss(target, mask, given)["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())

    step()
    seconds = timed(step)
    assert all(map(math.isfinite, losses)), losses
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    parameters = sum(parameter.numel() for parameter in stage.parameters())
    return {
        "recipe": recipe,
        "stage": name,
        "million_parameters": parameters / 1e6,
        "crop": crop,
        "precision": precision,
        "loss": losses[0],
        "loss_after": losses[1],
        "gibibytes": peak / 2**30,
        "seconds": seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", help="a recipe, such as musiclm")
    parser.add_argument("changes", nargs="*", help="changes of the recipe, such as data.path=/music")
    parser.add_argument("--stages", nargs="*", help="names of stages; all by default")
    parser.add_argument("--precision", choices=["32-true", "bf16-mixed"], default="32-true")
    add_save(parser)
    options = parser.parse_args()
    names = options.stages or list(System.outline(load_recipe(options.recipe, options.changes)).stages)
    rows = []
    for name in names:
        with multiprocessing.get_context("spawn").Pool(1) as process:
            rows.append(process.apply(measure, (options.recipe, name, options.changes, options.precision)))
        print(rows[-1], flush=True)
    if options.save:
        save("full_size", rows)


if __name__ == "__main__":
    main()
