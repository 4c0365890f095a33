"""Publishing a system on the Hugging Face Hub, in one commit."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, ModelCard

from ..errors import PartitaError
from ..storage.download import check_id
from ..storage.files import replacing_folder
from ..storage.hub_errors import as_messages
from ..storage.patience import patiently
from ..system.adapters import holds_adapters
from ..system.saved_words import holds_word
from .adapter_card import collect_adapters
from .card import collect
from .word_card import collect_word

OURS = ("tokenizers/", "conditioners/", "stages/", "adapters/", "samples/", "recipe.yaml", "evaluation.json", "word.")
"""Prefixes of files that a push replaces; files of an earlier push that are not pushed again are deleted."""


@dataclass(frozen=True)
class Commit:
    """Options of the commit that publishes a system.

    Args:
        private: Whether to make a new repository private. An existing repository keeps its visibility.
        branch: Branch to commit to, which is created from ``main`` if it does not exist. ``None`` commits to ``main``.
        tag: Tag of this version, such as ``v1``. ``None`` sets no tag.
        message: Commit message. ``None`` takes a default message.

    Raises:
        PartitaError: The name of the branch or tag is invalid.
    """

    private: bool = False
    branch: str | None = None
    tag: str | None = None
    message: str | None = None

    def __post_init__(self) -> None:
        for name in (self.branch, self.tag):
            if name is not None and not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)*", name, re.ASCII):
                raise PartitaError(
                    f"a branch or tag consists of letters, digits and . - _ /, such as v1.0, not {name!r}"
                )


DEFAULT_COMMIT = Commit()


def push(
    run: str | Path,
    repo_id: str,
    *,
    license: str | None = None,
    examples: int = 3,
    report: bool = False,
    commit: Commit = DEFAULT_COMMIT,
    base: str | None = None,
) -> str:
    """Publish a trained system in one commit: weights, recipe, model card and audio examples.

    Of a run that trained adapters, the adapters alone are published, with a card that names their system. A
    pseudo-word (:func:`partita.invert`) is published by its folder.

    Paths of this machine and names of its user are removed from all uploaded files.

    Args:
        run: A run folder, or a folder that ``system.save`` wrote.
        repo_id: Hub id ``user/name``. The repository is created if it does not exist.
        license: License of the weights, by its identifier on the Hub, such as ``apache-2.0`` or ``cc-by-nc-4.0``.
        examples: Number of clips to generate for the model card.
        report: Whether to upload ``report.html``, which contains audio of test pieces that others may own.
        commit: Options of the commit.
        base: Hub id of the system that adapters belong to, if they were trained for a folder of this machine.

    Returns:
        The URL of the commit.

    Raises:
        PartitaError: The system is not fully trained, or the Hub cannot be reached or refuses the upload.
    """
    api = HfApi(library_name="partita")
    check_id(repo_id)

    def check() -> None:
        api.whoami()
        if license is not None:
            ModelCard(f"---\n{yaml.safe_dump({'license': license})}---\n").validate()
        known = api.list_repo_refs(repo_id).tags if commit.tag is not None and api.repo_exists(repo_id) else []
        if commit.tag in [other.name for other in known]:
            raise PartitaError(f"{repo_id} already has a tag {commit.tag!r}: choose another one")

    def publish() -> str:
        api.create_repo(repo_id, private=commit.private or None, exist_ok=True)
        if commit.branch is not None:
            api.create_branch(repo_id, branch=commit.branch, exist_ok=True)
        old = api.list_repo_files(repo_id, revision=commit.branch)
        stale = [name for name in old if name.startswith(OURS) and name not in files]
        added = [CommitOperationAdd(name, content) for name, content in files.items()]
        pushed = api.create_commit(
            repo_id,
            [*added, *map(CommitOperationDelete, stale)],
            commit_message=commit.message or "A system of Partita",
            revision=commit.branch,
        )
        if commit.tag is not None:
            api.create_tag(repo_id, tag=commit.tag, revision=pushed.oid)
        return str(pushed.commit_url)

    with as_messages(repo_id, commit.branch):
        patiently(check)  # before collecting files, which takes minutes
    files = _collected(run, repo_id, license=license, examples=examples, report=report, base=base)
    with as_messages(repo_id, commit.branch):
        return patiently(publish)


def preview_push(
    run: str | Path,
    repo_id: str,
    folder: str | Path,
    *,
    license: str | None = None,
    examples: int = 3,
    report: bool = False,
    base: str | None = None,
) -> list[str]:
    """Write the files that :func:`push` would upload to a folder, and return their names.

    Args:
        run: A run folder, or a folder that ``system.save`` wrote.
        repo_id: Hub id ``user/name``, which the model card names.
        folder: Folder to create, which must not exist.
        license: License of the weights, by its identifier on the Hub.
        examples: Number of clips to generate for the model card.
        report: Whether to include ``report.html``.
        base: Hub id of the system that adapters belong to, if they were trained for a folder of this machine.

    Raises:
        PartitaError: The folder exists, or the system is not fully trained.
    """
    check_id(repo_id)
    if Path(folder).exists():
        raise PartitaError(f"{folder} exists already: choose another folder")
    files = _collected(run, repo_id, license=license, examples=examples, report=report, base=base, preview=True)
    write_out(files, folder)
    return sorted(files)


def _collected(
    run: str | Path, repo_id: str, *, report: bool, base: str | None, preview: bool = False, **options: Any
) -> dict[str, Any]:
    """Return the files of a system, of the adapters of a run, or of a pseudo-word.

    Raises:
        PartitaError: A system has no base, and adapters have no report of their own.
    """
    if holds_adapters(Path(run)):
        if report:
            raise PartitaError("the report of adapters is not published: their card has clips with and without them")
        return collect_adapters(run, repo_id, base=base, preview=preview, **options)
    if holds_word(Path(run)):
        if report:
            raise PartitaError("a pseudo-word has no report: leave it out")
        options.pop("examples")
        return collect_word(run, repo_id, base=base, **options)
    if base is not None:
        raise PartitaError(f"{run} holds a system of its own, no adapters: remove --base")
    return collect(run, repo_id, report=report, **options)


def write_out(files: dict[str, Path | bytes], folder: str | Path) -> None:
    """Write the files that :func:`push` would upload to a folder.

    Raises:
        PartitaError: The folder exists.
    """
    if Path(folder).exists():
        raise PartitaError(f"{folder} exists already: choose another folder")
    with replacing_folder(Path(folder)) as new:
        for name, content in files.items():
            (new / name).parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, bytes):
                (new / name).write_bytes(content)
            else:
                shutil.copyfile(content, new / name)
