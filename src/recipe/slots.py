"""The places of a recipe that hold a part: which they are, and how values at them are named."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard

import yaml

from ..core.registry import UnknownName, lookup
from ..core.schema import part_arguments

SLOTS = {"tokenizers": "tokenizer", "conditioners": "conditioner"}
"""Recipe keys whose values are mappings of slots, and the family of their parts."""

LISTS = ("data",)
"""Recipe keys that hold a slot, or a list of them. During composition, a list is a mapping from numbers, so that each
of its slots has a key of its own: ``data.0``."""

KeyPath = tuple[str, ...]
"""The components of a dotted key."""


def slots(values: dict[str, Any]) -> Iterator[KeyPath]:
    """The paths of all slots of a recipe, which hold parts."""
    for group in SLOTS:
        if isinstance(values.get(group), dict):
            yield from ((group, name) for name in values[group])
    if isinstance(values.get("stages"), dict):
        for name, stage in values["stages"].items():
            if isinstance(stage, dict) and "generator" in stage:
                yield ("stages", name, "generator")
    for key in LISTS:
        several = values.get(key)
        if isinstance(several, list):
            yield from ((key, str(number)) for number in range(len(several)))
        elif is_numbered(several):
            yield from ((key, number) for number in several)
        elif key in values:
            yield (key,)


def family_of(path: KeyPath) -> str | None:
    """The family of the part that belongs at ``path``; ``None`` if no part does."""
    match path:
        case ("tokenizers" | "conditioners" as group, _):
            return SLOTS[group]
        case ("stages", _, "generator"):
            return "generator"
        case ("data",) | ("data", _) if len(path) == 1 or path[1].isdecimal():
            return "data"
    return None


def may_be_slot(path: KeyPath) -> bool:
    """Whether a part may belong at ``path``: a slot, or an argument of a part, which only its class knows.

    >>> may_be_slot(("tokenizers", "semantic", "features")), may_be_slot(("tokenizers", "semantic", "name"))
    (True, False)
    """
    if family_of(path):
        return True
    return len(path) > 1 and path[-1] not in ("preset", "name", "weights", "init", "fit") and may_be_slot(path[:-1])


def slots_inside(family: str, values: dict[str, Any]) -> dict[str, str]:
    """The arguments among a slot's ``values`` that hold parts, and the family of each."""
    try:
        takes = part_arguments(lookup(family, str(values.get("name"))))
    except (UnknownName, ImportError):
        return {}  # reported when the recipe is checked
    return {name: inner for name, inner in takes.items() if name in values}


def at(values: Any, path: Sequence[str]) -> Any:
    """The value at a path through mappings and lists; ``None`` if there is none."""
    for step in path:
        if isinstance(values, list) and step.isdecimal() and len(step) < 10 and int(step) < len(values):
            values = values[int(step)]
        elif isinstance(values, dict) and step in values:
            values = values[step]
        else:
            return None
    return values


def is_numbered(value: Any) -> TypeGuard[dict[str, Any]]:
    """Whether a value is a list of slots in its temporary form, a mapping from numbers."""
    return isinstance(value, dict) and any(key.isdecimal() for key in value) and not names_part(value)


def names_part(value: dict[str, Any]) -> bool:
    """Whether a mapping names a part, rather than changing one that is named elsewhere."""
    return "preset" in value or "name" in value


def flat(values: Any, at: KeyPath = ()) -> Iterator[tuple[str, Any]]:
    """Every value of a tree that is not a mapping, with its dotted key.

    >>> dict(flat({"a": {"b": 1, "c": [2]}}))
    {'a.b': 1, 'a.c': [2]}
    """
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from flat(value, (*at, key))
        else:
            yield ".".join((*at, key)), value


def slot_name(value: Any) -> str:
    """A short name of a value: a slot by its preset or name and its changes, a path by its last component.

    >>> slot_name({"preset": "vggish", "hop": 0.48, "weights": "/data/vggish.pth"})
    'vggish hop=0.48 weights=vggish.pth'
    """
    if isinstance(value, Mapping):
        return " ".join(slot_name(v) if k in ("preset", "name") else f"{k}={slot_name(v)}" for k, v in value.items())
    if isinstance(value, str):
        return Path(value).name if value.startswith(("/", "~", ".")) else value
    return yaml.safe_dump(value, default_flow_style=True, width=1000).removesuffix("\n...\n").strip()
