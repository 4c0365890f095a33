"""Publishing a system on the Hugging Face Hub, in one commit."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import yaml

from ..errors import PartitaError
from ..storage.download import check_id
from ..storage.files import replacing_folder
from ..storage.hub_errors import as_messages
from ..storage.patience import patiently

OURS = ("tokenizers/", "conditioners/", "stages/", "samples/", "recipe.yaml", "evaluation.json")
"""What a push replaces: of these, files that are not pushed again are deleted."""


def push(
    run: str | Path,
    repo_id: str,
    *,
    private: bool = False,
    branch: str | None = None,
    tag: str | None = None,
    message: str | None = None,
    license: str | None = None,
    examples: int = 3,
    report: bool = False,
) -> str:
    """Publish a finished system in one commit: weights, recipe, model card, audio examples. All of it or nothing.

    Paths of this machine and names of its user are taken out of everything that is uploaded.

    Args:
        run: A run folder, or one that ``system.save`` wrote.
        repo_id: ``user/name``; made where there is no such repository.
        private: Make a new repository private; one that is there stays what it is.
        branch: To commit to; ``main`` where none is given, made from ``main`` where it is not there.
        tag: Name to give this version.
        message: Of the commit.
        license: Identifier on the Hub, such as ``apache-2.0`` or ``cc-by-nc-4.0``.
        examples: Clips to generate for the card.
        report: Upload the run's ``report.html`` too. It holds audio of test pieces, which others may have rights to.

    Returns:
        The address of the commit.

    Raises:
        PartitaError: The system is not finished, or the Hub cannot be reached or refuses.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, ModelCard

    from ..publishing.card import collect

    api = HfApi(library_name="partita")
    check_id(repo_id)
    for name in (branch, tag):
        if name is not None and not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)*", name, re.ASCII):
            raise PartitaError(f"a branch or tag is made of letters, digits and . - _ /, such as v1.0, not {name!r}")

    def check() -> None:
        api.whoami()
        if license is not None:
            ModelCard(f"---\n{yaml.safe_dump({'license': license})}---\n").validate()
        known = api.list_repo_refs(repo_id).tags if tag is not None and api.repo_exists(repo_id) else []
        if tag in [other.name for other in known]:
            raise PartitaError(f"{repo_id} has a tag {tag!r} already: choose another one")

    def publish() -> str:
        api.create_repo(repo_id, private=private or None, exist_ok=True)
        if branch is not None:
            api.create_branch(repo_id, branch=branch, exist_ok=True)
        old = api.list_repo_files(repo_id, revision=branch)
        stale = [name for name in old if name.startswith(OURS) and name not in files]
        added = [CommitOperationAdd(name, content) for name, content in files.items()]
        commit = api.create_commit(
            repo_id,
            [*added, *map(CommitOperationDelete, stale)],
            commit_message=message or "A system of Partita",
            revision=branch,
        )
        if tag is not None:
            api.create_tag(repo_id, tag=tag, revision=commit.oid)
        return str(commit.commit_url)

    with as_messages(repo_id, branch):
        patiently(check)  # before the minutes that follow
    files = collect(run, repo_id, license=license, examples=examples, report=report)
    with as_messages(repo_id, branch):
        return patiently(publish)


def write_out(files: dict[str, Path | bytes], folder: str | Path) -> None:
    """Put what :func:`push` would upload into a folder instead.

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
