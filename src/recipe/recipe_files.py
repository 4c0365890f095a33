"""Finding and reading the files of recipes and presets."""

from __future__ import annotations

import re
from functools import lru_cache
from importlib.resources import files
from io import StringIO
from itertools import takewhile
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ..core.registry import did_you_mean
from ..errors import PartitaError
from ..limits import LARGEST_RECIPE
from ..storage.files import kind
from ..storage.untrusted import read_text
from .expansion import check_yaml

UNREADABLE = (
    *(yaml.YAMLError, OmegaConfBaseException, ValueError, TypeError),
    *(LookupError, AttributeError, ArithmeticError, RecursionError),
)
"""Exceptions of the YAML readers; PyYAML raises ``KeyError`` for values such as ``!!bool maybe``."""


def find_recipe(name: str, ablations: bool = False) -> Path:
    """Return the file of a recipe, given a path or the name of a packaged recipe.

    Args:
        name: The path or name.
        ablations: Whether the message about an unknown name suggests packaged ablations, too.

    Raises:
        PartitaError: The recipe does not exist.
    """
    path = Path(name)
    if kind(path / "recipe.yaml") == "file":
        return path / "recipe.yaml"
    if kind(path) == "file":
        return path
    if name.removesuffix(".yaml") in recipes():
        return packaged() / f"{name.removesuffix('.yaml')}.yaml"
    if kind(path) == "other":
        raise PartitaError(f"{name} is not a regular file: refused")
    if "/" in name or path.suffix in (".yaml", ".yml"):
        raise PartitaError(f"there is no file {name:.200}")
    what, known = ("recipe or ablation", [*recipes(), *presets("ablation")]) if ablations else ("recipe", recipes())
    raise PartitaError(f"no {what} {name[:200]!r}{did_you_mean(name[:200], known)}")


def find_ablation(name: str) -> Path:
    """Return the file of an ablation or recipe, given a path or the name of a packaged ablation or recipe.

    Raises:
        PartitaError: There is no such file.
    """
    if not kind(name) and (path := find_preset("ablation", name)) is not None:
        return path
    return find_recipe(name, ablations=True)


def find_preset(family: str, name: str, folder: Path | None = None) -> Path | None:
    """Return the file of a preset, beside the recipe or else packaged, or ``None`` if it does not exist."""
    if not re.fullmatch(r"[\w.-]+", name):
        return None
    for place in ([folder / family] if folder else []) + [packaged() / family]:
        if kind(place / f"{name}.yaml") == "file":
            return place / f"{name}.yaml"
    return None


def recipes() -> dict[str, str]:
    """Return the names of the packaged recipes, each with the first line of its leading comment."""
    return {path.stem: comment(path).split("\n")[0] for path in sorted(packaged().glob("*.yaml"))}


def presets(family: str) -> dict[str, str]:
    """Return the names of the packaged presets of a family, each with the first line of its leading comment."""
    return {path.stem: comment(path).split("\n")[0] for path in sorted((packaged() / family).glob("*.yaml"))}


def comment(path: Path) -> str:
    """Return the leading comment of a YAML file, which may be empty."""
    lines = takewhile(lambda line: line.startswith("#"), path.read_text(encoding="utf-8").splitlines())
    return "\n".join(line.lstrip("# ") for line in lines)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping as plain data, with interpolations unresolved.

    Raises:
        PartitaError: The file does not hold a mapping; the message says why and where.
    """
    text = read_text(path, LARGEST_RECIPE)
    try:
        check_yaml(text, path)
        values = text_keyed(_parsed(text))
    except UNREADABLE as error:
        raise PartitaError(f"{path} is not valid YAML: {one_line(error)}") from None
    if not isinstance(values, dict):
        raise PartitaError(f"{path} must hold a mapping of keys to values, not a {type(values).__name__}")
    return values


@lru_cache(maxsize=64)  # an ablation reads the same presets for each of its runs
def _parsed(text: str) -> Any:
    try:
        return OmegaConf.to_container(OmegaConf.load(StringIO(text)), resolve=False)
    except OSError:  # OmegaConf raises this for a single number
        return 0.0


def read_value(text: str) -> Any:
    """Parse a YAML value from the command line as in a recipe: ``1e-3`` is a number, and tags are not allowed.

    Raises:
        ValueError: The text is not a YAML value; the message says why.
    """
    return _read(text, text, "a YAML value")


def read_values(text: str) -> list[Any]:
    """Parse YAML values separated by commas, except for commas inside brackets and quotes.

    Raises:
        ValueError: The text is not a list of YAML values; the message says why.
    """
    found: list[Any] = _read(f"[{text}]", text, "a list of YAML values")
    return found


def _read(text: str, shown: str, what: str) -> Any:
    """Parse a YAML value. An error message quotes ``shown`` and says that it should be ``what``."""
    try:
        check_yaml(f"value: {text}", Path("the value"))
        return text_keyed(OmegaConf.to_container(OmegaConf.create(f"value: {text}"), resolve=False)["value"])  # type: ignore[index,call-overload]
    except UNREADABLE as error:
        raise ValueError(f"{shown[:200]!r} is not {what}: {one_line(error)}") from None


def text_keyed(value: Any) -> Any:
    """Return a value with all mapping keys converted to text, since YAML also allows numbers, dates and null as keys.

    Raises:
        ValueError: A whole number does not fit into 64 bits.
    """
    if isinstance(value, dict):
        return {str(text_keyed(k)): text_keyed(v) for k, v in value.items()}
    if isinstance(value, int) and value.bit_length() > 63:
        raise ValueError(f"a whole number of {value.bit_length()} bits is too large")
    return [text_keyed(v) for v in value] if isinstance(value, list | tuple) else value


def one_line(error: Exception) -> str:
    """Return the message of a YAML reader's error on one line."""
    if "integer string conversion" in str(error):
        return "a whole number has thousands of digits"
    text = " ".join(str(error).split())[:500]
    return text if isinstance(error, yaml.YAMLError | OmegaConfBaseException | ValueError) else f"{text}: no such value"


def packaged() -> Path:
    """Return the folder of the packaged recipes, which contains a folder of presets for each family."""
    return Path(str(files("partita.recipes")))
