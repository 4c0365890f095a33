"""Checkpoints in a local folder or on the Hub, read from safetensors or from pickles that hold only plain data."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import PartitaError
from ..limits import LARGEST_CONFIG
from .download import fetch
from .files import kind
from .tensor_file import read_tensors
from .untrusted import read_header, read_json

WEIGHTS = ("config.json", "*.safetensors", "*.safetensors.index.json")
"""The files of a checkpoint, without those of a text tokenizer."""


def checkpoint_folder(source: str | Path, patterns: Sequence[str] = WEIGHTS) -> Path:
    """The folder of a checkpoint: ``source`` if it is a folder, otherwise the downloaded files of the Hub.

    Args:
        source: A folder, or a hub id such as ``google-t5/t5-base``.
        patterns: Names of the needed files.

    Raises:
        PartitaError: The folder does not exist, and the Hub has no such repository or cannot be reached.
    """
    path = Path(source)
    if kind(path) == "folder":
        return path
    if path.is_absolute() or str(source).startswith("."):
        raise PartitaError(f"no weights at {source}: there is no such file or folder")
    return fetch(str(source), patterns)


def read_config(folder: Path) -> dict[str, Any]:
    """The ``config.json`` of a checkpoint; empty if there is none.

    Raises:
        PartitaError: The file is not a JSON mapping, or is larger than a configuration can be.
    """
    path = folder / "config.json"
    return read_json(path) if path.is_file() else {}


def read_safetensors(folder: Path, wanted: Callable[[str], bool]) -> dict[str, Tensor]:
    """The tensors in a folder's safetensors files whose names are ``wanted``. Other tensors are not read.

    Raises:
        PartitaError: The folder has no safetensors file, lacks one that its index names, or a file is damaged.
    """
    paths = sorted(folder.glob("*.safetensors"))
    for index in folder.glob("*.safetensors.index.json"):
        held = read_json(index).get("weight_map")
        named = {str(name) for name in held.values()} if isinstance(held, dict) else set()
        if missing := sorted(named - {path.name for path in paths}):
            raise PartitaError(f"{folder} is incomplete: it lacks {', '.join(missing[:5])}, which {index.name} names")
    if not paths:
        raise PartitaError(
            f"{folder} holds no safetensors file, and the pickled weights (.bin, .pt) of this model are not read"
        )
    state = {}
    for path in paths:
        read_header(path)
        try:
            with safe_open(path, framework="pt") as file:
                state.update({name: file.get_tensor(name) for name in filter(wanted, file.keys())})
        except (SafetensorError, OSError) as error:
            raise PartitaError(f"{path} is damaged or no safetensors file: {error}") from None
    return state


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a file of weights, or of its entry ``best_state``, ``model`` or ``state_dict`` if it holds more.

    Pickles are read as plain data, in which nothing can be called. Numeric NumPy arrays are allowed, because some early
    releases contain them.

    Raises:
        PartitaError: The file is damaged, holds objects other than data, or does not hold weights.
    """
    if path.suffix == ".safetensors":
        return read_tensors(path)
    content = _read_pickle(path)
    for key in ("best_state", "model", "state_dict"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    return _tensors(content, path)


def read_export(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The weights and the configuration in a file that audiocraft exports: its entries ``best_state`` and ``xp.cfg``.

    The file is read as plain data, in which nothing can be called.

    Raises:
        PartitaError: The file is damaged, holds objects other than data, or is no such export.
    """
    content = _read_pickle(path)
    if not isinstance(content, dict) or not {"best_state", "xp.cfg"} <= content.keys():
        raise PartitaError(f"{path} is no export of audiocraft: it lacks best_state or xp.cfg")
    try:
        config = yaml.safe_load(str(content["xp.cfg"])[: LARGEST_CONFIG + 1])
    except (yaml.YAMLError, RecursionError):
        config = None
    if not isinstance(config, dict):
        raise PartitaError(f"{path} is damaged: its entry xp.cfg is no configuration")
    return _tensors(content["best_state"], path), _referred(config, config)


def _referred(value: Any, config: dict[str, Any]) -> Any:
    """A value of a configuration in which references such as ``${sample_rate}`` are replaced by what they name."""
    if isinstance(value, dict):
        return {key: _referred(inner, config) for key, inner in value.items()}
    if isinstance(value, list):
        return [_referred(inner, config) for inner in value]
    if isinstance(value, str) and (found := re.fullmatch(r"\$\{(\w+(?:\.\w+)*)\}", value)):
        named: Any = config
        for key in found[1].split("."):
            named = named.get(key) if isinstance(named, dict) else None
        return value if isinstance(named, dict | list) or named is None else named
    return value


def _read_pickle(path: Path) -> Any:
    """The content of a PyTorch file that holds only plain data."""
    try:
        with torch.serialization.safe_globals(_arrays()):
            # memory-mapped if the format allows: most of a training checkpoint is optimizer state
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:
        raise PartitaError(
            f"{path} cannot be read as weights: it is damaged, not a PyTorch file, or holds more than plain data "
            f"({type(error).__name__})"
        ) from None


def _tensors(content: Any, path: Path) -> dict[str, Tensor]:
    """Tensors by name, from a mapping of tensors or arrays."""
    if not isinstance(content, dict) or not all(_is_numeric(value) for value in content.values()):
        raise PartitaError(f"{path} does not hold the weights of a model: it should map names to tensors")
    return {str(name): torch.as_tensor(value) for name, value in content.items()}


def fold_weight_norm(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Fold weight normalization, stored under either naming of PyTorch, into plain weights.

    Raises:
        PartitaError: A weight has a direction, but no length or one that does not fit.
    """
    folded = {}
    for name, tensor in state.items():
        old = re.fullmatch(r"(.+\.)weight_(g|v)", name)
        new = re.fullmatch(r"(.+\.)parametrizations\.weight\.original(0|1)", name)
        if match := old or new:
            prefix, which = match.groups()
            if which in "v1":
                other = f"{prefix}weight_g" if old else f"{prefix}parametrizations.weight.original0"
                if other not in state:
                    raise PartitaError(f"these weights have {name} but no {other}: the file is incomplete")
                length = state[other]
                if length.shape != (*tensor.shape[:1], *[1] * (tensor.dim() - 1)):
                    raise PartitaError(
                        f"these weights have {name} {list(tensor.shape)}, but {other} {list(length.shape)}, which does "
                        "not fit: the file is damaged"
                    )
                folded[f"{prefix}weight"] = torch._weight_norm(tensor, length, 0)
        else:
            folded[name] = tensor
    return folded


def split_weight_norm(name: str, tensor: Tensor, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Divide a plain weight into length and direction if a module normalizes it; other tensors keep their names.

    A weight that cannot have such a length is returned as a direction alone.

    Args:
        name: Name of the tensor, such as ``encoder.0.weight``.
        tensor: Its values.
        own: The state of the module, with the names of PyTorch's parametrizations.
    """
    length, direction = (name.removesuffix("weight") + f"parametrizations.weight.original{i}" for i in range(2))
    if not name.endswith(".weight") or length not in own:
        return {name: tensor}
    shape = own[length].shape
    if tensor.dim() != len(shape) or not tensor.is_floating_point():
        return {direction: tensor}
    axes = [axis for axis, size in enumerate(shape) if size == 1]
    return {length: torch.linalg.vector_norm(tensor.float(), dim=axes, keepdim=True), direction: tensor}


def _is_numeric(value: Any) -> bool:
    return isinstance(value, Tensor) or (isinstance(value, np.ndarray) and value.dtype.kind in "fiub")


def _arrays() -> list[Any]:
    """The names that a pickle of numeric NumPy arrays and scalars refers to, for NumPy 1 and 2."""
    functions: list[Any] = [np.zeros(1).__reduce__()[0], np.float64(0).__reduce__()[0]]
    named = [
        (function, f"numpy.{core}.multiarray.{function.__name__}")
        for function in functions
        for core in ("core", "_core")
    ]
    return [*named, np.ndarray, np.dtype, *(type(np.dtype(kind)) for kind in "?bBhHiIlLefd")]
