"""The worked examples of CONTRIBUTING.md, taken out of it, and defined as the files that they stand for."""

from pathlib import Path

import torch
import yaml

import partita
from partita.recipe.plan import load_recipe
from partita.training.training import train

TEXT = (Path(partita.__file__).parent.parent / "CONTRIBUTING.md").read_text()


def blocks(language):
    return [part.split("```")[0] for part in TEXT.split(f"```{language}\n")[1:]]


def example(language, word):
    """The block of a worked example: the first with this word."""
    return next(block for block in blocks(language) if word in block)


def define(block, **names):
    names |= {"__name__": "example"}
    exec(compile(block, "example.py", "exec"), names)
    return names


def section(heading, language="python"):
    """The first block of code of a section."""
    text = TEXT.split(f"## {heading}\n")[1].split("\n## ")[0]
    return text.split(f"```{language}\n")[1].split("```")[0]


def preset(recipe, heading, name):
    """Write the preset of a section beside a recipe."""
    path = recipe.parent / "conditioner" / f"{name}.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(section(heading, "yaml"))


def block_of(path):
    """The block that stands for a file."""
    return next(block for part in ("python", "yaml") for block in blocks(part) if block.startswith(f"# {path}\n"))


FEW = {"steps": 3, "batch_size": 2, "validation_examples": 2}
NARROW = {"encoder_width": 32, "encoder_depth": 1, "decoder_width": 32, "decoder_depth": 1}
SHORT = {
    "data": {"limit": 12},
    "trainer": {"logger": False},
    "tokenizers": {"acoustic": {"autoencoder": NARROW, "fit": FEW | {"crop": 0.6}}},
}


def trained(folder, recipe, *overrides):
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return train(load_recipe(folder / "recipe.yaml", overrides), folder / "run")


def preset_of(folder, path):
    """Put a preset of the document beside the recipe."""
    target = folder / path.removeprefix("recipes/")
    target.parent.mkdir()
    target.write_text(block_of(path))


def fit(stage, batch, *, steps, lr):
    """Train a stage alone, each step on the target, mask and conditions that ``batch`` returns."""
    optimizer = torch.optim.AdamW(stage.parameters(), lr=lr)
    for _ in range(steps):
        loss = stage.loss(*batch())["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
