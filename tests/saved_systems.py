"""Changes to saved systems, as a stranger may make them."""

from pathlib import Path
from typing import Any

import yaml


def change(system: Path, key: str, value: Any) -> None:
    """Set a dotted key of a saved system's recipe."""
    recipe = yaml.safe_load((system / "recipe.yaml").read_text())
    *path, last = key.split(".")
    node = recipe
    for step in path:
        node = node[step]
    node[last] = value
    (system / "recipe.yaml").write_text(yaml.safe_dump(recipe))
