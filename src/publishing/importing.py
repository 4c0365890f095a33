"""Importing systems that other libraries published, as systems like any other."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ..core.logs import shared_logger
from ..core.registry import lookup, names
from ..errors import PartitaError
from ..limits import SPARE_BYTES, TooMuch, beyond
from ..recipe.compose import compose
from ..recipe.plan import check_recipe
from ..recipe.slots import SLOT_GROUPS
from ..storage.download import fetch
from ..storage.files import kind, replacing_folder
from ..storage.pretrained import read_config
from ..system.system import System
from .formats.base import PublishedSystem

log = shared_logger(__name__)

DATA = "corpus"
"""The data of an imported system until a recipe names other data: it needs no download."""


def import_system(source: str | Path, output: str | Path) -> Path:
    """Turn a published checkpoint of another library into a saved system.

    The result generates, is evaluated, trained further, compared and pushed like any other system. Nothing of the
    checkpoint is executed: tensors and figures are read as data.

    Args:
        source: A Hub id such as ``facebook/musicgen-small``, or a folder with the files of such a repository.
        output: Folder to create, which must not exist.

    Returns:
        Path of the new folder.

    Raises:
        PartitaError: The folder exists, the checkpoint is in no known format, needs code of its own, is incomplete or
            damaged, or does not fit the parts of this library. Differences are listed.
    """
    folder = Path(output)
    if folder.exists():
        raise PartitaError(f"{folder} exists already: choose another folder")
    formats = published_formats()
    checkpoint = _located(source, formats)
    config = read_config(checkpoint)
    _check_code(checkpoint, config, source)
    found = next((one for one in formats if one.detect(checkpoint, config)), None)
    if found is None:
        held = f"a model of type {config['model_type']!s:.60}" if "model_type" in config else "no known checkpoint"
        readable = "; ".join(one.reads for one in formats)
        raise PartitaError(f"{source} holds {held}, which cannot be imported. What can be: {readable}")
    recipe = found.recipe(checkpoint, config) | {"data": DATA, "imported": str(source)}
    _name_weights(recipe, source, folder)
    plan = check_recipe(compose(recipe))
    _check_size(System.outline(plan), checkpoint, source)
    system = System(plan, loading=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as room:
        sources = found.unpack(checkpoint, config, Path(room))
        with replacing_folder(folder) as new:
            system.save_index(new)
            for key, part in system.parts.items():
                if not part.weightless:
                    part.load_weights(sources[key])
                part.save(new / key)
                log.info(f"{key}: {part.num_parameters:,} parameters")
                part.to("meta")  # large systems fit part by part
    return folder


def published_formats() -> list[type[PublishedSystem]]:
    """The formats of systems that can be imported, sorted by name."""
    return [lookup("published", name) for name in names("published")]


def _located(source: str | Path, formats: list[type[PublishedSystem]]) -> Path:
    """The folder of a checkpoint, downloaded if it is on the Hub."""
    path = Path(source)
    if kind(path) == "folder":
        return path
    if kind(path) or not re.fullmatch(r"[\w.-]+/[\w.-]+", str(source)):
        raise PartitaError(f"{source!s:.200} is neither a folder nor a hub id (user/name)")
    return fetch(str(source), sorted({name for one in formats for name in one.files}))


def _check_code(folder: Path, config: Mapping[str, Any], source: str | Path) -> None:
    """Refuse a checkpoint that works only with code from its repository."""
    inner = [value for value in config.values() if isinstance(value, dict)]
    if any("auto_map" in one for one in (config, *inner)):
        raise PartitaError(
            f"{source} needs code from its own repository (auto_map in config.json), which is never run: it cannot be "
            "imported"
        )


def _check_size(outline: System, folder: Path, source: str | Path) -> None:
    """Refuse a configuration that asks for much more memory than the files of the checkpoint can fill."""
    needed = sum(t.numel() * t.element_size() for part in outline.parts.values() for t in part.state_dict().values())
    held = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
    if beyond(needed, 16 * held + SPARE_BYTES):
        raise TooMuch(
            f"{source}: its configuration describes parts of {needed:,} bytes, far more than its files hold, {held:,}: "
            "refused"
        )


def _name_weights(recipe: dict[str, Any], source: str | Path, folder: Path) -> None:
    """Record in a recipe that only stages are trained further, and where the weights are."""
    for group in SLOT_GROUPS:
        for name, slot in recipe[group].items():
            if not ("name" in slot and lookup(SLOT_GROUPS[group], slot["name"]).weightless):
                slot["weights"] = str(folder / group / name)
    for stage in recipe["stages"].values():
        stage["generator"]["init"] = str(source)
