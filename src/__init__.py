"""Partita: interchangeable, trainable parts for music generation, and the recipes that compose them into systems."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .errors import PartitaError
from .registry import register

if TYPE_CHECKING:
    from .ablating import ablate
    from .ablation import Ablation, read_ablation
    from .generation import Story
    from .layers.guidance import Term
    from .recipe import load_recipe
    from .system import System, load
    from .training import train

__version__ = "0.1.0"
__all__ = [
    "Ablation",
    "PartitaError",
    "Story",
    "System",
    "Term",
    "ablate",
    "load",
    "load_recipe",
    "read_ablation",
    "register",
    "train",
]
_HOMES = {
    "Ablation": "ablation",
    "Story": "generation",
    "System": "system",
    "Term": "layers.guidance",
    "ablate": "ablating",
    "load": "system",
    "load_recipe": "recipe",
    "read_ablation": "ablation",
    "train": "training",
}


def __getattr__(name: str) -> Any:
    """Import what needs torch only when it is asked for."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    """Those names, too, without importing them."""
    return sorted([*__all__, "__version__"])
