"""Rejecting YAML that is small but expands to something huge, through aliases or endless nesting."""

from __future__ import annotations

from pathlib import Path

import yaml

from ..errors import PartitaError
from ..limits import DEEPEST, MOST_VALUES, TooMuch, beyond


def check_yaml(text: str, path: Path) -> None:
    """Check that a YAML text is neither nested so deep that it breaks the parser nor multiplied by aliases.

    Raises:
        PartitaError: It is.
        yaml.YAMLError: The text is not YAML.
    """
    sizes: dict[str, int] = {}
    around: list[tuple[str | None, int]] = [(None, 0)]  # anchor and number of values of each open collection
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
