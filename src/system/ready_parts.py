"""Loading single parts with weights, from saved parts or from presets with pretrained weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..core.part import Part
from ..core.part_key import PartKey
from ..core.registry import did_you_mean, names
from ..errors import PartitaError, RecipeError
from ..recipe.compose import compose
from ..recipe.plan import check_recipe
from ..recipe.recipe_files import presets
from ..recipe.slots import slot_name
from ..storage.download import fetch
from ..storage.files import kind
from .assembly import FILES, INDEX, PART_ON_HUB
from .saved import check_saved_part
from .system import System

GROUPS = {"tokenizer": "tokenizers", "conditioner": "conditioners"}
"""Families whose parts can be built without a system, with their keys in a recipe."""


def load_part(source: str | Path | Mapping[str, Any], *, device: str | torch.device = "cpu") -> Part:
    """Load a tokenizer, conditioner or generator with its weights.

    Args:
        source: One of: the folder of a saved part (``runs/mine/tokenizers/acoustic``); a part in a system on the Hub
            (``user/name/tokenizers/acoustic``); the name of a preset or part that includes weights or needs none
            (``encodec-24khz``, or ``tokenizer/encodec-24khz`` if several families have the name); a slot as in a recipe
            (``{"preset": "vggish", "weights": "vggish.pth"}``).
        device: Device to move the part to.

    Raises:
        PartitaError: The part does not exist or has no weights. The message says what to do.
    """
    if isinstance(source, Mapping):
        return build_part(dict(source))[0].to(device)
    path, text = Path(source), str(source)
    if kind(path) == "folder":
        if (path / INDEX).is_file():
            parts = sorted(str(file.parent) for group in (*GROUPS.values(), "stages") for file in _parts(path / group))
            raise PartitaError(f"{path} holds a whole system: use partita.load, or load one part{_list(parts)}")
        check_saved_part(path.resolve().parent, path.resolve().name)
        return Part.load(path).to(device)
    if kind(path) == "file":
        raise PartitaError(f"{path} is a file, but a saved part is a folder with a config.json")
    if found := PART_ON_HUB.fullmatch(text):
        root = fetch(found[1], [f"{found[2]}/{pattern}" for pattern in FILES])
        check_saved_part(root, found[2])
        return Part.load(root / found[2]).to(device)
    family, slash, name = text.partition("/")
    if slash and family in GROUPS:
        return build_part(name, family)[0].to(device)
    if slash or text.startswith("."):
        raise PartitaError(f"there is no folder {text}")
    return build_part(text)[0].to(device)


def build_part(slot: Any, family: str | None = None) -> tuple[Part, str | None]:
    """Build the part of a recipe slot, and return it with the source of its weights.

    Args:
        slot: A name, or a mapping with ``preset`` or ``name`` and optionally ``weights`` and arguments.
        family: ``tokenizer`` or ``conditioner``. ``None`` selects the family that has the name.

    Returns:
        The part in evaluation mode, and its hub id or path of weights, which is ``None`` for a part without weights.

    Raises:
        PartitaError: The part does not exist or has no weights.
    """
    family = family or family_of_slot(slot)
    key = PartKey.of(GROUPS[family], "part")
    recipe: dict[str, Any] = {"data": "corpus", GROUPS[family]: {"part": slot}}
    try:
        system = System(check_recipe(compose(recipe)), loading=True)
    except RecipeError as error:
        if not all(problem.key.endswith(".weights") for problem in error.problems):
            raise
        raise _missing_weights_error(slot, family) from None
    part, weights = system.parts[key], system.part_plan(key).weights
    if weights is not None:
        part.load_weights(weights)
    elif not part.weightless:
        raise _missing_weights_error(slot, family)
    return part.eval(), weights


def family_of_slot(slot: Any) -> str:
    """Return the family of a slot that names a tokenizer or a conditioner.

    Raises:
        PartitaError: Neither family has the name.
    """
    name = _name(slot)
    if not isinstance(name, str):
        return "tokenizer"  # the check of the recipe then reports the mistake
    known = {family: {**presets(family), **names(family)} for family in GROUPS}
    for family, choices in known.items():
        if name in choices:
            return family
    hint = did_you_mean(name, sorted(set().union(*known.values())))
    raise PartitaError(f"no tokenizer and no conditioner is called {name!r}{hint}")


def _missing_weights_error(slot: Any, family: str) -> PartitaError:
    name = slot_name(_name(slot))
    return PartitaError(
        f"{name} has no weights: write '{{preset: {name}, weights: PATH}}' (for a source, see `partita list "
        f"{family}/{name}`), or train it"
    )


def _name(slot: Any) -> Any:
    return slot.get("preset", slot.get("name")) if isinstance(slot, Mapping) else slot


def _parts(folder: Path) -> list[Path]:
    return list(folder.glob("*/config.json"))


def _list(parts: list[str]) -> str:
    return f": {', '.join(parts)}" if parts else ""
