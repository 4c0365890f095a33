"""The files of a published pseudo-word, with a card that says how prompts have it."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import yaml

from ..limits import LARGEST_CONFIG
from ..storage.untrusted import own_file, read_header, read_json
from ..system.saved_words import VECTORS, WORD
from .card import one_line
from .private import Owner, publishable


def collect_word(
    folder: str | Path, repo_id: str, *, base: str | None = None, license: str | None = None
) -> dict[str, Path | bytes]:
    """Return all files of a pseudo-word that are published, by their path in the repository.

    Args:
        folder: The folder that :func:`partita.invert` wrote.
        repo_id: Hub id ``user/name``, which the card names.
        base: Hub id of the system that it belongs to, which the card then names.
        license: Identifier of the license on the Hub.
    """
    root = Path(folder)
    about = read_json(own_file(root, WORD, LARGEST_CONFIG))
    vectors = own_file(root, VECTORS).resolve()
    metadata: dict[str, Any] = {} if license is None else {"license": license}
    metadata |= {} if base is None else {"base_model": base}
    metadata |= {"library_name": "partita", "tags": ["partita", "music", "music-generation", "textual-inversion"]}
    losses = about.get("losses")
    values = {
        "metadata": yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True),
        "title": repo_id.split("/")[-1],
        "repo_id": repo_id,
        "base": base,
        "word": about["word"],
        "count": next(iter(read_header(vectors).values()))[1][0],
        "losses": [(one_line(str(p)), f"{v:.4f}") for p, v in losses.items()] if isinstance(losses, dict) else [],
        "start": one_line(str(about.get("learned_from", ""))),
        "steps": about.get("steps", ""),
    }
    text = (files(__package__) / "word_card.md").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    found: dict[str, Path | bytes] = {WORD: own_file(root, WORD).resolve(), VECTORS: vectors}
    found["README.md"] = environment.from_string(text).render(values).encode()
    return publishable(found, Owner.here(root, {}, repo_id))
