"""Recipes that are almost right: those that are shipped, their presets and toys, spoiled."""

from functools import cache
from random import Random
from typing import Any

import yaml

from partita.recipe.recipe_files import packaged

from .place import RECIPE, Command, Place
from .values import KEYS, TAGGED, TEXTS, WORDS, Raw, hostile, mutated, noisy, yaml_of

SMALL_CODEC = {
    "preset": "spectral-tiny",
    "autoencoder": {"encoder_width": 8, "decoder_width": 8, "encoder_depth": 1, "decoder_depth": 1},
}
SMALL_STAGE = {"preset": "autoregressive-tiny", "backbone": {"width": 16, "depth": 1, "num_heads": 2}}


@cache
def bases() -> list[tuple[Any, float]]:
    """Recipes as plain values, and how often each is drawn: the small ones are quick to compose."""
    toy = yaml.safe_load(RECIPE)
    small = toy | {"tokenizers": {"acoustic": SMALL_CODEC}, "conditioners": {"text": {"preset": "lookup", "dim": 8}}}
    small["stages"] = {"acoustic": toy["stages"]["main"] | {"generator": SMALL_STAGE}}
    chain = yaml.safe_load(RECIPE)
    chain["tokenizers"]["semantic"] = {"name": "toy-codec", "hop": 400}
    chain["stages"]["semantic"] = chain["stages"]["main"] | {"target": "semantic", "window": 2.0, "overlap": 0.5}
    chain["stages"]["main"] = {"generator": "toy-echo", "target": "acoustic", "given": {"semantic": "prepend"}}
    chain["stages"]["main"] |= {"window": 1.0, "overlap": 0.25}
    mixed = yaml.safe_load(RECIPE) | {"data": [{"name": "toy-sines", "weight": 2}, "toy-sines"]}
    mixed |= {"trainer": {"devices": 1, "logger": ["csv"]}, "seed": 3, "description": "two sources"}
    shipped = [yaml.safe_load(path.read_text(encoding="utf-8")) for path in sorted(packaged().glob("*.yaml"))]
    return [(toy, 5), (chain, 5), (mixed, 3), (small, 3), *((recipe, 0.5) for recipe in shipped)]


@cache
def _presets() -> dict[str, Any]:
    return {
        str(path.relative_to(packaged())): yaml.safe_load(path.read_text(encoding="utf-8"))
        for path in sorted(packaged().glob("*/*.yaml"))
    }


def recipe(random: Random, place: Place) -> list[Command]:
    """A spoiled recipe, alone or over a base, or with spoiled presets beside it, and changes on the command line."""
    trees, weights = zip(*bases(), strict=True)
    gentle = random.random() < 0.35
    tree = mutated(random, random.choices(trees, weights)[0], place.canary, gentle=gentle)
    other = mutated(random, random.choice(trees), place.canary)
    place.pipe()
    drawn = 1.0 if gentle else random.random()
    if drawn < 0.15 and isinstance(other, dict):
        tree = {"base": _base(random, place), **other}
    elif drawn < 0.3 and isinstance(tree, dict):
        name, preset = random.choice(list(_presets().items()))
        place.write(name, yaml_of(mutated(random, preset, place.canary)))
        family, word = name.removesuffix(".yaml").split("/")
        group = {"tokenizer": "tokenizers", "conditioner": "conditioners"}.get(family)
        if group:
            tree[group] = {"acoustic" if family == "tokenizer" else "text": word}
        elif family == "data":
            tree["data"] = word
    content = yaml_of(tree).encode("utf-8", "surrogatepass")
    if random.random() < 0.1 and not gentle:
        content = noisy(random, content)
    path = place.write("case.yaml", content)
    return [["check", str(path), *([] if gentle else _overrides(random, place))]]


def _base(random: Random, place: Place) -> str:
    match random.randrange(6):
        case 0:
            return "case.yaml"
        case 1:
            for i in range(50):
                place.write(f"chain{i}.yaml", f"base: chain{i + 1}.yaml\nseed: {i}\n")
            place.write("chain50.yaml", RECIPE)
            return "chain0.yaml"
        case 2:
            place.write("other.yaml", "base: case.yaml\n")
            return "other.yaml"
        case 3:
            return random.choice(["chorales-tiny", "toy", "pipe", str(place.world.recipe), ".", "../toy.yaml"])
        case 4:
            place.write("base.yaml", noisy(random, RECIPE.encode()))
            return "base.yaml"
    return str(random.choice(TEXTS))


def _overrides(random: Random, place: Place) -> list[str]:
    """Changes on the command line."""
    keys = [
        "stages.main.window",
        "stages.main.given",
        "tokenizers.acoustic",
        "tokenizers.acoustic.hop",
        "data",
        "data.0",
    ]
    keys += [
        "stages.main",
        "stages.main.generator",
        "stages.main.generator.fit",
        "seed",
        "conditioners.text",
        "trainer",
    ]
    keys += ["stages.main.overlap", "tokenizers.acoustic.fit.steps", "data.pieces", "trainer.devices", "description"]
    keys += ["data." + "9" * 5000, "stages.main.target", "", "x", "tokenizers." + "y" * 300, *KEYS]
    found = []
    while random.random() < 0.2:
        value = hostile(random, place.canary)
        text = yaml_of([value])[2:].strip() if not isinstance(value, Raw | str) else getattr(value, "text", value)
        text = random.choice([str(text), str(random.choice(TAGGED)), random.choice(WORDS)])
        found.append(argument(f"{random.choice(keys)}={text}"))
    return found


def argument(text: str) -> str:
    """A text as an argument of a program, in which there is no null character, and which is not without end."""
    return text.replace("\0", "")[:100_000]
