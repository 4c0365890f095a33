"""Folders and files from strangers: what is checked before anything in them is believed.

Nothing of a system is code, so nothing can be executed. What is left to a hostile file is to be huge, to claim to be
huge, to make something huge, or to point elsewhere. Every check here costs memory in proportion to what it refuses.
"""

from __future__ import annotations

import json
import math
import re
import stat
import struct
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import PartitaError

if TYPE_CHECKING:
    from .part import Part
    from .recipe import Plan
    from .system import System

LARGEST_CONFIG = 1_000_000
LARGEST_VOCABULARY = 64_000_000
"""Bytes of a file of a text tokenizer; that of mT5 has 17 million."""

LARGEST_HEADER = 10_000_000
"""Bytes of a safetensors header; that of a model of 1,500 tensors has 0.2 million."""

LARGEST_NUMBER = 10_000_000
"""In the arguments of a part: no width, length or count is anywhere near."""

MOST_VALUES = 100_000
"""Of a recipe, aliases written out."""

LARGEST_RESOLVED = 10_000_000
"""Characters of a recipe, references resolved."""

DEEPEST = 100
"""Levels of a recipe."""

SPARE_BYTES = 1 << 30
"""What a part may hold beyond its saved weights: discriminators, buffers that are not saved."""

_ITEM_BITS = {"BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16}
_ITEM_BITS |= {"I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64, "C64": 64}


def own_file(folder: Path, name: str, largest: int | None = None) -> Path:
    """The path of a file of a folder: a regular one, within it, of at most ``largest`` bytes.

    Links are followed as long as they stay inside. In a snapshot of the Hub's cache they lead to its ``blobs``.

    Raises:
        PartitaError: It is not; the message says what it is.
    """
    path = folder / name
    try:
        resolved = path.resolve(strict=True)
        status = resolved.stat()
    except (OSError, RuntimeError) as error:
        raise PartitaError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    inside = [folder.resolve()]
    if folder.parent.name == "snapshots":
        inside.append(folder.parent.parent.resolve() / "blobs")
    if not any(resolved.is_relative_to(place) for place in inside):
        raise PartitaError(f"{path} leads out of its folder, to {resolved}: refused; put the file itself there")
    if not stat.S_ISREG(status.st_mode):
        raise PartitaError(f"{path} is not a regular file: refused")
    if largest is not None and status.st_size > largest:
        raise PartitaError(
            f"{path} has {status.st_size:,} bytes, more than such a file can have ({largest:,}): refused"
        )
    return path


def read_json(path: Path, largest: int = LARGEST_CONFIG) -> dict[str, Any]:
    """A JSON mapping.

    Raises:
        PartitaError: It is none, or larger than ``largest`` bytes, or nested without end.
    """
    try:
        with path.open("rb") as file:
            content = file.read(largest + 1)
    except OSError as error:
        raise PartitaError(f"{path} cannot be read: {error.strerror}") from None
    if len(content) > largest:
        raise PartitaError(f"{path} is larger than such a file can be ({largest:,} bytes): refused")
    return _mapping(content, path)


def read_header(path: Path) -> dict[str, tuple[str, list[int]]]:
    """Names, types and shapes of the tensors in a safetensors file, which must be exactly as large as they need.

    Raises:
        PartitaError: The file is damaged, or claims what it does not hold.
    """
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            start = file.read(8)
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
            if length > min(LARGEST_HEADER, size - 8):
                raise PartitaError(f"{path} is no safetensors file: its header claims {length:,} bytes of {size:,}")
            entries = _mapping(file.read(length), path)
    except OSError as error:
        raise PartitaError(f"{path} cannot be read: {error.strerror}") from None
    entries.pop("__metadata__", None)
    tensors, spans = {}, []
    for name, entry in entries.items():
        match entry:
            case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [int(begin), int(end)]} if (
                dtype in _ITEM_BITS and all(type(n) is int and 0 <= n < 1 << 48 for n in shape)
            ):
                fits = (end - begin) * 8 == math.prod(shape) * _ITEM_BITS[dtype]
            case _:
                fits = False
        if not fits:
            raise PartitaError(f"{path} is damaged: its header does not describe {name[:80]!r} properly")
        tensors[name] = (dtype, shape)
        spans.append((begin, end))
    reached = 0
    for begin, end in sorted(spans):
        if begin != reached:
            raise PartitaError(f"{path} is damaged: its tensors overlap, or leave gaps")
        reached = end
    if reached != size - 8 - length:
        raise PartitaError(f"{path} is damaged: its header describes {reached:,} bytes, it holds {size - 8 - length:,}")
    return tensors


def read_tensors(path: Path) -> dict[str, Any]:
    """The tensors of a safetensors file, after :func:`read_header`.

    Raises:
        PartitaError: It is damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    read_header(path)
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise PartitaError(f"{path} is damaged or no safetensors file: {error}") from None


def checked_plan(folder: Path) -> Plan:
    """The plan of a saved system, once everything in its folder is checked that is going to be believed.

    Raises:
        PartitaError: Something is refused, or weights are missing.
    """
    from .recipe import load_recipe
    from .system import INDEX, System

    check_index(own_file(folder, INDEX))
    plan = load_recipe(folder / INDEX)
    groups = (("tokenizers", plan.tokenizers), ("conditioners", plan.conditioners), ("stages", plan.stages))
    with few_modules(folder, [f"{group}/{name}" for group, parts in groups for name in parts]):
        outline = System.outline(plan)
    if all((folder / name / "model.safetensors").is_file() for name in outline.parts):
        check_parts(outline, folder)
    else:
        outline.load_parts(folder)  # says which are missing
    return plan


def check_index(path: Path) -> None:
    """See that the recipe of a saved system is the whole, resolved one that was saved.

    Raises:
        PartitaError: It has a base, presets or references, or numbers beyond all measure.
    """
    from .recipe_files import read_yaml

    values = read_yaml(path)
    if "base" in values:
        raise PartitaError(f"{path}: base: the recipe of a saved system is whole; it cannot name another file")
    for where, value in _leaves(values, ()):
        key = ".".join(where)
        if where[-1:] == ("preset",):
            raise PartitaError(f"{path}: {key}: the recipe of a saved system is whole; it cannot name presets")
        if isinstance(value, str) and "${" in value:
            raise PartitaError(f"{path}: {key}: the recipe of a saved system is resolved; it cannot refer to keys")
        huge = isinstance(value, int | float) and not abs(value) <= LARGEST_NUMBER  # NaN is not either
        if huge and where[0] in ("tokenizers", "conditioners", "stages") and "fit" not in where:
            raise PartitaError(f"{path}: {key}: {value!r} is more than any part can be built with: refused")


def check_parts(outline: System, folder: Path) -> None:
    """See that what is going to be built is what the folder has weights for, before any memory is taken for it.

    Args:
        outline: The system without memory, as :meth:`System.outline` makes it.
        folder: Of the saved system; every part has its sub-folder there.

    Raises:
        PartitaError: Weights do not fit, or parts are larger than their weights.
    """
    for name, part in outline.parts.items():
        _check_part(part, folder, name)


@contextmanager
def few_modules(folder: Path, parts: Iterable[str]) -> Iterator[None]:
    """While this lasts, no more modules are built than the weights of these parts, sub-folders of it, can be for.

    Raises:
        PartitaError: More are.
    """
    from torch.nn.modules import module

    weights = [f"{part}/model.safetensors" for part in parts]
    tensors = sum(len(read_header(own_file(folder, file))) for file in weights if (folder / file).exists())
    most, built = 5_000 + 20 * tensors, 0

    def count(*registered: Any) -> None:
        nonlocal built
        built += 1
        if built > most:
            raise PartitaError(f"{folder}: its recipe builds far more layers than there are weights for: refused")

    hooks = [
        module.register_module_module_registration_hook(count),
        module.register_module_parameter_registration_hook(count),
        module.register_module_buffer_registration_hook(count),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def check_yaml(text: str, path: Path) -> None:
    """See that a YAML text is neither nested without end, which breaks its reader, nor multiplied by aliases.

    Raises:
        PartitaError: It is.
        yaml.YAMLError: It is no YAML.
    """
    import yaml

    sizes: dict[str, int] = {}
    around: list[tuple[str | None, int]] = [(None, 0)]  # the anchor of each collection begun, and its values so far
    for event in yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
        added = 0
        if isinstance(event, yaml.CollectionStartEvent):
            around.append((event.anchor, 1))
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, added = around.pop()
            if anchor is not None:
                sizes[anchor] = added
        elif isinstance(event, yaml.ScalarEvent):
            added = 1
            if event.anchor is not None:
                sizes[event.anchor] = 1
        elif isinstance(event, yaml.AliasEvent):
            if event.anchor in [anchor for anchor, _ in around]:
                raise PartitaError(f"{path}: a value contains itself: refused")
            added = sizes.get(event.anchor, 0)
        around[-1] = (around[-1][0], around[-1][1] + added)
        if around[-1][1] > MOST_VALUES:
            raise PartitaError(f"{path} expands to more than {MOST_VALUES:,} values, which no recipe has: refused")
        if len(around) > DEEPEST:
            raise PartitaError(f"{path} is nested more than {DEEPEST} deep, far more than a recipe is: refused")


def check_references(values: Mapping[str, Any]) -> str:
    """What is wrong with the ``${key}`` in a recipe, if they multiply it beyond all measure; empty where they do not.

    Args:
        values: Plain ones, no reference resolved.
    """
    sizes: dict[tuple[str, ...], int] = {}
    nested = False

    def size(path: tuple[str, ...], value: Any) -> int:
        nonlocal nested
        if path not in sizes:
            sizes[path] = 0  # of what refers to itself, which is complained about elsewhere
            if isinstance(value, Mapping | list):
                items = value.items() if isinstance(value, Mapping) else enumerate(value)
                sizes[path] = 1 + sum(size((*path, str(key)), inner) for key, inner in items)
            else:
                text = str(value)
                nested = nested or re.search(r"\$\{[^}]*\$\{", text) is not None
                targets = re.findall(r"\$\{([^${}]*)\}", text)
                sizes[path] = 1 + len(text) + sum(size(*_target(values, path, target)) for target in targets)
        return sizes[path]

    whole = size((), values)
    if nested:
        return "a reference cannot refer to another by its name: write the key itself"
    if whole > LARGEST_RESOLVED:
        return f"references multiply it to more than {LARGEST_RESOLVED:,} characters: refused"
    return ""


def check_name(name: str, source: str) -> None:
    """See that a file name of a repository is harmless.

    Raises:
        PartitaError: It leads elsewhere, or holds control characters.
    """
    if not name.isprintable() or "\\" in name or name.startswith(("/", "~")) or re.search(r"(^|/)\.{0,2}(/|$)", name):
        raise PartitaError(f"{source} holds a file with the name {name[:80]!r}: refused")


def _check_part(part: Part, folder: Path, name: str) -> None:
    import torch

    config = read_json(own_file(folder, f"{name}/config.json", LARGEST_CONFIG))
    if (config.get("family"), config.get("name")) != (part.family, part.registered_name):
        raise PartitaError(
            f"{folder / name} holds a {config.get('name')!r:.80}, but the recipe says {part.registered_name!r}"
        )
    path = own_file(folder, f"{name}/model.safetensors")
    header = read_header(path)
    part.load_exported_state({key: torch.empty(shape, device="meta") for key, (_, shape) in header.items()}, path)
    whole = sum(t.numel() * t.element_size() for t in (*part.parameters(), *part.buffers()))
    if whole > 16 * path.stat().st_size + SPARE_BYTES:
        raise PartitaError(f"{folder}: {name} takes {whole:,} bytes, far more than its weights in {path}: refused")
    extra = folder / name / "tokenizer"
    for file in sorted(extra.iterdir()) if extra.is_dir() else ():
        own_file(folder, str(file.relative_to(folder)), LARGEST_VOCABULARY)
        if file.suffix == ".json":
            _check_vocabulary(file)


def _check_vocabulary(path: Path) -> None:
    """A text tokenizer of transformers can name code to run and files to read."""
    content = read_json(path, LARGEST_VOCABULARY)
    if path.name == "tokenizer_config.json":
        for key, value in content.items():
            if key == "auto_map" or (key.endswith("_file") and value is not None):
                raise PartitaError(f"{path}: {key} names code, or a file elsewhere: refused")


def _mapping(content: bytes, path: Path) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            raise ValueError("a key stands there twice")
        return found

    try:
        found = json.loads(content, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise PartitaError(f"{path} is not valid JSON: {str(error)[:200]}") from None
    if not isinstance(found, dict):
        raise PartitaError(f"{path} is not a JSON mapping")
    return found


def _target(values: Any, path: tuple[str, ...], reference: str) -> tuple[tuple[str, ...], Any]:
    """Where ``${reference}`` in the value at ``path`` leads, and what is there."""
    key = reference.strip()
    name = key.lstrip(".")
    up = len(key) - len(name)
    steps = path[: max(0, len(path) - up)] if up else ()
    steps += tuple(step for step in re.split(r"[.\[\]]+", name) if step)
    for step in steps:
        try:
            values = values[int(step)] if isinstance(values, list) else values[step]
        except (KeyError, IndexError, ValueError, TypeError):
            return (*steps, ""), ""  # complained about elsewhere
    return steps, values


def _leaves(value: Any, at: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    items: Any = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else None
    if items is None:
        yield at, value
        return
    for key, inner in items:
        yield from _leaves(inner, (*at, str(key)))
