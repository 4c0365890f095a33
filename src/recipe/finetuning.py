"""Training a saved system further: its parts as weights and starting points of a recipe."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..core.registry import UnknownName, lookup
from ..errors import PartitaError
from ..storage.download import fetch
from ..storage.files import kind
from ..storage.saved_format import FILES, INDEX
from .recipe_files import read_yaml
from .slots import SLOT_GROUPS, KeyPath, at
from .tree import Tree


def take_over(tree: Tree) -> None:
    """Apply the key ``finetune`` of a composed recipe, which names a saved system.

    Tokenizers and conditioners of the saved system keep their weights, and stages, with the conditioners that are
    trained with them, start from theirs. A part is taken over if the recipe has the same part under the same key, made
    of the same components, and says nothing of its own about its weights.

    Args:
        tree: The recipe, with all presets expanded. Mistakes are recorded in it.
    """
    source = tree.values.get("finetune")
    if source is None:
        return
    try:
        folder, saved = _saved(source)
    except PartitaError as error:
        tree.add_problem("finetune", str(error))
        return
    taken = 0
    for path, key in _slots(tree.values):
        slot, theirs = at(tree.values, path), at(saved, path)
        if not isinstance(slot, dict) or not isinstance(theirs, dict) or "name" not in slot:
            continue
        if {"weights", "init"} & slot.keys() and (slot.get("weights") or slot.get("init")) != _own(theirs):
            continue
        if _kinds(slot) != _kinds(theirs):
            continue
        taken += 1
        _start(slot, path, theirs, str(folder / key))
    if not taken:
        tree.add_problem("finetune", f"none of the parts of this recipe is one of {source}", ": start from its recipe")


def _saved(source: Any) -> tuple[Path, dict[str, Any]]:
    """The folder of a saved system, downloaded if it is on the Hub, and its recipe."""
    if not isinstance(source, str):
        raise PartitaError(f"expected a run, an export or a hub id, got {source!r:.200}")
    path = Path(source)
    if not kind(path) and re.fullmatch(r"[\w.-]+/[\w.-]+", source):
        path = fetch(source, FILES)
    if kind(path / INDEX) != "file":
        raise PartitaError(f"{source:.200} is neither a saved system, a folder with {INDEX}, nor a hub id (user/name)")
    return path, read_yaml(path / INDEX)


def _slots(values: Mapping[str, Any]) -> Iterator[tuple[KeyPath, str]]:
    """Yield the path of each part of a recipe, with its folder in a saved system."""
    for group in SLOT_GROUPS:
        for name in values.get(group) or ():
            yield (group, name), f"{group}/{name}"
    for name in values.get("stages") or ():
        yield ("stages", name, "generator"), f"stages/{name}"


def _own(slot: Mapping[str, Any]) -> Any:
    """The weights that the recipe of the saved system names, which its folder replaces."""
    return slot.get("weights") or slot.get("init")


def _kinds(slot: Any) -> Any:
    """The names of a part and of everything inside it."""
    if not isinstance(slot, dict):
        return None
    inner = {key: _kinds(value) for key, value in slot.items()}
    return {key: value for key, value in inner.items() if value} | ({"name": slot["name"]} if "name" in slot else {})


def _start(slot: dict[str, Any], path: KeyPath, theirs: Mapping[str, Any], source: str) -> None:
    """Write into a slot where its weights are, and whether they are trained further."""
    group = path[0]
    try:
        cls = lookup(SLOT_GROUPS.get(group, "generator"), str(slot["name"]))
    except (UnknownName, ImportError):
        return  # reported when the recipe is checked
    for key in ("weights", "init"):
        slot.pop(key, None)
    if getattr(cls, "weightless", False):
        return
    joint = getattr(cls, "trained_with_stage", False) and theirs.get("weights") is None
    if group == "stages" or joint:
        slot["init"] = source
    else:
        slot["weights"] = source
        slot.pop("fit", None)
        _forget_inner(slot)


def _forget_inner(slot: dict[str, Any]) -> None:
    """Remove the weights and training options of parts inside a part, which are saved with it."""
    for value in slot.values():
        if isinstance(value, dict) and "name" in value:
            for key in ("weights", "init", "fit"):
                value.pop(key, None)
            _forget_inner(value)
