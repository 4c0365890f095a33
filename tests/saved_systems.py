"""Saved systems: changes as a stranger may make them, and comparisons of weights."""

from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file


def change(system: Path, key: str, value: Any) -> None:
    """Set a dotted key of a saved system's recipe."""
    recipe = yaml.safe_load((system / "recipe.yaml").read_text())
    *path, last = key.split(".")
    node = recipe
    for step in path:
        node = node[step]
    node[last] = value
    (system / "recipe.yaml").write_text(yaml.safe_dump(recipe))


def weights(run: Path) -> dict[tuple[str, str], torch.Tensor]:
    """All tensors in a folder, by file and name."""
    return {(str(p.relative_to(run)), k): v for p in Path(run).rglob("*.safetensors") for k, v in load_file(p).items()}


def same(a: dict, b: dict) -> bool:
    """Whether two such mappings are equal bit for bit."""
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
