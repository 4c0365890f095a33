"""The Hugging Face Hub: fetching folders and publishing systems, with errors that say what to do."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import yaml

from .errors import PartitaError
from .files import replacing_folder
from .hub_cache import cache_folder, check_copies
from .hub_errors import as_messages
from .limits import (
    LARGEST_CONFIG,
    LARGEST_RESULTS,
    LARGEST_VOCABULARY,
    MOST_FETCHED,
    MOST_LISTED,
    TooMuch,
    beyond,
)
from .patience import Silent, patiently
from .untrusted import check_name

SHOWN = ("README.md", "samples/*.flac", "samples/*.png")
"""What of a system's repository is only there to be looked at."""

OURS = ("tokenizers/", "conditioners/", "stages/", "samples/", "recipe.yaml", "evaluation.json")
"""What a push replaces: of these, files that are not pushed again are deleted."""

_LARGEST = {".yaml": LARGEST_CONFIG, ".json": LARGEST_VOCABULARY, ".model": LARGEST_VOCABULARY, ".md": LARGEST_CONFIG}


def fetch(repo_id: str, patterns: Sequence[str], revision: str | None = None) -> Path:
    """The local folder of a repository's files that match ``patterns``; downloaded unless they are in the cache.

    What the repository lists is checked before anything is downloaded: how many files, their names and sizes.

    Args:
        repo_id: ``user/name``.
        patterns: As of ``fnmatch``; ``*`` matches slashes too.
        revision: A branch, a tag or a commit; ``main`` where none is given.

    Raises:
        PartitaError: No such repository or revision, no access, files that are refused, a Hub that is out of reach,
            busy or silent and nothing in the cache, or something else in the cache than the Hub has.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, RevisionNotFoundError

    download = partial(snapshot_download, repo_id, revision=revision, allow_patterns=list(patterns))
    with as_messages(repo_id, revision, ", and it is neither a folder here nor in the local cache"):
        try:
            commit, sizes = patiently(lambda: _check_listing(repo_id, patterns, revision))
        except Exception as error:
            answered = isinstance(error, PartitaError | HFValidationError | RevisionNotFoundError)
            if answered and not isinstance(error, Silent):
                raise
            try:  # out of reach, but what was fetched before is still here
                kept = Path(download(local_files_only=True))
            except Exception:
                raise error from None
            check_copies(kept, _files(kept, patterns))
            return kept
        before = {path.name for path in (cache_folder(repo_id) / "blobs").glob("*")}
        folder = Path(patiently(download, LARGEST_RESULTS + 2 * sum(sizes.values())))
        if folder.name != commit:
            raise PartitaError(f"{repo_id} changed while it was downloaded: run the same command again")
        check_copies(folder, list(sizes), sizes, before)
        return folder


def pull(repo_id: str, output: str | Path | None = None, revision: str | None = None) -> Path:
    """Copy a system from the Hub into a folder of one's own, with its model card and audio examples.

    Args:
        repo_id: ``user/name``.
        output: The folder; the repository's name in the working folder where none is given. It must not exist.
        revision: A branch, a tag or a commit.

    Returns:
        The folder.

    Raises:
        PartitaError: It exists, the repository cannot be had, or it holds no complete system.
    """
    from .system import FILES, load

    check_id(repo_id)
    folder = Path(repo_id.split("/")[-1] if output is None else output)
    if folder.exists():
        raise PartitaError(f"{folder} exists already: choose another folder with -o")
    wanted = [*FILES, *SHOWN]
    snapshot = fetch(repo_id, wanted, revision)
    load(snapshot)  # which checks it
    names = _files(snapshot, wanted)
    with replacing_folder(folder) as new:
        for name in names:
            (new / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(snapshot / name, new / name)
    return folder


def check_id(repo_id: str) -> None:
    """See that it is ``user/name``, with letters that the Hub takes.

    Raises:
        PartitaError: It is not.
    """
    from huggingface_hub.utils import validate_repo_id

    if repo_id.count("/") != 1:
        raise PartitaError(f"{repo_id!r} is not a hub id: expected user/name")
    with as_messages(repo_id, None):
        validate_repo_id(repo_id)


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

    from .card import collect

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


def _check_listing(repo_id: str, patterns: Sequence[str], revision: str | None) -> tuple[str, dict[str, int]]:
    """The commit that ``revision`` is, and the sizes of its files that are wanted, after a look at all of them."""
    from huggingface_hub import HfApi
    from huggingface_hub.constants import HF_HUB_CACHE

    api = HfApi(library_name="partita")
    commit = str(api.model_info(repo_id, revision=revision, expand=["sha"]).sha)
    sizes = {}
    for number, entry in enumerate(api.list_repo_tree(repo_id, recursive=True, revision=commit)):
        if beyond(number + 1, MOST_LISTED):
            raise TooMuch(f"{repo_id} holds more than {MOST_LISTED:,} files, far more than a system has: refused")
        check_name(entry.path, repo_id)
        if hasattr(entry, "size"):
            sizes[entry.path] = entry.size
    wanted = _matching(list(sizes), patterns)
    if not wanted:
        raise PartitaError(f"{repo_id} holds nothing for Partita: none of its files is {' or '.join(patterns)}")
    if beyond(len(wanted), MOST_FETCHED):
        raise TooMuch(f"{repo_id} holds {len(wanted):,} files to download, far more than a system has: refused")
    for name in wanted:
        if beyond(sizes[name], _LARGEST.get(Path(name).suffix, sizes[name])):
            raise TooMuch(f"{repo_id}: {name} has {sizes[name]:,} bytes, more than such a file can have: refused")
    place = next(p for p in (Path(HF_HUB_CACHE), *Path(HF_HUB_CACHE).absolute().parents) if p.exists())
    total, free = sum(sizes[name] for name in wanted), shutil.disk_usage(place).free
    if total > free:
        raise PartitaError(f"{repo_id} is {total:,} bytes to download, and {place} has {free:,} free: make room")
    return commit, {name: sizes[name] for name in wanted}


def _files(folder: Path, patterns: Sequence[str]) -> list[str]:
    return _matching([p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()], patterns)


def _matching(names: list[str], patterns: Sequence[str]) -> list[str]:
    from huggingface_hub.utils import filter_repo_objects

    return list(filter_repo_objects(names, allow_patterns=list(patterns)))
