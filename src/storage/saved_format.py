"""The format in which systems and parts are saved: its number, and the message about another one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import PartitaError

INDEX = "recipe.yaml"
"""File with the resolved recipe of a system, which marks a folder as a saved system."""

ADAPTERS = "adapters"
"""Folder of the adapters that were trained for the stages of another system, which marks a folder as theirs."""

FILES = ["*.yaml", "*.json", "*.safetensors", "*.model"]
"""Patterns of the files of a saved system that are downloaded from a repository on the Hub."""

FORMAT = 2
"""Stands as ``format`` in the recipe of a saved system and in the ``config.json`` of a saved part.

It counts up whenever what one version saves cannot be read by the one before or after it. The first versions wrote no
number.
"""


def numbered(values: dict[str, Any]) -> dict[str, Any]:
    """What is saved, with the number of this format at its top."""
    return {"format": FORMAT} | {name: value for name, value in values.items() if name != "format"}


def mismatch(held: Any) -> str | None:
    """What is wrong with a format number, ``None`` if it is the one of this version.

    Args:
        held: What a file says of its format; ``None`` if it says nothing.
    """
    if type(held) is int and held == FORMAT:
        return None
    if type(held) is int and held > FORMAT:
        return "was saved by a newer version of Partita and cannot be read by this one: update Partita to load it"
    return (
        "was saved by an older version of Partita and cannot be read by this one: load it with the version that saved "
        "it, or train it again"
    )


def check_format(held: Any, folder: str | Path) -> None:
    """See that a saved system or part has the format of this version.

    Raises:
        PartitaError: An older or newer version saved it.
    """
    if (wrong := mismatch(held)) is not None:
        raise PartitaError(f"{folder} {wrong}")
