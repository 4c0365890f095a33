"""Saved pseudo-words: what textual inversion leaves, and what systems are loaded with."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..conditioners.base import Conditioner
from ..conditioners.pseudo_words import PseudoWords
from ..core.contracts import finite
from ..core.registry import did_you_mean
from ..errors import PartitaError
from ..limits import LARGEST_CONFIG
from ..storage.download import fetch
from ..storage.files import kind, replacing_folder
from ..storage.saved_format import check_format, numbered
from ..storage.tensor_file import read_tensors, write_tensors
from ..storage.untrusted import own_file, read_header, read_json
from .assembly import Assembly

WORD, VECTORS = "word.json", "word.safetensors"
"""Files of a saved pseudo-word: what it belongs to, and its vectors."""


def text_conditioner(system: Assembly) -> tuple[str, Any]:
    """The conditioner of a system that takes pseudo-words, with its name.

    Raises:
        PartitaError: The system has none.
    """
    reading = system.conditioners.items()
    found = [(name, one) for name, one in reading if isinstance(getattr(one, "pseudo_words", None), PseudoWords)]
    if not found:
        kinds = ", ".join(c.registered_name for c in system.conditioners.values()) or "nothing"
        raise PartitaError(f"pseudo-words are for prompts that lookup or t5 reads, and this system is given {kinds}")
    return found[0]


def save_word(folder: Path, name: str, vectors: Tensor, conditioner: Conditioner, facts: Mapping[str, Any]) -> None:
    """Write a pseudo-word into a folder, which is replaced whole or not at all.

    Args:
        folder: The folder.
        name: What the pseudo-word is called.
        vectors: Its vectors ``[n, dim]``.
        conditioner: The conditioner that reads it.
        facts: What else is known of it, as JSON.
    """
    belongs = {"word": name, "conditioner": conditioner.registered_name, "fingerprint": conditioner.fingerprint()}
    with replacing_folder(folder) as new:
        (new / WORD).write_text(json.dumps(numbered({**belongs, **facts}), indent=2) + "\n", encoding="utf-8")
        write_tensors({"vectors": vectors.detach().float().cpu().contiguous()}, new / VECTORS)


def holds_word(folder: Path) -> bool:
    """Whether a folder holds a pseudo-word."""
    return kind(folder / WORD) == "file"


def add_words(system: Assembly, sources: Sequence[str | Path]) -> None:
    """Make saved pseudo-words known to a system.

    Args:
        system: The system.
        sources: Their folders or hub ids.

    Raises:
        PartitaError: One does not exist, is damaged, is known already, or belongs to another system.
    """
    if isinstance(sources, str | Path) or not isinstance(sources, Sequence):
        raise PartitaError(f"words must be a list of folders or hub ids, not {sources!r:.200}")
    for source in sources:
        name, conditioner = text_conditioner(system)
        folder = _found(source)
        about = read_json(own_file(folder, WORD, LARGEST_CONFIG))
        check_format(about.get("format"), folder)
        word = about.get("word")
        if not isinstance(word, str) or not isinstance(about.get("fingerprint"), str):
            raise PartitaError(f"{folder / WORD} does not say which word it is and what reads it: copy it again")
        if about["fingerprint"] != conditioner.fingerprint():
            raise PartitaError(
                f"{source}: <{word:.80}> belongs to another {about.get('conditioner')!s:.40} than conditioners.{name} "
                "of this system: learn it with this system (partita invert)"
            )
        try:
            conditioner.pseudo_words.add(word, _vectors(own_file(folder, VECTORS), conditioner))
        except ValueError as error:
            raise PartitaError(f"{source}: {error}") from None


def _found(source: str | Path) -> Path:
    path = Path(source)
    if holds_word(path):
        return path
    if not kind(path) and len(Path(source).parts) == 2:
        return fetch(str(source), [WORD, VECTORS])
    beside = sorted(str(one.parent) for one in path.glob(f"*/{WORD}")) if kind(path) == "folder" else []
    raise PartitaError(f"{source} holds no pseudo-word: there is no {WORD}{did_you_mean(str(source), beside)}")


def _vectors(path: Path, conditioner: Any) -> Tensor:
    """The vectors ``[n, dim]`` in a file, after checking that they fit a conditioner."""
    dim = conditioner.word_vectors("music").shape[1]
    found = {name: list(shape) for name, (_, shape) in read_header(path).items()}
    match found:
        case {"vectors": [number, width]} if len(found) == 1 and number and width == dim:
            pass
        case _:
            raise PartitaError(f"{path} holds {found!s:.200} instead of vectors [n, {dim}]: download or learn it again")
    vectors = read_tensors(path)["vectors"]
    if not vectors.is_floating_point() or not finite(vectors.float()):
        raise PartitaError(f"{path} holds values that are no finite floating-point numbers: download or learn it again")
    return vectors.to(torch.float32)
