"""Folders of shards on this machine or in object storage, which litdata writes to and reads from."""

from __future__ import annotations

import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

from ..errors import PartitaError
from .files import kind, replacing_file
from .shard_folder import require_litdata

WRITABLE = ("s3://", "gs://", "r2://")
"""Schemes of object storage that litdata can write to."""

READABLE = (*WRITABLE, "azure://", "hf://", "local:")
"""Schemes that litdata can read from. ``local:`` copies shards from another folder, such as a network drive."""


def is_remote(path: str | Path) -> bool:
    """Return whether a path names object storage rather than a folder."""
    return str(path).startswith(READABLE)


class ShardStore:
    """A folder of this machine that receives files.

    Args:
        root: The folder, in which files are also prepared.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def __str__(self) -> str:
        return str(self.root)

    def has(self, name: str) -> bool:
        """Return whether a file exists."""
        return kind(self.root / name) == "file"

    def put(self, staged: Path, name: str) -> None:
        """Make a file available that was written below :attr:`root` under the same name."""

    def get(self, name: str) -> Path:
        """Return the path of a file on this machine."""
        return self.root / name

    def remove(self, name: str) -> None:
        """Delete a file if it exists."""
        (self.root / name).unlink(missing_ok=True)


class ObjectStore(ShardStore):
    """Object storage that receives files through litdata.

    Args:
        url: Where the files belong, such as ``s3://bucket/tokens``.

    Raises:
        PartitaError: litdata cannot write there.
    """

    def __init__(self, url: str) -> None:
        require_litdata()
        from litdata.streaming.fs_provider import _get_fs_provider

        self.url = url.rstrip("/")
        try:
            self.provider: Any = _get_fs_provider(self.url)
        except Exception as error:  # a client is missing or not configured
            raise PartitaError(f"{url} cannot be used: {_line(error)}") from None
        self._folder = tempfile.TemporaryDirectory(prefix="partita-tokens-")
        super().__init__(Path(self._folder.name))

    def __str__(self) -> str:
        return self.url

    def has(self, name: str) -> bool:
        """Return whether an object exists."""
        return bool(self._do("read", lambda: self.provider.exists(f"{self.url}/{name}")))

    def put(self, staged: Path, name: str) -> None:
        """Upload a file, and delete it here."""
        self._do("written", lambda: self.provider.upload_file(str(staged), f"{self.url}/{name}"))
        staged.unlink()

    def get(self, name: str) -> Path:
        """Download an object."""
        path = self.root / "fetched" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        self._do("read", lambda: self.provider.download_file(f"{self.url}/{name}", str(path)))
        return path

    def remove(self, name: str) -> None:
        """Delete an object if it exists."""
        if self.has(name):
            self._do("written", lambda: self.provider.delete_file_or_directory(f"{self.url}/{name}"))

    def _do(self, what: str, action: Any) -> Any:
        try:
            return action()
        except Exception as error:  # each client has its own kinds of errors
            raise PartitaError(f"{self.url} cannot be {what}: {_line(error)}") from None


def store_for(path: str | Path) -> ShardStore:
    """Return the store of a path or URL.

    Raises:
        PartitaError: litdata cannot write to the URL, or the path is a file.
    """
    text = str(path)
    if text.startswith(WRITABLE):
        return ObjectStore(text)
    if is_remote(text) or re.match(r"\w[\w+.-]+://", text):
        raise PartitaError(f"{text}: shards cannot be written there: give a folder, or one of {', '.join(WRITABLE)}…")
    root = Path(text).expanduser()
    if kind(root) not in ("folder", ""):
        raise PartitaError(f"{root} is a file; give a folder")
    return ShardStore(root)


def fetch_file(url: str, name: str, to: Path) -> Path:
    """Copy a file from object storage to ``to``, replacing what is there, through litdata's downloaders.

    Raises:
        PartitaError: The file cannot be fetched.
    """
    require_litdata()
    from litdata.streaming.downloader import get_downloader

    with tempfile.TemporaryDirectory() as folder:
        got = Path(folder) / Path(name).name
        try:
            get_downloader(url, folder, [], {}, {}).download_file(f"{url.rstrip('/')}/{name}", str(got))
            with replacing_file(to) as new:
                shutil.copyfile(got, new)
        except PartitaError:
            raise
        except Exception as error:
            raise PartitaError(f"{url}/{name} cannot be read: {_line(error)}") from None
    return to


def _line(error: Exception) -> str:
    return str(error).split("\n")[0] or type(error).__name__
