"""Composing a recipe from files, bases, presets and command-line overrides into one plain tree.

Nothing in a recipe is ever imported or executed. The file that sets each key is recorded for error messages.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..core.registry import OWN, did_you_mean, names, with_article
from ..errors import PartitaError
from ..storage.files import kind
from .finetuning import take_over
from .recipe_files import find_preset, find_recipe, packaged, presets, read_value, read_yaml
from .slots import LIST_KEYS, KeyPath, at, family_of, is_numbered, may_be_slot, slots, slots_inside
from .tree import COMMAND_LINE, Tree


def compose(recipe: str | Path | Mapping[str, Any], overrides: Sequence[str] = ()) -> Tree:
    """Read a recipe with its bases and presets, and apply overrides.

    Args:
        recipe: Path of a recipe, name of a packaged recipe, or a mapping of values.
        overrides: Texts of the form ``key=value``, with dotted keys and YAML values.

    Raises:
        PartitaError: The recipe does not exist, or its file cannot be read.
    """
    tree, folder = Tree(), Path()
    if isinstance(recipe, Mapping):
        tree.merge(dict(recipe), "recipe")
    else:
        path = find_recipe(str(recipe))
        folder = path.parent
        _merge_file(tree, path, [])
    for override in overrides:
        _override(tree, override)
    if isinstance(stages := tree.values.get("stages"), dict):
        for name in [name for name, stage in stages.items() if stage is None]:  # removed by an override
            del stages[name]
    if not tree.set_later(("description",), ("data",)):
        tree.values.pop("description", None)  # it describes data that has been replaced
    for key in LIST_KEYS:
        _check_numbers(tree, key)
    for slot in list(slots(tree.values)):
        _expand_slot(tree, slot, str(family_of(slot)), folder)
    for key in LIST_KEYS:
        value = tree.values.get(key)
        if is_numbered(value):
            tree.values[key] = list(value.values())
    take_over(tree)
    _refuse_references(tree)
    return tree


def _check_numbers(tree: Tree, key: str) -> None:
    """Report and remove overrides of a list of slots whose index is not in the list."""
    value = tree.values.get(key)
    if not is_numbered(value):
        return
    count = next(number for number in range(len(value) + 1) if str(number) not in value)
    for other in value.keys() - {str(number) for number in range(count)}:
        hint = "" if other.isdecimal() else f": set {key}.0.{other}"
        tree.add_problem(f"{key}.{other}", f"{key} is a list of {count}, {key}.0 to {key}.{count - 1}", hint)
        del value[other]


def _merge_file(tree: Tree, path: Path, derived: list[Path]) -> None:
    """Merge a recipe file over its bases.

    Args:
        tree: Receives the values.
        path: The recipe file.
        derived: Recipe files that have this file as a base, directly or indirectly.
    """
    if path.resolve() in derived:
        tree.add_problem(
            "base", f"{path} is its own base, through {' and '.join(p.name for p in derived)}", file=str(path)
        )
        return
    values = read_yaml(path)
    if "recipe" in values:
        raise PartitaError(
            f"{path} is an ablation file, which compares recipes, not a recipe: run `partita ablate {path}`"
        )
    base = values.pop("base", None)
    if isinstance(base, str):
        beside = path.parent / base
        try:
            found = beside if kind(beside) == "file" else find_recipe(base)
            _merge_file(tree, found, [*derived, path.resolve()])
        except PartitaError as error:
            tree.add_problem("base", str(error), file=str(path))
    elif base is not None:
        tree.add_problem("base", f"expected the name or path of a recipe, got {base!r}", file=str(path))
    tree.merge(values, str(path))


def _override(tree: Tree, override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not re.fullmatch(r"[\w-]+(\.[\w-]+)*", key):
        tree.add_problem(
            override, "expected key=value, such as tokenizers.acoustic=soundstream-tiny", file=COMMAND_LINE
        )
        return
    try:
        value = read_value(text)
    except (PartitaError, ValueError) as error:
        tree.add_problem(key, str(error), file=COMMAND_LINE)
        return
    path = key.split(".")
    for depth in range(1, len(path)):
        parent = at(tree.values, path[:depth])
        scalar = parent is not None and not isinstance(parent, dict)
        if scalar and not (isinstance(parent, str) and may_be_slot(tuple(path[:depth]))):
            tree.add_problem(
                key, f"{'.'.join(path[:depth])} is {parent!r}, which has no keys of its own", file=COMMAND_LINE
            )
            return
    for step in reversed(path):
        value = {step: value}
    tree.merge(value, COMMAND_LINE)


def _expand_slot(tree: Tree, path: KeyPath, family: str, folder: Path, outer_presets: tuple[str, ...] = ()) -> None:
    """Replace a slot, and the slots nested in it, with a registered name and arguments by merging its presets.

    Args:
        tree: The recipe.
        path: Path of the slot.
        family: Family of the part in the slot.
        folder: Folder of the recipe, where presets are searched first.
        outer_presets: Preset files of the parts that contain this slot.
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
        tree.add_problem(key, f"expected the name of {with_article(family)} or a mapping, got {value!r}")
        return
    try:
        layers = _layers(value, family, folder, outer_presets)
    except PartitaError as error:
        tree.add_problem(key, str(error))
        return
    layers = _without_preset_weights(layers)
    if not (path[-1] == "generator" and parent.get("adapter") is not None):  # else fit is about the adapter
        layers = _without_fit_of_final_weights(tree, path, layers)
    origins = {k: tree.origin(f"{key}.{k}") for k in value}
    slot_origin = tree.origin(key)
    parent[path[-1]] = {}
    tree.set_origin(path, slot_origin)
    for layer, file in reversed(layers):
        for k, v in layer.items():
            if k != "preset":
                tree.merge({k: v}, file or origins.get(k, slot_origin), path)
    if "name" not in parent[path[-1]]:
        choices = ", ".join(_choices(family, folder))
        tree.add_problem(key, "names no part", f": add `preset:` or `name:`, one of {choices}")
    files = (*outer_presets, *(file for _, file in layers if file))
    for name, inner in slots_inside(family, parent[path[-1]]).items():
        _expand_slot(tree, (*path, name), inner, folder, files)


Layer = tuple[dict[str, Any], str | None]
"""Values of a slot with ``None``, or values of one of its presets with the file of the preset."""


def _without_preset_weights(layers: list[Layer]) -> list[Layer]:
    """Return the layers of a slot without the weights of presets below a layer with ``init``, which trains further."""
    first = next((i for i, (layer, _) in enumerate(layers) if layer.get("init") is not None), len(layers))
    return [
        ({k: v for k, v in layer.items() if k != "weights"} if i > first else layer, file)
        for i, (layer, file) in enumerate(layers)
    ]


def _without_fit_of_final_weights(tree: Tree, path: KeyPath, layers: list[Layer]) -> list[Layer]:
    """Return the layers of a slot without training options if its weights are given, and report options set later."""
    key = ".".join(path)
    if _fit_has_no_effect(tree, path, [layer for layer, _ in layers]):
        tree.add_problem(
            f"{key}.fit",
            "the part has weights, which are final, so fit would have no effect",
            ": remove fit to use the weights unchanged, or set weights to null to train from scratch",
            file=tree.blame(f"{key}.fit"),
        )
    elif next((layer["weights"] for layer, _ in layers if "weights" in layer), None) is not None:
        return [({k: v for k, v in layer.items() if k != "fit"}, file) for layer, file in layers]
    return layers


def _fit_has_no_effect(tree: Tree, path: KeyPath, layers: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether training options of a slot have no effect because the weights of its part are given.

    A preset can have both: the options are for slots that set ``weights: null`` or ``init``.

    Args:
        tree: The recipe, with the slot as written.
        path: Path of the slot.
        layers: Values of the slot, followed by those of its presets.
    """
    weights = next((i for i, layer in enumerate(layers) if "weights" in layer), None)
    if weights is None or layers[weights]["weights"] is None:
        return False
    fit = next((i for i, layer in enumerate(layers) if layer.get("fit")), len(layers))
    if fit != weights or fit > 0:
        return fit < weights
    return tree.set_later((*path, "fit"), (*path, "weights"))


def _layers(
    value: dict[str, Any], family: str, folder: Path, outer_presets: tuple[str, ...] = ()
) -> list[tuple[dict[str, Any], str | None]]:
    """Return the layers of a slot: its own values first, followed by its presets."""
    layers: list[tuple[dict[str, Any], str | None]] = [(value, None)]
    while "preset" in layers[-1][0]:
        preset = layers[-1][0]["preset"]
        found = find_preset(family, preset, folder) if isinstance(preset, str) else None
        if found is not None:
            if str(found) in (*outer_presets, *(file for _, file in layers)):
                raise PartitaError(f"preset {preset!r} is based on itself")
            layers.append((read_yaml(found), str(found)))
        elif isinstance(preset, str) and preset in names(family):
            layers.append(({"name": preset}, None))
        else:
            raise PartitaError(f"no {family} is called {preset!r}{did_you_mean(preset, _choices(family, folder))}{OWN}")
    return layers


def preset_values(family: str, name: str) -> dict[str, Any]:
    """Return the part name and the argument values of a packaged preset, or of a part without a preset.

    Raises:
        PartitaError: The family has no such preset or part.
    """
    tree, slot = Tree(), ("tokenizers", "part")  # any slot that allows nested parts
    tree.values = {"tokenizers": {"part": {}}}
    for layer, file in reversed(_layers({"preset": name}, family, packaged())):
        tree.merge({key: value for key, value in layer.items() if key != "preset"}, file or name, slot)
    values: dict[str, Any] = tree.values["tokenizers"]["part"]
    return values


def _choices(family: str, folder: Path) -> list[str]:
    """Return all names of presets and parts that a slot of the family accepts."""
    local = [path.stem for path in sorted((folder / family).glob("*.yaml"))]
    return list(dict.fromkeys([*presets(family), *local, *names(family)]))


def _refuse_references(tree: Tree) -> None:
    """Report ``${…}``, which could read environment variables of the user who loads the recipe."""
    for path, text in list(_leaves(tree.values, ())):
        if "${" in text:
            tree.add_problem(".".join(path), f"{text!r:.200}: recipes cannot refer to other keys", ": write the value")
            parent = at(tree.values, path[:-1])
            parent[int(path[-1]) if isinstance(parent, list) else path[-1]] = text.replace("${", "")  # report it once


def _leaves(values: Any, at: KeyPath) -> Iterator[tuple[KeyPath, str]]:
    items = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    for key, value in items:
        yield from _leaves(value, (*at, str(key)))
    if isinstance(values, str):
        yield at, values
