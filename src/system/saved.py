"""Checks of untrusted saved systems before they are built and memory is allocated."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..core.part import Part
from ..core.registry import UnknownName, lookup
from ..core.schema import build
from ..errors import PartitaError
from ..limits import LARGEST_CONFIG, LARGEST_NUMBER, LARGEST_VOCABULARY, SPARE_BYTES, TooMuch, beyond
from ..recipe.plan import Plan, load_recipe
from ..recipe.recipe_files import read_yaml
from ..storage.saved_format import check_format
from ..storage.text_tokenizer import check_text_tokenizer
from ..storage.untrusted import DTYPES, own_file, read_header, read_json
from .assembly import INDEX, Assembly
from .outline import construct, outlining


def checked_plan(folder: Path, overrides: Sequence[str] = ()) -> Plan:
    """Return the plan of a saved system after checking its recipe, configurations and weights.

    Args:
        folder: Its folder.
        overrides: Changes to its recipe, ``key=value``.

    Raises:
        PartitaError: A file is refused, or weights are missing.
    """
    check_index(own_file(folder, INDEX))
    plan = load_recipe(folder / INDEX, overrides)
    outline = Assembly.outline(plan)
    if all((folder / name / "model.safetensors").is_file() for name in outline.parts):
        check_parts(outline, folder)
    else:
        outline.load_parts(folder)  # raises an error that names the missing weights
    return plan


def check_index(path: Path) -> None:
    """Check that the recipe of a saved system is complete and resolved.

    Raises:
        PartitaError: An incompatible version of Partita saved the recipe, or it has a base, presets, references, or
            numbers beyond the limits.
    """
    values = read_yaml(path)
    check_format(values.get("format"), path.parent)
    if "base" in values:
        raise PartitaError(f"{path}: base: the recipe of a saved system is complete; it cannot name another file")
    for where, value in _leaves(values, ()):
        key = ".".join(where)
        if where[-1:] == ("preset",):
            raise PartitaError(f"{path}: {key}: the recipe of a saved system is complete; it cannot name presets")
        if isinstance(value, str) and "${" in value:
            raise PartitaError(
                f"{path}: {key}: the recipe of a saved system is resolved; it cannot refer to other keys"
            )
        huge = isinstance(value, int | float) and beyond(abs(value), LARGEST_NUMBER)
        if huge and where[0] in ("tokenizers", "conditioners", "stages") and "fit" not in where:
            raise TooMuch(f"{path}: {key}: {value!r} is larger than any argument of a part: refused")


def check_parts(outline: Assembly, folder: Path) -> None:
    """Check that the weights in a folder fit the parts of a system, before memory is allocated for the parts.

    Args:
        outline: The system on the meta device, from :meth:`Assembly.outline`.
        folder: Folder of the saved system, with a subfolder for each part.

    Raises:
        PartitaError: Weights do not fit a part, or a part takes much more memory than its weights.
    """
    for name, part in outline.parts.items():
        _check_part(part, folder, name)


def check_saved_part(root: Path, name: str) -> None:
    """Check that the weights of a single saved part fit its configuration, before memory is allocated for the part.

    Args:
        root: Folder that contains the part; files of the part may not link to files outside it.
        name: Path of the part's folder in ``root``.

    Raises:
        PartitaError: The weights do not fit, or the folder does not contain a saved part.
    """
    config, folder = read_json(own_file(root, f"{name}/config.json", LARGEST_CONFIG)), root / name
    match config:
        case {"family": str(family), "name": str(kind), "arguments": dict(arguments)}:
            pass
        case _:
            raise PartitaError(f"{folder} is not a saved part: its config.json lacks the family, name or arguments")
    check_format(config.get("format"), folder)
    try:
        with outlining():
            part = construct(lambda: build(lookup(family, kind), arguments))
    except (ValueError, TypeError, ArithmeticError, RuntimeError, UnknownName) as error:
        raise PartitaError(f"{folder}: {str(error).splitlines()[0]}") from None
    _check_part(part, root, name)


def _check_part(part: Part, folder: Path, name: str) -> None:
    config = read_json(own_file(folder, f"{name}/config.json", LARGEST_CONFIG))
    check_format(config.get("format"), folder / name)
    held, expected = (config.get("family"), config.get("name")), (part.family, part.registered_name)
    if held != expected:
        raise PartitaError(
            f"{folder / name} contains the {held[0]!s:.80} {held[1]!r:.80}, but the recipe names the {part.family} "
            f"{part.registered_name!r}"
        )
    path = own_file(folder, f"{name}/model.safetensors")
    header = read_header(path)
    state = {
        key: torch.empty(shape, dtype=getattr(torch, DTYPES[dtype][1]), device="meta")
        for key, (dtype, shape) in header.items()
    }
    part.load_exported_state(state, path)
    size = sum(t.numel() * t.element_size() for t in (*part.parameters(), *part.buffers()))
    if beyond(size, 16 * path.stat().st_size + SPARE_BYTES):
        raise TooMuch(f"{folder}: {name} takes {size:,} bytes of memory, far more than its weights in {path}: refused")
    extra = folder / name / "tokenizer"
    if extra.is_dir():
        for file in sorted(extra.iterdir()):
            own_file(folder, str(file.relative_to(folder)), LARGEST_VOCABULARY)
        check_text_tokenizer(extra)


def _leaves(value: Any, at: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    items: Any = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else None
    if items is None:
        yield at, value
        return
    for key, inner in items:
        yield from _leaves(inner, (*at, str(key)))
