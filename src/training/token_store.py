"""Writing the shards of a system in jobs, which a killed process loses at most one of, and which nodes share."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from torch.utils.data import DataLoader

from ..core.logs import shared_logger
from ..core.progress import progress
from ..data.base import Split
from ..data.examples import from_worker
from ..data.overview import check_training_pieces
from ..data.token_catalog import CATALOG, PLAN, SPLITS, Catalog, read_catalog
from ..errors import PartitaError
from ..recipe.token_options import TokenOptions
from ..storage.files import recover, replacing_file
from ..storage.object_store import ObjectStore, ShardStore
from ..storage.shard_folder import (
    INDEX,
    Job,
    file_checksum,
    index_of,
    job_index,
    read_job,
    write_index,
    write_job,
)
from ..system.system import System
from .readings import Reading, Readings, TokenEncoder
from .token_plan import TokenPlan, check_tokens, make_catalog, plan_tokens

log = shared_logger(__name__)

JOB = 32
"""Number of readings of a job, the unit of work that is done completely or not at all."""

CPU = torch.device("cpu")

LINES = 30.0
"""Seconds between two lines about the progress."""

LONGEST_PAUSE = 1800.0
"""Time, in seconds, after which a process does not wait any longer for the one that stores tokens."""


@dataclass(frozen=True)
class Workforce:
    """What does the work.

    Args:
        workers: Number of processes that read and decode audio; 0 reads it in this process.
        device: Device that encodes the audio.
        node: Number of this node, from 0.
        nodes: Number of nodes that share the work.
    """

    workers: int = 0
    device: torch.device = CPU
    node: int = 0
    nodes: int = 1


def store_tokens(
    system: System, store: ShardStore, options: TokenOptions, workforce: Workforce, *, verify: bool = True
) -> None:
    """Write the shards of a system whose source is set up.

    Args:
        system: The system, with trained tokenizers and conditioners.
        store: Receives the shards.
        options: What is stored of each piece.
        workforce: What does the work.
        verify: Whether to compare all shards of a complete folder with their checksums, and write damaged ones again.

    Raises:
        PartitaError: The store holds other tokens, the data is unusable, or the disk is full.
    """
    node, nodes = workforce.node, workforce.nodes
    if not 0 <= node < nodes:
        raise PartitaError(f"the number of a node is from 0 to {nodes - 1}, not {node}")
    plan, catalog = check_storable(system, options)
    with _alone(store, node):
        if nodes == 1:  # the temporary files of another node are not those of a dead process
            recover(store.root)
        complete = _claim(store, catalog)
        if complete and not verify:
            return
        pending = [
            (split, job)
            for split in SPLITS
            for job in range(-(-catalog.readings(split) // JOB))
            if job % nodes == node and not _is_done(store, catalog, split, job)
        ]
        if complete and not pending and (nodes > 1 or _is_indexed(store, catalog)):
            log.info(f"tokens: {store} is complete")
            return
        if complete:
            again = f"{len(pending)} damaged or missing jobs of {store} are done again"
            log.info(f"tokens: {again if pending else f'a damaged or missing index of {store} is written again'}")
            _write_catalog(store, catalog, PLAN)
            store.remove(CATALOG)
        if pending:
            _work(store, Readers(system, plan, catalog, workforce), pending)
        _finish(store, catalog)


def check_storable(system: System, options: TokenOptions) -> tuple[TokenPlan, Catalog]:
    """Return what is stored for a system and in which layout. Its source is set up; its parts may be untrained.

    Raises:
        PartitaError: A stage cannot be trained on stored tokens, the data is unusable, or litdata is not installed.
    """
    check_tokens(system, options)  # before the data is looked at
    check_training_pieces(system.source)
    plan = plan_tokens(system, options)
    return plan, make_catalog(system, plan, options)


@dataclass(frozen=True)
class Readers:
    """What is read and how.

    Args:
        system: The system.
        plan: What is stored.
        catalog: The catalog of the shards.
        workforce: What does the work.
    """

    system: System
    plan: TokenPlan
    catalog: Catalog
    workforce: Workforce

    def read(self, split: Split, jobs: list[int]) -> Iterator[Reading]:
        """Yield the readings of jobs of a split in order."""
        readings = Readings(self.system, self.plan, self.catalog, split)
        order = [number for job in jobs for number in numbers_of(self.catalog, split, job)]
        workers = min(self.workforce.workers, len(order))
        try:
            yield from DataLoader(
                readings,
                batch_size=None,
                sampler=order,
                num_workers=workers,
                collate_fn=_unchanged,
                worker_init_fn=_ignore_interrupts,
            )
        except PartitaError as error:
            raise from_worker(error) from None


def wait_for_tokens(folder: Path) -> None:
    """Wait until another process of the same training has written all shards of a folder.

    Raises:
        PartitaError: Nothing has changed in the folder for too long.
    """
    seen, since = -1, time.monotonic()
    while not (folder / CATALOG).is_file():
        found = sum(1 for _ in folder.rglob("*"))
        if found != seen:
            seen, since = found, time.monotonic()
        elif time.monotonic() - since > LONGEST_PAUSE:
            raise PartitaError(f"{folder}: the first process has stopped storing tokens: run the same command again")
        time.sleep(0.5)


def numbers_of(catalog: Catalog, split: Split, job: int) -> range:
    """Return the numbers of the readings of a job."""
    return range(job * JOB, min((job + 1) * JOB, catalog.readings(split)))


def _work(store: ShardStore, readers: Readers, pending: list[tuple[Split, int]]) -> None:
    """Do jobs one after another, and report the progress."""
    total = sum(len(numbers_of(readers.catalog, *one)) for one in pending)
    share = f" (node {readers.workforce.node} of {readers.workforce.nodes})" if readers.workforce.nodes > 1 else ""
    log.info(f"tokens: {total:,} readings of pieces to store in {store}{share}")
    encode = TokenEncoder(readers.system, readers.plan, readers.workforce.device)
    damaged: dict[str, str] = {}
    done, told = 0, time.monotonic()
    progress("tokens", done, total)
    for split in SPLITS:
        jobs = [job for wanted, job in pending if wanted == split]
        readings = readers.read(split, jobs)
        for job in jobs:
            examples: list[list[bytes]] = []
            for _ in numbers_of(readers.catalog, split, job):
                reading = next(readings)
                examples.append(encode(reading))
                if reading.damaged is not None and reading.piece not in damaged:
                    damaged[reading.piece] = reading.damaged
                    readers.system.source.note(reading.piece, reading.damaged)
                    log.info(f"  skipped: {reading.piece}: {reading.damaged}")
                done += 1
                progress("tokens", done, total)
                if time.monotonic() - told > LINES:
                    log.info(f"  {done:,} of {total:,} readings")
                    told = time.monotonic()
            folder = store.root / split
            folder.mkdir(parents=True, exist_ok=True)
            for path in write_job(folder, job, examples):
                store.put(path, f"{split}/{path.name}")
    if damaged:
        log.info(f"tokens: {len(damaged):,} pieces cannot be read; training skips them as it would on the fly")


def _claim(store: ShardStore, catalog: Catalog) -> bool:
    """Write the plan of the shards, or check that the store holds the same, and return whether it is complete."""
    held = next((name for name in (CATALOG, PLAN) if store.has(name)), None)
    if held is None:
        others = [] if isinstance(store, ObjectStore) else [path.name for path in _visible(store.root)]
        if others:
            raise PartitaError(
                f"{store} is not empty and has no {CATALOG}: choose another folder with --output, or delete this one"
            )
        _write_catalog(store, catalog, PLAN)
        return False
    path = store.get(held)
    old = read_catalog(path.parent, path.name)
    if differing := _differences(old.plan, catalog):
        raise PartitaError(
            f"{store} holds other tokens, which differ in {', '.join(differing)}: choose another folder with --output, "
            "or delete this one"
        )
    return held == CATALOG


def _differences(old: Catalog, new: Catalog) -> list[str]:
    """Return what differs between two catalogs, in words."""
    theirs, ours = old.as_json(), new.as_json()
    # normalized as JSON normalizes them
    ours = json.loads(json.dumps(ours))
    found = []
    for key in dict.fromkeys([*ours["parts"], *theirs["parts"]]):
        if ours["parts"].get(key) != theirs["parts"].get(key):
            found.append(key)
    words = {
        "members": "the pieces of the data",
        "data": "the data options of the recipe",
        "versions": "the number of versions",
        "window": "the windows of the stages",
        "hop": "the length of excerpts",
        "seed": "the seed of the recipe",
    }
    found += [word for name, word in words.items() if ours[name] != theirs[name]]
    rest = [
        name for name in ours if name not in words and name not in ("parts", "counts") and ours[name] != theirs[name]
    ]
    return found or rest


def _is_done(store: ShardStore, catalog: Catalog, split: Split, job: int) -> bool:
    """Return whether a job is done, and its shards in a folder are what was written."""
    name = f"{split}/{job_index(job)}"
    if not store.has(name):
        return False
    if isinstance(store, ObjectStore):  # the description of a job is uploaded after its shards
        return True
    try:
        done = read_job(store.root / name)
        shards = done.checksums.items()
        whole = all(file_checksum(store.root / split / shard) == checksum for shard, checksum in shards)
    except (PartitaError, OSError, ValueError, AttributeError):
        whole = False
    return whole and len(done.counts) == len(numbers_of(catalog, split, job))


def _is_indexed(store: ShardStore, catalog: Catalog) -> bool:
    """Return whether the index of each split in a folder, all of whose jobs are done, is what was written."""
    if isinstance(store, ObjectStore):
        return True
    for split in SPLITS:
        jobs = [read_job(store.root / split / job_index(job)) for job in range(-(-catalog.readings(split) // JOB))]
        try:
            if jobs and (store.root / split / INDEX).read_text(encoding="utf-8") != index_of(jobs):
                return False
        except (OSError, ValueError):
            return False
    return True


def _finish(store: ShardStore, catalog: Catalog) -> None:
    """Write the index of each split and the catalog, if all jobs of all nodes are done."""
    names = {split: [job_index(job) for job in range(-(-catalog.readings(split) // JOB))] for split in SPLITS}
    missing = sum(not store.has(f"{split}/{name}") for split in SPLITS for name in names[split])
    if missing:
        log.info(f"tokens: this node is done; {missing:,} jobs are left to other nodes")
        return
    counts: dict[str, list[int]] = {}
    for split in SPLITS:
        jobs: list[Job] = [read_job(store.get(f"{split}/{name}")) for name in names[split]]
        counts[split] = [count for job in jobs for count in job.counts]
        if jobs:
            folder = store.root / split
            folder.mkdir(parents=True, exist_ok=True)
            store.put(write_index(folder, jobs), f"{split}/{INDEX}")
    _write_catalog(store, Catalog(**catalog.as_json() | {"counts": counts}), CATALOG)
    store.remove(PLAN)
    log.info(f"tokens: stored in {store}")


def _write_catalog(store: ShardStore, catalog: Catalog, name: str) -> None:
    path = store.root / name
    with replacing_file(path) as new:
        new.write_text(json.dumps(catalog.as_json()), encoding="utf-8")
    store.put(path, name)


def _visible(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if not path.name.startswith(".")] if folder.exists() else []


@contextmanager
def _alone(store: ShardStore, node: int) -> Iterator[None]:
    """Let one process at a time do the work of a node in a folder.

    Raises:
        PartitaError: Another process does it, or the folder cannot be written.
    """
    if isinstance(store, ObjectStore):
        yield
        return
    try:
        store.root.mkdir(parents=True, exist_ok=True)
        lock = FileLock(store.root / f".tokens-{node}.lock")
        lock.acquire(timeout=0)
    except Timeout:
        raise PartitaError(f"{store}: another process stores tokens here: wait for it, or end it") from None
    except OSError as error:
        raise PartitaError(f"{store} cannot be written: {error.strerror or error}") from None
    try:
        yield
    finally:
        lock.release()


def _ignore_interrupts(worker: int) -> None:
    """Leave Ctrl-C, which a terminal sends to all processes, to the main process, which ends the others."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _unchanged(reading: Any) -> Any:
    return reading
