"""Partita: interchangeable, trainable parts for music generation, and the recipes that compose them into systems."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .errors import PartitaError
from .registry import register

if TYPE_CHECKING:
    from .ablating import ablate
    from .ablation import Ablation, read_ablation
    from .excerpt import Excerpt
    from .imports import import_file
    from .layers.guidance import Term
    from .prompts import Row, generate_each, read_prompts
    from .ready_parts import load_part
    from .recipe import load_recipe
    from .request import Story
    from .system import System, load
    from .training_runs import train

__version__ = "0.1.0"
__all__ = [
    "Ablation",
    "Excerpt",
    "PartitaError",
    "Row",
    "Story",
    "System",
    "Term",
    "ablate",
    "generate_each",
    "import_file",
    "load",
    "load_part",
    "load_recipe",
    "read_ablation",
    "read_prompts",
    "register",
    "train",
]
_HOMES = {
    "Ablation": "ablation",
    "Excerpt": "excerpt",
    "Row": "prompts",
    "Story": "request",
    "System": "system",
    "Term": "layers.guidance",
    "ablate": "ablating",
    "generate_each": "prompts",
    "import_file": "imports",
    "load": "system",
    "load_part": "ready_parts",
    "load_recipe": "recipe",
    "read_ablation": "ablation",
    "read_prompts": "prompts",
    "train": "training_runs",
}


def __getattr__(name: str) -> Any:
    """Import what needs torch only when it is asked for."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    """Those names, too, without importing them."""
    return sorted([*__all__, "__version__"])
