"""The slots of a recipe, which are the keys that hold a part, and names for their values."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard

import yaml

from ..core.registry import UnknownName, lookup
from ..core.schema import part_arguments

SLOT_GROUPS = {"tokenizers": "tokenizer", "conditioners": "conditioner"}
"""Recipe keys whose values are mappings of slots, with the family of the parts in them."""

STAGE_SLOTS = ("generator", "adapter")
"""Keys of a stage that hold a slot, which are the families of the parts in them."""

LIST_KEYS = ("data",)
"""Recipe keys that hold a slot or a list of slots. During composition, a list is a mapping from indices, so that each
slot has its own key, such as ``data.0``."""

KeyPath = tuple[str, ...]
"""Components of a dotted key."""


def slots(values: dict[str, Any]) -> Iterator[KeyPath]:
    """Yield the paths of all slots of a recipe, without nested slots."""
    for group in SLOT_GROUPS:
        if isinstance(values.get(group), dict):
            yield from ((group, name) for name in values[group])
    if isinstance(values.get("stages"), dict):
        for name, stage in values["stages"].items():
            for key in STAGE_SLOTS if isinstance(stage, dict) else ():
                if key in stage:
                    yield ("stages", name, key)
    for key in LIST_KEYS:
        several = values.get(key)
        if isinstance(several, list):
            yield from ((key, str(number)) for number in range(len(several)))
        elif is_numbered(several):
            yield from ((key, number) for number in several)
        elif key in values:
            yield (key,)


def family_of(path: KeyPath) -> str | None:
    """Return the family of the part at ``path``, or ``None`` if the path is not a slot of the recipe."""
    match path:
        case ("tokenizers" | "conditioners" as group, _):
            return SLOT_GROUPS[group]
        case ("stages", _, key) if key in STAGE_SLOTS:
            return key
        case ("data",) | ("data", _) if len(path) == 1 or path[1].isdecimal():
            return "data"
    return None


def may_be_slot(path: KeyPath) -> bool:
    """Return whether ``path`` may be a slot. Any argument of a part may be one, since only its class defines which are.

    >>> may_be_slot(("tokenizers", "semantic", "features")), may_be_slot(("tokenizers", "semantic", "name"))
    (True, False)
    """
    if family_of(path):
        return True
    return len(path) > 1 and path[-1] not in ("preset", "name", "weights", "init", "fit") and may_be_slot(path[:-1])


def slots_inside(family: str, values: dict[str, Any]) -> dict[str, str]:
    """Return the arguments among a slot's ``values`` that hold parts, with the family of each."""
    try:
        takes = part_arguments(lookup(family, str(values.get("name"))))
    except (UnknownName, ImportError):
        return {}  # reported when the recipe is checked
    return {name: inner for name, inner in takes.items() if name in values}


def at(values: Any, path: Sequence[str]) -> Any:
    """Return the value at a path through mappings and lists, or ``None`` if the path does not exist."""
    for step in path:
        if isinstance(values, list) and step.isdecimal() and len(step) < 10 and int(step) < len(values):
            values = values[int(step)]
        elif isinstance(values, dict) and step in values:
            values = values[step]
        else:
            return None
    return values


def is_numbered(value: Any) -> TypeGuard[dict[str, Any]]:
    """Return whether a value is a list of slots in its temporary form, a mapping from indices."""
    return isinstance(value, dict) and any(key.isdecimal() for key in value) and not names_part(value)


def names_part(value: dict[str, Any]) -> bool:
    """Return whether a mapping names a part, as opposed to changing arguments of a part that is named elsewhere."""
    return "preset" in value or "name" in value


def flatten(values: Any, at: KeyPath = ()) -> Iterator[tuple[str, Any]]:
    """Yield each value of a tree that is not a mapping, with its dotted key.

    >>> dict(flatten({"a": {"b": 1, "c": [2]}}))
    {'a.b': 1, 'a.c': [2]}
    """
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from flatten(value, (*at, key))
        else:
            yield ".".join((*at, key)), value


def slot_name(value: Any) -> str:
    """Return a short label: of a slot, its preset or name and its changes; of a path, its last component.

    >>> slot_name({"preset": "vggish", "hop": 0.48, "weights": "/data/vggish.pth"})
    'vggish hop=0.48 weights=vggish.pth'
    """
    if isinstance(value, Mapping):
        return " ".join(slot_name(v) if k in ("preset", "name") else f"{k}={slot_name(v)}" for k, v in value.items())
    if isinstance(value, str):
        return Path(value).name if value.startswith(("/", "~", ".")) else value
    return inline_yaml(value)


def inline_yaml(value: Any) -> str:
    """Return a plain value as a recipe has it, in one line.

    >>> inline_yaml(None), inline_yaml([1, 0.5]), inline_yaml({"name": "lora"})
    ('null', '[1, 0.5]', '{name: lora}')
    """
    return yaml.safe_dump(value, default_flow_style=True, width=math.inf, sort_keys=False).removesuffix("...\n").strip()
