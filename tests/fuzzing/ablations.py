"""Ablations that are almost right, from files and from the command line."""

from random import Random
from typing import Any

from .place import Command, Place
from .recipes import argument
from .values import NUMBERS, TAGGED, TEXTS, hostile, mutated, noisy, yaml_of

CHANGES = ["stages.main.window=1,2", "seed=0,1", "tokenizers.acoustic.hop=100,200", "stages.main.generator.width=8,16"]
CHANGES += [
    "stages.main.generator=toy-bigram,toy-dice",
    "conditioners.text.dim=8",
    "data.pieces=4",
    "seed=0,0",
    "x=1,2",
]


def ablation(random: Random, place: Place) -> list[Command]:
    """A spoiled file, or changes and budgets that no ablation has; nothing is trained."""
    place.pipe()
    how = ["--dry-run", "-o", random.choice(["out"] * 9 + ["x" * 300])]
    drawn = random.random()
    if drawn < 0.6:
        spoiled = mutated(random, _file(random, place), place.canary, random.choice([0, 1, 1, 2]))
        content = yaml_of(spoiled).encode("utf-8", "surrogatepass")
        if random.random() < 0.15:
            content = noisy(random, content)
        return [["ablate", str(place.write("study.yaml", content)), *_more(random), *how]]
    if drawn < 0.7:  # what a huge number of combinations costs, written in little
        sizes = random.choice([(300, 300, 300, 300), (60_000,), (30_000, 2), (2,) * 40, (1001,)])
        keys = [f"stages.main.generator.width{i}" if i else "seed" for i in range(len(sizes))]
        study = {
            "recipe": str(place.world.recipe),
            "vary": {k: list(range(n)) for k, n in zip(keys, sizes, strict=True)},
        }
        if random.random() < 0.5:
            study["variants"] = {f"v{i}": {} for i in range(random.choice([2, 2000]))}
        return [["ablate", str(place.write("study.yaml", yaml_of(study))), *how]]
    changes = [argument(_change(random, place)) for _ in range(random.randrange(1, 4))]
    return [["ablate", str(place.world.recipe), *changes, *_more(random), *how]]


def _file(random: Random, place: Place) -> dict[str, Any]:
    return {
        "recipe": str(place.world.recipe),
        "vary": {"tokenizers.acoustic": ["toy-codec", {"preset": "toy-codec", "hop": 200}], "seed": [0, 1]},
        "variants": {"wide": {}, "narrow": {"stages.main.generator.width": 8, "stages.main.window": 0.5}},
        "set": {"stages.main.overlap": 0.25},
        "budget": random.choice(
            [{}, {"stages": {"steps": 10}}, {"tokenizers": {"tokens": 1e4}}, {"stages": {"minutes": 1}}]
        ),
        "evaluation": random.choice(
            [
                {},
                {"clips": 2, "reference_clips": 2},
                {"duration": 1.0, "scores": {"fad": {"embeddings": ["log-mel-16khz"]}}},
            ]
        ),
    }


def _change(random: Random, place: Place) -> str:
    if random.random() < 0.5:
        return random.choice(CHANGES)
    key = random.choice(CHANGES).partition("=")[0]
    value = hostile(random, place.canary)
    text = random.choice([str(value), random.choice(TEXTS), random.choice(TAGGED)])
    return f"{key}={text}" if random.random() < 0.8 else f"{key}=1,{text},2"


def _more(random: Random) -> list[str]:
    """Options that take numbers and names, with others."""
    found = []
    if random.random() < 0.4:
        amount = random.choice([*NUMBERS, "9" * 5000, "1e999", "", "x", "1_0"])
        unit = random.choice(
            ["steps", "tokens", "minutes", "hours", "tokenizers.minutes", "stages.steps", "conditioners.tokens"]
        )
        found += ["--budget", f"{unit}={amount}"]
    if random.random() < 0.3:
        option = random.choice(["--clips", "--reference-clips", "--duration", "--score", "--no-score", "--jobs"])
        value = random.choice(
            [*NUMBERS, *TEXTS, *TAGGED, "{preset: log-mel-16khz}", "{preset: log-mel-16khz, weights: pipe}"]
        )
        found.append(argument(f"{option}={value}"))
    if random.random() < 0.1:
        found.append("--skip-unfit")
    if random.random() < 0.1:
        found += ["--cluster", "slurm", "--cluster-option", f"timeout_min={random.choice(['9' * 5000, '1', ''])}"]
    return found
