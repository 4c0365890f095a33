"""Other people's checkpoints: a local folder or a hub id, read as safetensors and never as pickles."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from .errors import PartitaError
from .hub import fetch
from .untrusted import read_header, read_json

WEIGHTS = ("config.json", "*.safetensors", "*.safetensors.index.json")
"""The files of a checkpoint, without those of a text tokenizer."""


def checkpoint_folder(source: str | Path, patterns: Sequence[str] = WEIGHTS) -> Path:
    """The folder of a checkpoint: ``source`` itself where it is one, otherwise the Hub's files, downloaded once.

    Args:
        source: A folder, or a hub id such as ``google-t5/t5-base``.
        patterns: Names of the files needed.

    Raises:
        PartitaError: There is no such folder, and the Hub has no such repository or cannot be reached.
    """
    path = Path(source)
    if path.is_dir():
        return path
    if path.is_absolute() or str(source).startswith("."):
        raise PartitaError(f"no weights at {source}: there is no such folder")
    return fetch(str(source), patterns)


def read_config(folder: Path) -> dict[str, Any]:
    """The ``config.json`` of a checkpoint; empty where it has none.

    Raises:
        PartitaError: It is not a JSON mapping, or larger than a configuration can be.
    """
    path = folder / "config.json"
    return read_json(path) if path.is_file() else {}


def read_safetensors(folder: Path, wanted: Callable[[str], bool]) -> dict[str, Tensor]:
    """The tensors in a folder's safetensors files whose names are ``wanted``; no others are read.

    Raises:
        PartitaError: The folder has no such file, or one is damaged.
    """
    from safetensors import SafetensorError, safe_open

    paths = sorted(folder.glob("*.safetensors"))
    if not paths:
        raise PartitaError(f"{folder} holds no safetensors file; pickled weights (.bin, .pt) are never read")
    state = {}
    for path in paths:
        read_header(path)
        try:
            with safe_open(path, framework="pt") as file:
                state.update({name: file.get_tensor(name) for name in filter(wanted, file.keys())})
        except (SafetensorError, OSError) as error:
            raise PartitaError(f"{path} is damaged or no safetensors file: {error}") from None
    return state
