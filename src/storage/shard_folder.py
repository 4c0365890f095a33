"""Folders of shards in litdata's format: written job by job, and read by number.

A shard holds examples as bytes (:mod:`~partita.storage.packed`). litdata knows other formats, some of which are
pickles; an index that names one of them is refused before litdata reads it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import zlib
from array import array
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from ..errors import PartitaError
from ..limits import LARGEST_INDEX, MOST_SHARDS, TooMuch, beyond
from .files import kind, replacing_file, saying_when_full
from .packed import unpack
from .untrusted import own_file, read_json

INDEX = "index.json"
"""Name of litdata's index in the folder of a split."""

SHARD_BYTES = 1 << 26
"""Size in bytes after which a job begins another shard."""

_SHARD = re.compile(r"shard-\d{6}-\d{1,6}\.bin")
_CONFIG = {
    "compression": None,
    "data_format": ["bytes"],
    "data_spec": '[1, {"type": null, "context": null, "children_spec": []}]',
    "encryption": None,
    "item_loader": "PyTreeLoader",
}
"""The values that an index must have, so that litdata returns the bytes of an example and interprets nothing."""


def require_litdata() -> None:
    """Check that litdata is installed, before it is imported. It will not ask the package index for newer versions.

    Raises:
        PartitaError: litdata is not installed.
    """
    os.environ.setdefault("LITDATA_DISABLE_VERSION_CHECK", "1")
    try:
        import litdata  # noqa: F401
    except ImportError:
        raise PartitaError("shards need litdata: pip install 'partita[shards]'") from None


class Job(NamedTuple):
    """What a completed job has written.

    Args:
        chunks: Entries of litdata's index, one for each shard.
        config: Configuration of litdata's index.
        checksums: CRC-32 of each shard.
        counts: Number of examples of each reading.
    """

    chunks: list[dict[str, Any]]
    config: dict[str, Any]
    checksums: dict[str, int]
    counts: list[int]


def job_index(job: int) -> str:
    """Return the name of the file that describes a completed job. It is written after the shards of the job."""
    return f"job-{job:06}.json"


def write_job(folder: Path, job: int, readings: Iterable[list[bytes]]) -> list[Path]:
    """Write the shards of a job and then the file that describes them, and return all paths in this order.

    Args:
        folder: An existing folder.
        job: Number of the job.
        readings: The examples of each reading, packed; at least one in all.

    Raises:
        PartitaError: The disk is full.
    """
    from litdata.streaming.writer import BinaryWriter

    temporary = folder / f".job-{job:06}"
    shutil.rmtree(temporary, ignore_errors=True)
    for left in folder.glob(f".*-{job:06}*"):  # half files of a killed process
        left.unlink(missing_ok=True)
    with saying_when_full(folder):
        try:
            writer = BinaryWriter(str(temporary), chunk_bytes=SHARD_BYTES)
            counts, written = [], 0
            for examples in readings:
                for example in examples:
                    writer.add_item(written, example)
                    written += 1
                counts.append(len(examples))
            writer.done()
            index = next(temporary.glob(f"*.{INDEX}"))
            found = json.loads(index.read_text(encoding="utf-8"))
            chunks, checksums, paths = [], {}, []
            for number, chunk in enumerate(found["chunks"]):
                name = f"shard-{job:06}-{number}.bin"
                with replacing_file(folder / name) as new:
                    (temporary / chunk["filename"]).replace(new)
                chunks.append(chunk | {"filename": name})
                checksums[name] = file_checksum(folder / name)
                paths.append(folder / name)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    with replacing_file(folder / job_index(job)) as new:
        new.write_text(json.dumps(Job(chunks, found["config"], checksums, counts)._asdict()), encoding="utf-8")
    return [*paths, folder / job_index(job)]


def read_job(path: Path) -> Job:
    """Return what a completed job has written.

    Raises:
        PartitaError: The file is not what :func:`write_job` wrote.
    """
    values = read_json(path, LARGEST_INDEX)
    if set(values) != set(Job._fields) or not all(isinstance(values[name], list) for name in ("chunks", "counts")):
        raise PartitaError(f"{path} is damaged: delete it and run `partita tokenize` again")
    return Job(**values)


def file_checksum(path: Path) -> int:
    """Return the CRC-32 of a file."""
    found = 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            found = zlib.crc32(block, found)
    return found


def write_index(folder: Path, jobs: Iterable[Job]) -> Path:
    """Write litdata's index of the shards of all jobs, in the order of the jobs, and return its path."""
    with replacing_file(folder / INDEX) as new:
        new.write_text(index_of(list(jobs)), encoding="utf-8")
    return folder / INDEX


def index_of(jobs: Sequence[Job]) -> str:
    """Return the content of litdata's index of the shards of all jobs."""
    index = {"chunks": [chunk for job in jobs for chunk in job.chunks], "config": jobs[0].config}
    return json.dumps(index, sort_keys=True)


def check_index(folder: Path, expected: int, *, shards: bool = True) -> None:
    """Check litdata's index of a folder from anyone, before litdata reads it.

    Args:
        folder: Folder of a split.
        expected: Number of examples.
        shards: Whether the shards are in the folder, complete. Those of object storage are fetched later.

    Raises:
        PartitaError: The index is damaged, or names other files or another format, or a shard is incomplete.
    """
    path = _held(folder, INDEX, LARGEST_INDEX)
    index = read_json(path, LARGEST_INDEX)
    config, chunks = index.get("config"), index.get("chunks")
    if not isinstance(config, dict) or not isinstance(chunks, list) or not chunks:
        raise PartitaError(f"{path} is damaged: run `partita tokenize` again")
    if beyond(len(chunks), MOST_SHARDS):
        raise TooMuch(f"{path} lists {len(chunks):,} shards, more than there can be ({MOST_SHARDS:,}): refused")
    for name, value in _CONFIG.items():
        if config.get(name) != value:
            raise PartitaError(
                f"{path}: {name} {config.get(name)!r:.80} is not what `partita tokenize` writes: refused"
            )
    total, seen = 0, set()
    for chunk in chunks:
        match chunk:
            case {"filename": str(name), "chunk_size": int(count), "chunk_bytes": int(size)} if (
                _SHARD.fullmatch(name) and name not in seen and 0 < count <= expected and size > 0
            ):
                total += count
                seen.add(name)
            case _:
                raise PartitaError(f"{path} names a shard that `partita tokenize` does not write: refused")
    if total != expected:
        raise PartitaError(f"{path} lists {total:,} examples instead of {expected:,}: run `partita tokenize` again")
    for chunk in chunks if shards else ():
        _check_shard(_held(folder, chunk["filename"]), chunk["chunk_size"], chunk["chunk_bytes"])


def _held(folder: Path, name: str, largest: int | None = None) -> Path:
    """Return the path of a file that a complete folder has; see :func:`~partita.storage.untrusted.own_file`."""
    if not kind(folder / name):
        raise PartitaError(f"{folder / name} cannot be read: there is no such file; run `partita tokenize` again")
    return own_file(folder, name, largest)


def _check_shard(path: Path, count: int, size: int) -> None:
    """Check the size of a shard, and the table at its start: the number of examples, and where each begins and ends.

    litdata makes room for as many examples as the table says, which can be billions in a damaged one.
    """
    held, table = path.stat().st_size, 4 * (count + 2)
    if held != size:
        raise PartitaError(
            f"{path} is damaged: it has {held:,} bytes instead of {size:,}; run `partita tokenize` again"
        )
    with path.open("rb") as file:
        numbers = array("I", file.read(table) if table <= size else b"")
    if sys.byteorder == "big":
        numbers.byteswap()
    borders = numbers[1:]
    if (
        len(numbers) != count + 2
        or (numbers[0], borders[0], borders[-1]) != (count, table, size)
        or any(begin >= end for begin, end in pairwise(borders))
    ):
        raise PartitaError(f"{path} is damaged: its table of examples is wrong; run `partita tokenize` again")


class ShardReader:
    """Reads the examples of one split by number, in any order and in any process.

    Args:
        folder: Folder with a checked index, and with the shards or room for them.
        url: Where shards are fetched from. ``None`` if all are in the folder.
    """

    def __init__(self, folder: Path, url: str | None = None) -> None:
        self.folder, self.url = folder, url
        self._process, self._dataset = 0, None

    def __getitem__(self, number: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the tensors and values of an example.

        Raises:
            PartitaError: Its shard is damaged or cannot be fetched.
        """
        try:
            data = self._streaming()[number]
        except Exception as error:  # litdata and the clients of object storage raise errors of many kinds
            reason = str(error).split("\n")[0]
            raise PartitaError(
                f"{self.url or self.folder}: example {number} cannot be read: {reason}; run `partita tokenize` again"
            ) from None
        try:
            return unpack(data)
        except PartitaError as error:
            raise PartitaError(
                f"{self.url or self.folder}: {error} (number {number}): run `partita tokenize` again, which writes "
                "damaged shards anew"
            ) from None

    def _streaming(self) -> Any:
        if self._process != os.getpid():  # a forked process must not share the open files of its parent
            require_litdata()
            from litdata.streaming.dataset import StreamingDataset
            from litdata.streaming.resolver import Dir

            where = Dir(path=str(self.folder), url=self.url)
            self._process, self._dataset = os.getpid(), StreamingDataset(where)
        return self._dataset

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_process": 0, "_dataset": None}
