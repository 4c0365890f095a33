"""YAML that is small and becomes huge: aliases and references that multiply, and nesting without end."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from ..errors import PartitaError
from ..limits import DEEPEST, LARGEST_RESOLVED, MOST_VALUES, TooMuch, beyond


def check_yaml(text: str, path: Path) -> None:
    """See that a YAML text is neither nested without end, which breaks its reader, nor multiplied by aliases.

    Raises:
        PartitaError: It is.
        yaml.YAMLError: It is no YAML.
    """
    sizes: dict[str, int] = {}
    around: list[tuple[str | None, int]] = [(None, 0)]  # the anchor of each collection begun, and its values so far
    for event in yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
        added = 0
        if isinstance(event, yaml.CollectionStartEvent):
            around.append((event.anchor, 1))
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, added = around.pop()
            if anchor is not None:
                sizes[anchor] = added
        elif isinstance(event, yaml.ScalarEvent):
            added = 1
            if event.anchor is not None:
                sizes[event.anchor] = 1
        elif isinstance(event, yaml.AliasEvent):
            if event.anchor in [anchor for anchor, _ in around]:
                raise PartitaError(f"{path}: a value contains itself: refused")
            added = sizes.get(event.anchor, 0)
        around[-1] = (around[-1][0], around[-1][1] + added)
        if beyond(around[-1][1], MOST_VALUES):
            raise TooMuch(f"{path} expands to more than {MOST_VALUES:,} values, which no recipe has: refused")
        if beyond(len(around), DEEPEST):
            raise TooMuch(f"{path} is nested more than {DEEPEST} deep, far more than a recipe is: refused")


def check_references(values: Mapping[str, Any]) -> str:
    """What is wrong with the ``${key}`` in a recipe, if they multiply it beyond all measure; empty where they do not.

    Args:
        values: Plain ones, no reference resolved.
    """
    sizes: dict[tuple[str, ...], int] = {}
    nested = False

    def size(path: tuple[str, ...], value: Any) -> int:
        nonlocal nested
        if path not in sizes:
            sizes[path] = 0  # of what refers to itself, which is complained about elsewhere
            if isinstance(value, Mapping | list):
                items = value.items() if isinstance(value, Mapping) else enumerate(value)
                sizes[path] = 1 + sum(size((*path, str(key)), inner) for key, inner in items)
            else:
                text = str(value)
                nested = nested or re.search(r"\$\{[^}]*\$\{", text) is not None
                targets = re.findall(r"\$\{([^${}]*)\}", text)
                sizes[path] = 1 + len(text) + sum(size(*_target(values, path, target)) for target in targets)
        return sizes[path]

    whole = size((), values)
    if nested:
        return "a reference cannot refer to another by its name: write the key itself"
    if beyond(whole, LARGEST_RESOLVED):
        return str(TooMuch(f"references multiply it to more than {LARGEST_RESOLVED:,} characters: refused"))
    return ""


def _target(values: Any, path: tuple[str, ...], reference: str) -> tuple[tuple[str, ...], Any]:
    """Where ``${reference}`` in the value at ``path`` leads, and what is there."""
    key = reference.strip()
    name = key.lstrip(".")
    up = len(key) - len(name)
    steps = path[: max(0, len(path) - up)] if up else ()
    steps += tuple(step for step in re.split(r"[.\[\]]+", name) if step)
    for step in steps:
        try:
            values = values[int(step)] if isinstance(values, list) else values[step]
        except (KeyError, IndexError, ValueError, TypeError):
            return (*steps, ""), ""  # complained about elsewhere
    return steps, values
