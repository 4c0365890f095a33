"""Publishing a system on the Hugging Face Hub, in one commit."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import yaml
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, ModelCard

from ..errors import PartitaError
from ..storage.download import check_id
from ..storage.files import replacing_folder
from ..storage.hub_errors import as_messages
from ..storage.patience import patiently
from .card import collect

OURS = ("tokenizers/", "conditioners/", "stages/", "samples/", "recipe.yaml", "evaluation.json")
"""Files that a push replaces: those that are not pushed again are deleted."""


@dataclass(frozen=True)
class Commit:
    """Where and how a system is published.

    Args:
        private: Make a new repository private. One that exists stays what it is.
        branch: Branch to commit to, created from ``main`` if it does not exist. ``None`` commits to ``main``.
        tag: Name to give this version, such as ``v1``. ``None`` sets no tag.
        message: Message of the commit. ``None`` takes a default message.

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
                    f"a branch or tag is made of letters, digits and . - _ /, such as v1.0, not {name!r}"
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
) -> str:
    """Publish a finished system in one commit: weights, recipe, model card, audio examples. Either everything or
    nothing is published.

    Paths of this machine and names of its user are taken out of everything that is uploaded.

    Args:
        run: A run folder, or one that ``system.save`` wrote.
        repo_id: ``user/name``; the repository is created if it does not exist.
        license: License of the weights, by its identifier on the Hub: ``apache-2.0``, ``cc-by-nc-4.0`` …
        examples: Number of clips to generate for the card.
        report: Upload the run's ``report.html`` too. It holds audio of test pieces, which others may have rights to.
        commit: Where and how it is published.

    Returns:
        The address of the commit.

    Raises:
        PartitaError: The system is not finished, or the Hub cannot be reached or refuses.
    """
    api = HfApi(library_name="partita")
    check_id(repo_id)

    def check() -> None:
        api.whoami()
        if license is not None:
            ModelCard(f"---\n{yaml.safe_dump({'license': license})}---\n").validate()
        known = api.list_repo_refs(repo_id).tags if commit.tag is not None and api.repo_exists(repo_id) else []
        if commit.tag in [other.name for other in known]:
            raise PartitaError(f"{repo_id} has a tag {commit.tag!r} already: choose another one")

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
    files = collect(run, repo_id, license=license, examples=examples, report=report)
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
) -> list[str]:
    """Write what :func:`push` would upload into a folder instead, and return the names of the files.

    Args:
        run: A run folder, or one that ``system.save`` wrote.
        repo_id: ``user/name``, which the model card names.
        folder: Folder to write; it must not exist.
        license: License of the weights, by its identifier on the Hub.
        examples: Number of clips to generate for the card.
        report: Whether the run's ``report.html`` would be uploaded.

    Raises:
        PartitaError: The folder exists, or the system is not finished.
    """
    check_id(repo_id)
    if Path(folder).exists():
        raise PartitaError(f"{folder} exists already: choose another folder")
    files = collect(run, repo_id, license=license, examples=examples, report=report)
    write_out(files, folder)
    return sorted(files)


def write_out(files: dict[str, Path | bytes], folder: str | Path) -> None:
    """Write the files that :func:`push` would upload to a folder instead.

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
