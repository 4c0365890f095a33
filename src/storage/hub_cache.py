"""Comparing the files in the local Hub cache with what the Hub listed.

The cache stores a file once, named by the digest that the Hub lists for it, and links to it from the snapshots. A proxy
or a broken connection can leave other content there. The client never checks again: as long as the file exists, nothing
is downloaded.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Container, Mapping, Sequence
from pathlib import Path

from ..errors import PartitaError

SHARED = ".huggingface-shared-blobs"
"""Name of the file with which the client marks the store that several repositories of a cache share."""

SMALL = 1 << 24
"""Maximum size of files whose digest is checked on every use, in bytes."""


def stored(path: Path) -> Path | None:
    """The entry of the cache, named by its digest, that a file of a snapshot links to; ``None`` if it is no such link.

    The entry may itself be a link, to a file that several repositories share.
    """
    for _ in range(2):  # the file of the snapshot, and the target of its link
        if re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", path.name) and path.parent.name == "blobs":
            return path
        if not path.is_symlink():
            return None
        path = path.parent / path.readlink()
    return None


def places(folder: Path) -> list[Path]:
    """The folders in which the files of a folder may lie: itself and, for a snapshot, the stores of the cache."""
    found = [folder.resolve()]
    if folder.parent.name == "snapshots":
        repository = folder.parent.parent.resolve()
        found.append(repository / "blobs")
        if (shared := repository.parent / "blobs" / SHARED).is_file():
            found.append(shared.parent)
    return found


def remedy(path: Path) -> str:
    """The end of a message about a damaged file: which copy to delete if it is not what the Hub listed, or nothing."""
    real = stored(path)
    if real is None or _is_intact(real):
        return ""
    return f". The copy in the cache is not what the hub has: delete {real.resolve()}, and run the same command again"


def cache_folder(repo_id: str) -> Path:
    """The folder of a repository in the cache."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    return Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repo_id, repo_type="model")


def check_copies(
    folder: Path, names: Sequence[str], sizes: Mapping[str, int] | None = None, before: Container[str] | None = None
) -> None:
    """Check that the files of a snapshot are what the Hub listed: new and small ones by digest, the others by size.

    Args:
        folder: The snapshot.
        names: Names of its files.
        sizes: Their sizes in bytes. ``None`` if the Hub was not asked.
        before: Names of the cache's files before the download. ``None`` if nothing was downloaded.

    Raises:
        PartitaError: Some files differ; the message says which to delete.
    """
    wrong = []
    for name in names:
        real = stored(folder / name)
        if real is None or not real.is_file():
            continue
        size = real.stat().st_size
        new = before is not None and real.name not in before
        if size != (sizes or {}).get(name, size) or ((new or size <= SMALL) and not _is_intact(real)):
            wrong.append(real.resolve())
    if wrong:
        raise PartitaError(
            "the copy in the cache is not what the hub has (a proxy or a broken connection left something else "
            f"there): delete {' and '.join(map(str, wrong))}, and run the same command again"
        )


def _is_intact(path: Path) -> bool:
    """Whether a file's content has the digest that is its name: SHA-256, or that of git for small files."""
    try:
        digest = hashlib.sha256()
        if len(path.name) == 40:
            digest = hashlib.sha1(f"blob {path.stat().st_size}\0".encode())
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    except OSError:
        return True  # another check reports it
    return digest.hexdigest() == path.name
