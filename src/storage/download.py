"""Downloading from the Hugging Face Hub, with errors that say what to do."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from ..errors import PartitaError
from ..limits import (
    LARGEST_CONFIG,
    LARGEST_RESULTS,
    LARGEST_VOCABULARY,
    MOST_FETCHED,
    MOST_LISTED,
    TooMuch,
    beyond,
)
from .hub_cache import cache_folder, check_copies
from .hub_errors import as_messages
from .patience import Silent, patiently
from .untrusted import check_name

_LARGEST = {".yaml": LARGEST_CONFIG, ".json": LARGEST_VOCABULARY, ".model": LARGEST_VOCABULARY, ".md": LARGEST_CONFIG}


def fetch(repo_id: str, patterns: Sequence[str], revision: str | None = None) -> Path:
    """The local folder of a repository's files that match ``patterns``, downloaded unless they are in the cache.

    The listing of the repository is checked before anything is downloaded: the number, names and sizes of its files.

    Args:
        repo_id: Hub id, ``user/name``.
        patterns: Patterns of ``fnmatch``; ``*`` matches slashes too.
        revision: A branch, a tag or a commit. ``None`` takes ``main``.

    Raises:
        PartitaError: The repository or revision does not exist, access is denied, files are rejected, the Hub cannot be
            reached and the cache holds nothing, or the cached files differ from those of the Hub.
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
            try:  # the Hub is out of reach, but the cache may hold the files
                kept = Path(download(local_files_only=True))
            except Exception:
                raise error from None
            check_copies(kept, matching_files(kept, patterns))
            return kept
        before = {path.name for path in (cache_folder(repo_id) / "blobs").glob("*")}
        folder = Path(patiently(download, LARGEST_RESULTS + 2 * sum(sizes.values())))
        if folder.name != commit:
            raise PartitaError(f"{repo_id} changed while it was downloaded: run the same command again")
        check_copies(folder, list(sizes), sizes, before)
        return folder


def check_id(repo_id: str) -> None:
    """Check that a hub id has the form ``user/name``, in characters that the Hub accepts.

    Raises:
        PartitaError: It does not.
    """
    from huggingface_hub.utils import validate_repo_id

    if repo_id.count("/") != 1:
        raise PartitaError(f"{repo_id!r} is not a hub id: expected user/name")
    with as_messages(repo_id, None):
        validate_repo_id(repo_id)


def _check_listing(repo_id: str, patterns: Sequence[str], revision: str | None) -> tuple[str, dict[str, int]]:
    """The commit of ``revision`` and the sizes of its files that match, after checking the listing."""
    from huggingface_hub import HfApi
    from huggingface_hub.constants import HF_HUB_CACHE

    api = HfApi(library_name="partita")
    commit = str(api.model_info(repo_id, revision=revision, expand=["sha"]).sha)
    sizes = {}
    for number, entry in enumerate(api.list_repo_tree(repo_id, recursive=True, revision=commit)):
        if beyond(number + 1, MOST_LISTED):
            raise TooMuch(f"{repo_id} holds more than {MOST_LISTED:,} files, far more than a system has: rejected")
        check_name(entry.path, repo_id)
        if hasattr(entry, "size"):
            sizes[entry.path] = entry.size
    wanted = _matching(list(sizes), patterns)
    if not wanted:
        raise PartitaError(f"{repo_id} holds nothing for Partita: none of its files is {' or '.join(patterns)}")
    if beyond(len(wanted), MOST_FETCHED):
        raise TooMuch(f"{repo_id} holds {len(wanted):,} files to download, far more than a system has: rejected")
    for name in wanted:
        if beyond(sizes[name], _LARGEST.get(Path(name).suffix, sizes[name])):
            raise TooMuch(f"{repo_id}: {name} has {sizes[name]:,} bytes, more than such a file can have: rejected")
    place = next(p for p in (Path(HF_HUB_CACHE), *Path(HF_HUB_CACHE).absolute().parents) if p.exists())
    total, free = sum(sizes[name] for name in wanted), shutil.disk_usage(place).free
    if total > free:
        raise PartitaError(f"{repo_id} is {total:,} bytes to download, and {place} has {free:,} free: make room")
    return commit, {name: sizes[name] for name in wanted}


def matching_files(folder: Path, patterns: Sequence[str]) -> list[str]:
    """Relative paths of the files of a folder that match patterns of ``fnmatch``."""
    return _matching([p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()], patterns)


def _matching(names: list[str], patterns: Sequence[str]) -> list[str]:
    from huggingface_hub.utils import filter_repo_objects

    return list(filter_repo_objects(names, allow_patterns=list(patterns)))
