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
    from .evaluation.ablate import ablate, preview_ablation
    from .evaluation.ablation import Ablation, read_ablation
    from .evaluation.evaluate import evaluate
    from .evaluation.evaluation_options import Evaluation
    from .evaluation.launch import Cluster
    from .evaluation.listen import check_listening_test, gather_clips, write_listening_test
    from .evaluation.listen_results import listening_results
    from .evaluation.score_table import score_table
    from .evaluation.tasks import perform_task
    from .layers.guidance import Term
    from .publishing.importing import import_system
    from .publishing.pull import pull
    from .publishing.push import Commit, preview_push, push
    from .recipe.plan import load_recipe
    from .recipe.token_options import TokenOptions
    from .storage.audio_file import check_writable, write_audio
    from .system.batches import generate_each
    from .system.data_check import check_data
    from .system.encoded_inputs import encode_inputs
    from .system.mastering import Mastering
    from .system.player import check_player, play_each
    from .system.prompts import Row, prompt_warnings, read_prompts, with_input, with_structure, write_manifest
    from .system.ready_parts import load_part
    from .system.request import Request, Story
    from .system.system import System, load
    from .training.inversion import Inversion, invert
    from .training.runs import train
    from .training.tokenize import tokenize

__all__ = [
    "Ablation",
    "Cluster",
    "Commit",
    "Evaluation",
    "Excerpt",
    "Fit",
    "Inversion",
    "Mastering",
    "PartitaError",
    "Request",
    "Row",
    "Story",
    "System",
    "Term",
    "TokenOptions",
    "__version__",
    "ablate",
    "check_data",
    "check_listening_test",
    "check_player",
    "check_writable",
    "encode_inputs",
    "evaluate",
    "gather_clips",
    "generate_each",
    "import_file",
    "import_system",
    "invert",
    "listening_results",
    "load",
    "load_part",
    "load_recipe",
    "perform_task",
    "play_each",
    "preview_ablation",
    "preview_push",
    "prompt_warnings",
    "pull",
    "push",
    "read_ablation",
    "read_prompts",
    "register",
    "score_table",
    "tokenize",
    "train",
    "with_input",
    "with_structure",
    "write_audio",
    "write_listening_test",
    "write_manifest",
]
_HOMES = {
    "Ablation": "evaluation.ablation",
    "Cluster": "evaluation.launch",
    "Commit": "publishing.push",
    "Evaluation": "evaluation.evaluation_options",
    "Excerpt": "core.excerpt",
    "Fit": "core.fit",
    "Mastering": "system.mastering",
    "Request": "system.request",
    "Row": "system.prompts",
    "Story": "system.request",
    "System": "system.system",
    "Term": "layers.guidance",
    "TokenOptions": "recipe.token_options",
    "ablate": "evaluation.ablate",
    "check_data": "system.data_check",
    "check_listening_test": "evaluation.listen",
    "check_player": "system.player",
    "check_writable": "storage.audio_file",
    "encode_inputs": "system.encoded_inputs",
    "evaluate": "evaluation.evaluate",
    "gather_clips": "evaluation.listen",
    "generate_each": "system.batches",
    "import_file": "core.imports",
    "import_system": "publishing.importing",
    "Inversion": "training.inversion",
    "invert": "training.inversion",
    "listening_results": "evaluation.listen_results",
    "load": "system.system",
    "load_part": "system.ready_parts",
    "load_recipe": "recipe.plan",
    "perform_task": "evaluation.tasks",
    "play_each": "system.player",
    "preview_ablation": "evaluation.ablate",
    "preview_push": "publishing.push",
    "prompt_warnings": "system.prompts",
    "pull": "publishing.pull",
    "push": "publishing.push",
    "read_ablation": "evaluation.ablation",
    "read_prompts": "system.prompts",
    "score_table": "evaluation.score_table",
    "tokenize": "training.tokenize",
    "train": "training.runs",
    "with_input": "system.prompts",
    "with_structure": "system.prompts",
    "write_audio": "storage.audio_file",
    "write_listening_test": "evaluation.listen",
    "write_manifest": "system.prompts",
}


def __getattr__(name: str) -> Any:
    """Import a public name on first access, so that ``import partita`` does not import torch."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    """Return the public names without importing them."""
    return sorted(__all__)
