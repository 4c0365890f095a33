"""Recipes as data: files, presets, bases and command-line overrides, merged into one plain tree.

Nothing in a recipe is ever imported or executed. The file that each key comes from is recorded, for the messages.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..core.registry import OWN, did_you_mean, names
from ..errors import PartitaError
from ..storage.files import kind
from .recipe_files import find_preset, find_recipe, packaged, presets, read_value, read_yaml
from .slots import LISTS, KeyPath, at, family_of, is_numbered, may_be_slot, slots, slots_inside
from .tree import COMMAND_LINE, Tree


def compose(recipe: str | Path | Mapping[str, Any], overrides: Sequence[str] = ()) -> Tree:
    """Read a recipe with its bases and presets, and apply the overrides.

    Args:
        recipe: A path, the name of a packaged recipe, or the values of a recipe.
        overrides: Overrides ``key=value``, with dotted keys and YAML values.

    Raises:
        PartitaError: The recipe does not exist, or its file cannot be read.
    """
    tree, folder = Tree(), Path()
    if isinstance(recipe, Mapping):
        tree.merge(dict(recipe), "recipe")
    else:
        path = find_recipe(str(recipe))
        folder = path.parent
        _lay(tree, path, [])
    for override in overrides:
        _override(tree, override)
    if isinstance(stages := tree.values.get("stages"), dict):
        for name in [name for name, stage in stages.items() if stage is None]:  # removed by an override
            del stages[name]
    if not tree.later(("description",), ("data",)):
        tree.values.pop("description", None)  # it describes other data
    for key in LISTS:
        _check_numbers(tree, key)
    for slot in list(slots(tree.values)):
        _expand(tree, slot, str(family_of(slot)), folder)
    for key in LISTS:
        value = tree.values.get(key)
        if is_numbered(value):
            tree.values[key] = list(value.values())
    _refuse_references(tree)
    return tree


def _check_numbers(tree: Tree, key: str) -> None:
    """Report and remove overrides of a list of slots that match none of its slots."""
    value = tree.values.get(key)
    if not is_numbered(value):
        return
    count = next(number for number in range(len(value) + 1) if str(number) not in value)
    for other in value.keys() - {str(number) for number in range(count)}:
        hint = "" if other.isdecimal() else f": set {key}.0.{other}"
        tree.complain(f"{key}.{other}", f"{key} is a list of {count}, {key}.0 to {key}.{count - 1}", hint)
        del value[other]


def _lay(tree: Tree, path: Path, below: list[Path]) -> None:
    """Merge a recipe file over its bases."""
    if path.resolve() in below:
        tree.complain("base", f"{path} is its own base, through {' and '.join(p.name for p in below)}", file=str(path))
        return
    values = read_yaml(path)
    if "recipe" in values:
        raise PartitaError(
            f"{path} is not a recipe, but an ablation file that compares recipes: run `partita ablate {path}`"
        )
    base = values.pop("base", None)
    if isinstance(base, str):
        beside = path.parent / base
        try:
            found = beside if kind(beside) == "file" else find_recipe(base)
            _lay(tree, found, [*below, path.resolve()])
        except PartitaError as error:
            tree.complain("base", str(error), file=str(path))
    elif base is not None:
        tree.complain("base", f"expected the name or path of a recipe, got {base!r}", file=str(path))
    tree.merge(values, str(path))


def _override(tree: Tree, override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not re.fullmatch(r"[\w-]+(\.[\w-]+)*", key):
        tree.complain(override, "expected key=value, such as tokenizers.acoustic=soundstream-tiny", file=COMMAND_LINE)
        return
    try:
        value = read_value(text)
    except (PartitaError, ValueError) as error:
        tree.complain(key, str(error), file=COMMAND_LINE)
        return
    path = key.split(".")
    for depth in range(1, len(path)):
        parent = at(tree.values, path[:depth])
        scalar = parent is not None and not isinstance(parent, dict)
        if scalar and not (isinstance(parent, str) and may_be_slot(tuple(path[:depth]))):
            tree.complain(
                key, f"{'.'.join(path[:depth])} is {parent!r}, which has no keys of its own", file=COMMAND_LINE
            )
            return
    for step in reversed(path):
        value = {step: value}
    tree.merge(value, COMMAND_LINE)


def _expand(tree: Tree, path: KeyPath, family: str, folder: Path, around: tuple[str, ...] = ()) -> None:
    """Turn a slot into a registered name with its arguments, following its presets; then the slots inside it.

    Args:
        tree: The recipe.
        path: Path of the slot.
        family: Family of the part that belongs there.
        folder: Folder of the recipe.
        around: Preset files of the parts that contain this slot.
    """
    tree.count_part()
    key = ".".join(path)
    parent = at(tree.values, path[:-1])
    value = parent[path[-1]]
    if value is None:
        del parent[path[-1]]
        return
    if isinstance(value, str):
        value = {"preset": value}
    if not isinstance(value, dict):
        tree.complain(key, f"expected the name of a {family} or a mapping, got {value!r}")
        return
    try:
        layers = _layers(value, family, folder, around)
    except PartitaError as error:
        tree.complain(key, str(error))
        return
    layers = _started_anew(layers)
    if _trains_what_is_final(tree, path, [layer for layer, _ in layers]):
        tree.complain(
            f"{key}.fit",
            "the part has weights, which are final, so fit would have no effect",
            ": leave out fit to use the weights as they are, or set weights to null to train from scratch",
            file=tree.blame(f"{key}.fit"),
        )
    elif any(layer.get("weights") is not None for layer, _ in layers):
        layers = [({k: v for k, v in layer.items() if k != "fit"}, file) for layer, file in layers]
    origins = {k: tree.origin(f"{key}.{k}") for k in value}
    slot_origin, inside = tree.origin(key), family_of(path) is None
    parent[path[-1]] = {}
    tree.place(path, slot_origin)
    for layer, file in reversed(layers):
        for k, v in layer.items():
            # a part inside another one is not trained on its own, unlike what its preset assumes
            if k != "preset" and not (k == "fit" and file and inside):
                tree.merge({k: v}, file or origins.get(k, slot_origin), path)
    if "name" not in parent[path[-1]]:
        choices = ", ".join(_choices(family, folder))
        tree.complain(key, "names no part", f": add `preset:` or `name:`, one of {choices}")
    files = (*around, *(file for _, file in layers if file))
    for name, inner in slots_inside(family, parent[path[-1]]).items():
        _expand(tree, (*path, name), inner, folder, files)


Layer = tuple[dict[str, Any], str | None]
"""A slot, or a preset that it is made from with the file of the preset."""


def _started_anew(layers: list[Layer]) -> list[Layer]:
    """The layers of a slot, without the final weights of its presets if ``init`` continues their training."""
    first = next((i for i, (layer, _) in enumerate(layers) if layer.get("init") is not None), len(layers))
    return [
        ({k: v for k, v in layer.items() if k != "weights"} if i > first else layer, file)
        for i, (layer, file) in enumerate(layers)
    ]


def _trains_what_is_final(tree: Tree, path: KeyPath, layers: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a slot itself has training options although the weights of its part are given.

    Args:
        tree: The recipe, with the slot as written.
        path: Key of the slot.
        layers: The slot and the presets it is made from, the slot first.
    """
    weights = next((i for i, layer in enumerate(layers) if "weights" in layer), None)
    if weights is None or layers[weights]["weights"] is None:
        return False
    fit = next((i for i, layer in enumerate(layers) if layer.get("fit")), len(layers))
    if fit != weights or fit > 0:
        return fit <= weights
    return tree.later((*path, "fit"), (*path, "weights"))


def _layers(
    value: dict[str, Any], family: str, folder: Path, around: tuple[str, ...] = ()
) -> list[tuple[dict[str, Any], str | None]]:
    """A slot and the presets it is made from, each with its file, the slot itself first."""
    layers: list[tuple[dict[str, Any], str | None]] = [(value, None)]
    while "preset" in layers[-1][0]:
        preset = layers[-1][0]["preset"]
        found = find_preset(family, preset, folder) if isinstance(preset, str) else None
        if found is not None:
            if str(found) in (*around, *(file for _, file in layers)):
                raise PartitaError(f"preset {preset!r} is made from itself")
            layers.append((read_yaml(found), str(found)))
        elif isinstance(preset, str) and preset in names(family):
            layers.append(({"name": preset}, None))
        else:
            raise PartitaError(f"no {family} is called {preset!r}{did_you_mean(preset, _choices(family, folder))}{OWN}")
    return layers


def preset_values(family: str, name: str) -> dict[str, Any]:
    """The name of the part and its values, from a packaged preset or the name of a part.

    Raises:
        PartitaError: The family has no such preset or part.
    """
    tree, slot = Tree(), ("tokenizers", "part")  # any slot that allows a part with parts inside it
    tree.values = {"tokenizers": {"part": {}}}
    for layer, file in reversed(_layers({"preset": name}, family, packaged())):
        tree.merge({key: value for key, value in layer.items() if key != "preset"}, file or name, slot)
    values: dict[str, Any] = tree.values["tokenizers"]["part"]
    return values


def _choices(family: str, folder: Path) -> list[str]:
    """Every name that a slot of the family can have."""
    local = [path.stem for path in sorted((folder / family).glob("*.yaml"))]
    return list(dict.fromkeys([*presets(family), *local, *names(family)]))


def _refuse_references(tree: Tree) -> None:
    """Reject ``${…}``, which could read environment variables of whoever loads the recipe."""
    for path, text in list(_leaves(tree.values, ())):
        if "${" in text:
            tree.complain(".".join(path), f"{text!r:.200}: recipes cannot refer to other keys", ": write the value")
            around = at(tree.values, path[:-1])
            around[int(path[-1]) if isinstance(around, list) else path[-1]] = text.replace("${", "")  # report it once


def _leaves(values: Any, at: KeyPath) -> Iterator[tuple[KeyPath, str]]:
    items = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    for key, value in items:
        yield from _leaves(value, (*at, str(key)))
    if isinstance(values, str):
        yield at, values
