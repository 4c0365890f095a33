"""Rejection of small YAML files that expand to huge data through aliases or deep nesting."""

from __future__ import annotations

from pathlib import Path

import yaml

from ..errors import PartitaError
from ..limits import DEEPEST, MOST_VALUES, TooMuch, beyond


def check_yaml(text: str, path: Path) -> None:
    """Check that a YAML text is neither nested too deeply for the parser nor expanded too far by aliases.

    Raises:
        PartitaError: The text is nested too deeply, expands too far, or contains itself.
        yaml.YAMLError: The text is not YAML.
    """
    sizes: dict[str, int] = {}
    open_collections: list[tuple[str | None, int]] = [(None, 0)]  # anchor and value count of each open collection
    for event in yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
        added = 0
        if isinstance(event, yaml.CollectionStartEvent):
            open_collections.append((event.anchor, 1))
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, added = open_collections.pop()
            if anchor is not None:
                sizes[anchor] = added
        elif isinstance(event, yaml.ScalarEvent):
            added = 1
            if event.anchor is not None:
                sizes[event.anchor] = 1
        elif isinstance(event, yaml.AliasEvent):
            if event.anchor in [anchor for anchor, _ in open_collections]:
                raise PartitaError(f"{path}: a value contains itself: refused")
            added = sizes.get(event.anchor, 0)
        open_collections[-1] = (open_collections[-1][0], open_collections[-1][1] + added)
        if beyond(open_collections[-1][1], MOST_VALUES):
            raise TooMuch(f"{path} expands to more than {MOST_VALUES:,} values, far more than any recipe: refused")
        if beyond(len(open_collections), DEEPEST):
            raise TooMuch(f"{path} is nested more than {DEEPEST} levels deep, far more than any recipe: refused")
