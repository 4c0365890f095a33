"""Single parts with their weights: saved ones, and presets that name pretrained weights."""

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
"""The families whose parts can be made without a system around them, and where they stand in a recipe."""


def load_part(source: str | Path | Mapping[str, Any], *, device: str | torch.device = "cpu") -> Part:
    """A tokenizer, conditioner or generator with its weights, ready to use.

    Args:
        source: The folder of a saved part (``runs/mine/tokenizers/acoustic``, also as part of a hub id:
            ``user/name/tokenizers/acoustic``), the name of a preset or part that comes with weights or needs none
            (``encodec-24khz``; ``tokenizer/…`` where several families have one), or a slot as in a recipe
            (``{"preset": "vggish", "weights": "vggish.pth"}``).
        device: Where it goes.

    Raises:
        PartitaError: There is no such part, or it has no weights; the message says what to do.
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
        raise PartitaError(f"{path} is a file, and a saved part is a folder with a config.json")
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
    """The part that a recipe slot makes, and where its weights are from.

    Args:
        slot: A name, or a mapping with ``preset`` or ``name``, and if wanted ``weights`` and arguments.
        family: ``tokenizer`` or ``conditioner``; whichever has the name where none is given.

    Raises:
        PartitaError: There is no such part, or it has no weights.
    """
    family = family or family_of_slot(slot)
    key = PartKey.of(GROUPS[family], "part")
    recipe: dict[str, Any] = {"tokenizers": {}, "data": "corpus"} | {GROUPS[family]: {"part": slot}}
    try:
        system = System(check_recipe(compose(recipe)))
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
    """Whether a slot names a tokenizer or a conditioner."""
    name = _name(slot)
    if not isinstance(name, str):
        return "tokenizer"  # which is then what is expected
    known = {family: {**presets(family), **names(family)} for family in GROUPS}
    for family, there_are in known.items():
        if name in there_are:
            return family
    hint = did_you_mean(name, sorted(set().union(*known.values())))
    raise PartitaError(f"no tokenizer and no conditioner is called {name!r}{hint}")


def _missing_weights_error(slot: Any, family: str) -> PartitaError:
    name = slot_name(_name(slot))
    return PartitaError(
        f"{name} has no weights: write '{{preset: {name}, weights: PATH}}' (where to get some: `partita list "
        f"{family}/{name}`), or train it"
    )


def _name(slot: Any) -> Any:
    return slot.get("preset", slot.get("name")) if isinstance(slot, Mapping) else slot


def _parts(folder: Path) -> list[Path]:
    return list(folder.glob("*/config.json"))


def _list(parts: list[str]) -> str:
    return f": {', '.join(parts)}" if parts else ""
