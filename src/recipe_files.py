"""The files of recipes and presets: where they are, and what they hold."""

from __future__ import annotations

import re
from importlib.resources import files
from itertools import takewhile
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from .errors import PartitaError
from .registry import did_you_mean
from .untrusted import check_yaml

LARGEST_FILE = 1_000_000


def find_recipe(name: str) -> Path:
    """The file of a recipe: a path, or a name among the packaged recipes.

    Raises:
        PartitaError: There is none.
    """
    path = Path(name)
    if path.is_dir() and (path / "recipe.yaml").is_file():
        return path / "recipe.yaml"
    if path.is_file():
        return path
    ours = packaged() / f"{name.removesuffix('.yaml')}.yaml"
    if re.fullmatch(r"[\w.-]+", name) and ours.is_file():
        return ours
    if "/" in name or path.suffix in (".yaml", ".yml"):
        raise PartitaError(f"there is no file {name}")
    raise PartitaError(f"no recipe {name!r}{did_you_mean(name, recipes())}")


def find_preset(family: str, name: str, folder: Path | None = None) -> Path | None:
    """The file of a preset: beside the recipe first, then among the packaged ones; none where there is none."""
    if not re.fullmatch(r"[\w.-]+", name):
        return None
    for place in ([folder / family] if folder else []) + [packaged() / family]:
        if (place / f"{name}.yaml").is_file():
            return place / f"{name}.yaml"
    return None


def recipes() -> dict[str, str]:
    """The packaged recipes, with the comment on their first line."""
    return {path.stem: comment(path).split("\n")[0] for path in sorted(packaged().glob("*.yaml"))}


def presets(family: str) -> dict[str, str]:
    """The packaged presets of a family, with the comment on their first line."""
    return {path.stem: comment(path).split("\n")[0] for path in sorted((packaged() / family).glob("*.yaml"))}


def comment(path: Path) -> str:
    """The comment that a YAML file begins with, or nothing."""
    lines = takewhile(lambda line: line.startswith("#"), path.read_text(encoding="utf-8").splitlines())
    return "\n".join(line.lstrip("# ") for line in lines)


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML mapping as plain data, interpolations unresolved.

    Raises:
        PartitaError: It is not one; the message says why and where.
    """
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise PartitaError(f"{path} is larger than a recipe can be ({LARGEST_FILE:,} bytes)")
        check_yaml(path.read_text(encoding="utf-8"), path)
        values = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except (OSError, UnicodeDecodeError) as error:
        raise PartitaError(f"{path} cannot be read: {error}") from None
    except (yaml.YAMLError, OmegaConfBaseException, ValueError, TypeError, RecursionError) as error:
        raise PartitaError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise PartitaError(f"{path} must hold a mapping of keys to values, not a {type(values).__name__}")
    return words(values)


def words(value: Any) -> Any:
    """Keys as text: YAML also allows numbers, dates and nothing at all."""
    if isinstance(value, dict):
        return {str(k): words(v) for k, v in value.items()}
    return [words(v) for v in value] if isinstance(value, list) else value


def packaged() -> Path:
    """The folder of the recipes that come with the package; a folder of presets for each family is in it."""
    return Path(str(files(f"{__package__}.recipes")))
