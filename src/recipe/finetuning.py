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
    """Apply the key ``finetune`` of a composed recipe, which names a saved system, and the adapters of stages.

    Tokenizers and conditioners of the saved system keep their weights, and stages, with the conditioners that are
    trained with them, start from theirs. A part is taken over if the recipe has the same part under the same key, made
    of the same components, and says nothing of its own about its weights.

    If a stage has an adapter, all parts keep their weights, and the recipe may not exchange any: an adapter belongs to
    the whole system. The key then stays in the recipe; otherwise, what it means is in the slots.

    Args:
        tree: The recipe, with all presets expanded. Mistakes are recorded in it.
    """
    adapted = [name for name, stage in _stages(tree.values) if stage.get("adapter") is not None]
    source = tree.values.get("finetune") if adapted else tree.values.pop("finetune", None)
    for name in adapted:
        key = f"stages.{name}"
        if not source:
            tree.add_problem(f"{key}.adapter", "an adapter belongs to a trained system", ": name it with finetune=RUN")
        fit = at(tree.values, ("stages", name, "generator", "fit"))
        for option in ("trainable", "rates") if isinstance(fit, dict) else ():
            if fit.get(option):
                hint = ": name layers in adapter.layers, or remove the adapter"
                tree.add_problem(f"{key}.generator.fit.{option}", "only the adapter is trained", hint)
    if not source:
        return
    try:
        folder, saved = _saved(source)
    except PartitaError as error:
        tree.add_problem("finetune", str(error))
        return
    taken = 0
    for path, key in _slots(tree.values):
        slot, theirs = at(tree.values, path), at(saved, path)
        if not isinstance(slot, dict) or "name" not in slot:
            continue
        places = (
            str(folder / key),
            f"{source}/{key}",
        )  # the second is also understood on other machines, if on the Hub
        if not isinstance(theirs, dict) or not _is_theirs(slot, theirs, places):
            if adapted:
                hint = ": adapters are trained with all other parts as they are there; leave it, or remove the adapter"
                tree.add_problem(".".join(path), f"this is not the part of {source}", hint)
            continue
        taken += 1
        _start(slot, path, theirs, places, frozen=bool(adapted))
    if not taken and not adapted:
        tree.add_problem("finetune", f"none of the parts of this recipe is one of {source}", ": start from its recipe")


def _stages(values: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    stages = values.get("stages")
    return [(n, s) for n, s in stages.items() if isinstance(s, dict)] if isinstance(stages, dict) else []


def _is_theirs(slot: Mapping[str, Any], theirs: Mapping[str, Any], places: tuple[str, str]) -> bool:
    """Whether a slot holds the part that the saved system has there, and says nothing of its own about weights."""
    own = slot.get("weights") or slot.get("init")
    unsaid = not {"weights", "init"} & slot.keys()
    return _kinds(slot) == _kinds(theirs) and (unsaid or own in (*places, _own(theirs)))


def _saved(source: Any) -> tuple[Path, dict[str, Any]]:
    """The folder of a saved system, downloaded if it is on the Hub, and its recipe."""
    if not isinstance(source, str):
        raise PartitaError(f"expected a run, an export or a hub id, got {source!r:.200}")
    path = Path(source)
    if not kind(path) and re.fullmatch(r"[\w.-]+/[\w.-]+", source):
        path = fetch(source, FILES)
    if kind(path / INDEX) != "file":
        raise PartitaError(f"{source:.200} is neither a saved system, a folder with {INDEX}, nor a hub id (user/name)")
    saved = read_yaml(path / INDEX)
    if (base := saved.get("finetune")) is not None:
        raise PartitaError(
            f"{source} holds adapters of {base}, not a system: save one with them merged, by "
            f"partita.load({source!r}).save(FOLDER), and name that"
        )
    return path, saved


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


def _start(
    slot: dict[str, Any], path: KeyPath, theirs: Mapping[str, Any], places: tuple[str, str], *, frozen: bool
) -> None:
    """Write into a slot where its weights are, and whether they are trained further, which nothing is if frozen."""
    group, (source, named) = path[0], places
    try:
        cls = lookup(SLOT_GROUPS.get(group, "generator"), str(slot["name"]))
    except (UnknownName, ImportError):
        return  # reported when the recipe is checked
    for key in ("weights", "init"):
        slot.pop(key, None)
    if getattr(cls, "weightless", False):
        return
    joint = getattr(cls, "trained_with_stage", False) and theirs.get("weights") is None
    if (group == "stages" or joint) and not frozen:
        slot["init"] = named
    elif group == "stages":
        slot["weights"] = source  # its training options are those of its adapter
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
