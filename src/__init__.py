"""Partita: interchangeable, trainable parts for music generation, and the recipes that compose them into systems."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .errors import PartitaError
from .registry import register

if TYPE_CHECKING:
    from .generation import Story
    from .layers.guidance import Term
    from .system import System, load

__version__ = "0.1.0"
__all__ = ["PartitaError", "Story", "System", "Term", "load", "register"]


def __getattr__(name: str) -> Any:
    """Import what needs torch only when it is asked for."""
    homes = {"System": "system", "load": "system", "Story": "generation", "Term": "layers.guidance"}
    if name not in homes:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{homes[name]}", __name__), name)
