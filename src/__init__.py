"""Partita: interchangeable, trainable parts for music generation, and the recipes that compose them into systems."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .core.registry import register
from .core.version import __version__
from .errors import PartitaError

if TYPE_CHECKING:
    from .core.excerpt import Excerpt
    from .core.fit import Fit
    from .core.imports import import_file
    from .evaluation.ablate import ablate
    from .evaluation.ablation import Ablation, read_ablation
    from .layers.guidance import Term
    from .publishing.pull import pull
    from .publishing.push import Commit, preview_push, push
    from .recipe.plan import load_recipe
    from .storage.audio_file import check_writable, write_audio
    from .system.batches import generate_each
    from .system.data_check import check_data
    from .system.mastering import Mastering
    from .system.prompts import Row, doubts_about, read_prompts, write_manifest
    from .system.ready_parts import load_part
    from .system.request import Story
    from .system.system import System, load
    from .training.runs import train

__all__ = [
    "Ablation",
    "Commit",
    "Excerpt",
    "Fit",
    "Mastering",
    "PartitaError",
    "Row",
    "Story",
    "System",
    "Term",
    "__version__",
    "ablate",
    "check_data",
    "check_writable",
    "doubts_about",
    "generate_each",
    "import_file",
    "load",
    "load_part",
    "load_recipe",
    "preview_push",
    "pull",
    "push",
    "read_ablation",
    "read_prompts",
    "register",
    "train",
    "write_audio",
    "write_manifest",
]
_HOMES = {
    "Ablation": "evaluation.ablation",
    "Commit": "publishing.push",
    "Excerpt": "core.excerpt",
    "Fit": "core.fit",
    "Mastering": "system.mastering",
    "Row": "system.prompts",
    "Story": "system.request",
    "System": "system.system",
    "Term": "layers.guidance",
    "ablate": "evaluation.ablate",
    "check_data": "system.data_check",
    "check_writable": "storage.audio_file",
    "doubts_about": "system.prompts",
    "generate_each": "system.batches",
    "import_file": "core.imports",
    "load": "system.system",
    "load_part": "system.ready_parts",
    "load_recipe": "recipe.plan",
    "preview_push": "publishing.push",
    "pull": "publishing.pull",
    "push": "publishing.push",
    "read_ablation": "evaluation.ablation",
    "read_prompts": "system.prompts",
    "train": "training.runs",
    "write_audio": "storage.audio_file",
    "write_manifest": "system.prompts",
}


def __getattr__(name: str) -> Any:
    """Import what needs torch only when it is asked for."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    """Those names, too, without importing them."""
    return sorted(__all__)
