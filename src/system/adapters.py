"""Saved adapters: what a training with adapters leaves, and what systems are loaded with."""

from __future__ import annotations

import json
import math
import os
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..core.contracts import finite
from ..core.schema import build
from ..errors import PartitaError
from ..generators.adapters.base import (
    PREFIX,
    TRAINED,
    Adapter,
    Weighted,
    adapter_state,
    check_installed,
    linear_layers,
    merge,
)
from ..generators.adapters.lora import DoRA, LoRA
from ..generators.base import Generator
from ..limits import LARGEST_CONFIG
from ..storage.download import fetch
from ..storage.files import kind, replacing_folder
from ..storage.saved_format import ADAPTERS, FILES, check_format, numbered
from ..storage.tensor_file import read_tensors, write_tensors
from ..storage.untrusted import own_file, read_header, read_json
from .assembly import Assembly

BASE, CONFIG, TENSORS = "base.json", "adapter_config.json", "adapter_model.safetensors"
"""Files of a saved adapter: the system that it belongs to, and the two files in the format of peft."""

_READ = {"peft_type", "r", "lora_alpha", "lora_dropout", "use_dora", "target_modules", "inference_mode"}
_READ |= {"base_model_name_or_path", "revision", "task_type", "peft_version"}
"""Keys of peft's configuration that are read, or that the tensors do not depend on. Others must have their defaults."""


class SavedAdapter(NamedTuple):
    """A saved adapter of a stage.

    Attributes:
        folder: Its folder.
        base: The system that it belongs to: a hub id, or a path.
        stage: Name of the stage.
        fingerprint: Fingerprint of the weights of the stage.
        adapter: The adapter.
    """

    folder: Path
    base: str
    stage: str
    fingerprint: str
    adapter: Adapter

    @property
    def num_parameters(self) -> int:
        """Number of parameters of the adapter."""
        return sum(math.prod(shape) for _, shape in read_header(self.folder / TENSORS).values())


def save_adapter(stage: Generator, adapter: Adapter, folder: Path, base: Mapping[str, Any]) -> None:
    """Write the adapter that is attached to a stage into a folder, replacing it whole or not at all.

    Args:
        stage: The stage, with the adapter attached.
        adapter: The adapter.
        folder: The folder.
        base: What it belongs to: ``base``, ``stage`` and ``fingerprint`` of :class:`SavedAdapter`.
    """
    config: dict[str, Any] = stage.peft_config[TRAINED].to_dict()  # type: ignore[index, union-attr]
    state = adapter_state(stage)
    # peft shortens many names to endings, which other layers can have in the stage as it is loaded
    config |= {"target_modules": _changed_layers(state)}
    config |= {"base_model_name_or_path": base["base"], "inference_mode": True}
    plain = {name: sorted(value) if isinstance(value, set) else value for name, value in config.items()}
    with replacing_folder(folder) as new:
        write_tensors(state, new / TENSORS)
        for name, content in ((CONFIG, plain), (BASE, numbered(dict(base)))):
            (new / name).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def holds_adapters(folder: Path) -> bool:
    """Whether a folder is that of a training with adapters, or of a repository with them."""
    return kind(folder / ADAPTERS) == "folder"


def read_adapters(source: str | Path, revision: str | None = None) -> list[SavedAdapter]:
    """Read the adapters of a run or of a repository on the Hub, without their tensors.

    Args:
        source: A run folder, or a hub id.
        revision: Branch, tag or commit of a hub id.

    Raises:
        PartitaError: There are none, or a file is damaged or not in this format.
    """
    check_installed()
    path = Path(source)
    if not kind(path) and re.fullmatch(r"[\w.-]+/[\w.-]+", str(source)):
        path = fetch(str(source), FILES, revision)
    names = sorted(found.name for found in (path / ADAPTERS).iterdir()) if holds_adapters(path) else []
    names = [name for name in names if not name.startswith(".")]
    if not names:
        raise PartitaError(
            f"{source!s:.200} holds no finished adapter: name the folder of a run that trained one, or a hub id"
        )
    return [_read(path, f"{ADAPTERS}/{name}") for name in names]


def base_of(source: str | Path) -> str:
    """The system that the adapters of a run or a repository belong to.

    Raises:
        PartitaError: They belong to several.
    """
    bases = list(dict.fromkeys(one.base for one in read_adapters(source)))
    if len(bases) > 1:
        raise PartitaError(f"{source} holds adapters of several systems: {', '.join(bases)}")
    return bases[0]


def apply_adapters(system: Assembly, adapters: Mapping[str | Path, float]) -> None:
    """Add the changes of saved adapters to the weights of the stages of a system.

    Args:
        system: The system that they were trained for.
        adapters: How much of each is added, by its run folder or hub id: 1 is all of it, 0 nothing.

    Raises:
        PartitaError: An adapter belongs to another system, or cannot be read.
    """
    chosen: dict[str, list[Weighted]] = {}
    fingerprints: dict[str, str] = {}
    for source, weight in adapters.items():
        number = isinstance(weight, int | float) and not isinstance(weight, bool)
        if not number or not abs(weight) <= sys.float_info.max:
            raise PartitaError(
                f"the weight of the adapter {source} must be a number, such as 1 or 0.7, not {weight!r:.80}"
            )
        for saved in read_adapters(source):
            stage = system.stages.get(saved.stage)
            if stage is not None and saved.stage not in fingerprints:
                fingerprints[saved.stage] = stage.weights_fingerprint()
            if stage is None or fingerprints[saved.stage] != saved.fingerprint:
                why = "has no such stage" if stage is None else "has other weights there"
                raise PartitaError(
                    f"the adapter {source} was trained for the stage {saved.stage} of {saved.base:.200}, and this "
                    f"system {why}: load {saved.base:.200} as it was then, or train the adapter for this system"
                )
            chosen.setdefault(saved.stage, []).append(Weighted(saved.adapter, _tensors(saved, stage), float(weight)))
    for name, several in chosen.items():
        merge(system.stages[name], several)
        if not all(map(finite, system.stages[name].parameters())):
            raise PartitaError(
                f"the stage {name} has weights that are not finite numbers with the adapters "
                f"{', '.join(map(str, adapters)):.200}: multiply them by less, or train or download them again"
            )


def _read(root: Path, name: str) -> SavedAdapter:
    folder = root / name
    if not (folder / TENSORS).exists() and (folder / "adapter_model.bin").exists():
        raise PartitaError(f"{folder} holds a pickled adapter, which can execute code: refused; {TENSORS} is read")
    if missing := [file for file in (BASE, CONFIG, TENSORS) if not os.path.lexists(folder / file)]:
        raise PartitaError(f"{folder!s:.400} lacks {', '.join(missing)}: copy or download the adapter again")
    base = read_json(own_file(root, f"{name}/{BASE}", LARGEST_CONFIG))
    check_format(base.get("format"), folder)
    config = read_json(own_file(root, f"{name}/{CONFIG}", LARGEST_CONFIG))
    own_file(root, f"{name}/{TENSORS}")
    if not all(isinstance(base.get(key), str) for key in ("base", "stage", "fingerprint")):
        raise PartitaError(f"{folder / BASE} does not say which system the adapter belongs to")
    if base["stage"] != folder.name:
        raise PartitaError(
            f"{folder / BASE} names the stage {base['stage']!r:.80}, and the folder {folder.name!r:.80}: "
            "the two must be equal; copy the adapter again from its run"
        )
    return SavedAdapter(folder, base["base"], base["stage"], base["fingerprint"], _adapter(config, folder))


def _adapter(config: Mapping[str, Any], folder: Path) -> Adapter:
    """The adapter of a configuration of peft.

    Raises:
        PartitaError: It is of another kind, or has options that Partita does not read.
    """
    if config.get("peft_type") != "LORA":
        kind_of = f"{config.get('peft_type')!r:.80}"
        raise PartitaError(f"{folder / CONFIG} describes an adapter of the kind {kind_of}: LORA is read (also DoRA)")
    if foreign := [name for name, value in config.items() if name not in _READ and value not in _defaults(name)]:
        named = " ".join(", ".join(foreign).split())[:200]  # on one line
        raise PartitaError(f"{folder / CONFIG} sets {named}, which is not read here: train the adapter without it")
    if not (names := read_header(folder / TENSORS)):
        raise PartitaError(f"{folder / TENSORS} holds no tensors: train or download it again")
    layers = _changed_layers(names)
    values = {"rank": config.get("r"), "alpha": config.get("lora_alpha"), "layers": layers}
    try:
        made: Adapter = build(DoRA if config.get("use_dora") else LoRA, values)
    except ValueError as error:
        raise PartitaError(f"{folder / CONFIG}: {error!s:.400}") from None
    return made


def _changed_layers(names: Iterable[str]) -> list[str]:
    """The layers that tensors of these names in a file change."""
    return sorted({name.removeprefix(PREFIX).partition(".lora_")[0] for name in names})


def _defaults(name: str) -> tuple[Any, ...]:
    """The values of an option of peft that change nothing."""
    if name == "init_lora_weights":  # others, such as pissa, start from changed weights of the system
        return (True, False, "gaussian")
    from peft import LoraConfig

    default = LoraConfig().to_dict().get(name)
    return (default, None, False, [], {}, "none") if not default else (default,)


def _tensors(saved: SavedAdapter, stage: Generator) -> dict[str, Tensor]:
    """The tensors of an adapter, after checking that they fit the stage.

    Raises:
        PartitaError: They do not fit, or hold values that are not finite numbers.
    """
    path = saved.folder / TENSORS
    linear, arguments = linear_layers(stage), saved.adapter.arguments
    rank, expected = arguments["rank"], dict[str, list[int]]()
    for name in arguments["layers"]:
        if name not in linear:
            raise PartitaError(f"{path} changes {name!r:.80}, which is no linear layer of the stage {saved.stage}")
        outputs, inputs = linear[name].weight.shape
        expected |= {f"{PREFIX}{name}.lora_A.weight": [rank, inputs], f"{PREFIX}{name}.lora_B.weight": [outputs, rank]}
        if isinstance(saved.adapter, DoRA):
            expected[f"{PREFIX}{name}.lora_magnitude_vector"] = [outputs]
    found = {name: shape for name, (_, shape) in read_header(path).items()}
    if wrong := sorted(name for name in expected | found if expected.get(name) != found.get(name)):
        is_now, should_be = found.get(wrong[0], "missing"), expected.get(wrong[0], "absent")
        example = f"{wrong[0]:.120} is {is_now!s:.80} instead of {should_be!s:.80}"
        raise PartitaError(f"{path} does not fit the stage {saved.stage}: {len(wrong)} tensors differ; {example}")
    tensors = read_tensors(path)
    state = {name: tensor.to(torch.float32) for name, tensor in tensors.items() if tensor.is_floating_point()}
    if len(state) < len(tensors) or not all(map(finite, state.values())):
        raise PartitaError(f"{path} holds values that are no finite floating-point numbers: train or download it again")
    return state
