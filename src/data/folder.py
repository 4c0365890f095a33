"""Audio files of one's own, with captions from a manifest or from files beside them."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..contracts import Example
from ..errors import PartitaError
from ..registry import register
from .annotations import FILE_KEYS, known_fields, read_manifest, read_sidecar
from .audio_file import SUFFIXES, inspect_audio, read_clip
from .base import Source, Split
from .labels import clip_spans, clip_times
from .splits import check_fractions, split_names


@dataclass
class _Entry:
    id: str
    path: Path
    fields: dict[str, Any]
    split: Split | None = None
    seconds: float = 0.0


@register("data", "folder")
class Folder(Source):
    """A folder of audio files in any format, rate and length, captioned by a manifest or side-car files.

    Without a manifest, every audio file below the folder is used; ``song.txt`` (a caption) or ``song.json`` (an object
    with ``text``, ``instruments``, ``key``, ``tempo``, ``beats``, ``downbeats``, ``chords``, ``melody``) beside
    ``song.wav`` says what is known of it. A manifest has a row for each file: its ``file`` (or ``path``, ``audio``),
    relative to the manifest or absolute, the same keys, and if wanted its ``split``. Times are in seconds from the
    start of the file. What cannot be read is skipped and named in :attr:`report`.

    A file is in one split by the hash of its name, unless the manifest names splits (rows without one are then for
    training). Of three files or more each split gets at least one.

    Args:
        path: The folder.
        manifest: A ``.jsonl``, ``.csv`` or ``.tsv`` file, in the folder or anywhere; none to use side-car files.
        validation: Fraction of the files for validation.
        test: Fraction of the files for the test.
    """

    fields = frozenset(
        {"text", "instruments", "key", "tempo", "beats", "downbeats", "chords", "melody"}
        | {"id", "seconds_start", "seconds_total"}
    )

    def __init__(self, path: str, manifest: str | None = None, validation: float = 0.05, test: float = 0.05) -> None:
        if not path:
            raise ValueError("path is empty: give the folder of the audio files")
        check_fractions(validation, test)
        self.path = path
        self.manifest = manifest
        self.validation = validation
        self.test = test
        self._splits: dict[Split, list[_Entry]] | None = None
        self._skipped: list[str] = []

    def setup(self) -> None:
        """Look at every file once. Afterwards :attr:`fields` holds what is known of at least one.

        Raises:
            PartitaError: The folder or the manifest is missing, or no file in it can be used.
        """
        if self._splits is not None:
            return
        root = Path(self.path).expanduser()
        if not root.is_dir():
            raise PartitaError(f"no folder {root.absolute()}: set data.path to the folder of the audio files")
        self._skipped = []
        found = list(self._from_manifest(root) if self.manifest else self._from_sidecars(root))
        with ThreadPoolExecutor(min(16, 2 * (os.cpu_count() or 1))) as pool:
            entries = [entry for entry in pool.map(self._inspected, found) if entry is not None]
        self._skipped.sort()
        if not entries:
            raise PartitaError(self._nothing_usable(root))
        if self._skipped:
            warnings.warn(
                f"{root}: {len(self._skipped)} skipped, {len(entries)} used\n  " + "\n  ".join(self._skipped[:10]),
                stacklevel=2,
            )
        self._splits = self._divided(entries)
        known = {name for entry in entries for name in entry.fields}
        self.fields = frozenset(known | {"id", "seconds_start", "seconds_total"})

    def size(self, split: Split) -> int:
        """Number of files in a split."""
        return len(self._entries(split))

    @property
    def report(self) -> list[str]:
        """What was skipped, and why."""
        return list(self._skipped)

    def read(
        self, split: Split, index: int, *, seed: int, seconds: float | None, sample_rate: int, channels: int
    ) -> Example:
        """A clip from anywhere in a file; see :class:`~partita.data.base.Source`.

        Raises:
            PartitaError: The file went bad since :meth:`setup`; the message names it.
        """
        entry = self._entries(split)[index]
        start = 0.0
        if seconds is not None:
            digest = hashlib.sha256(f"{entry.id}/{seed}".encode()).digest()
            fraction = np.random.default_rng(int.from_bytes(digest)).random()
            start = round(fraction * max(0.0, entry.seconds - seconds) * sample_rate) / sample_rate
        audio, num_samples = read_clip(entry.path, start, seconds, sample_rate, channels)
        fields = dict(entry.fields)
        for name in ("beats", "downbeats"):
            if name in fields:
                fields[name] = clip_times(np.array(fields[name]), start, num_samples / sample_rate)
        for name in ("chords", "melody"):
            if name in fields:
                fields[name] = clip_spans(fields[name], start, num_samples / sample_rate)
        fields |= {"id": entry.id, "seconds_start": start, "seconds_total": entry.seconds}
        return Example(torch.from_numpy(audio), num_samples, fields)

    def _entries(self, split: Split) -> list[_Entry]:
        self.setup()
        assert self._splits is not None
        return self._splits[split]

    def _from_sidecars(self, root: Path) -> Iterator[_Entry]:
        for path in sorted(root.rglob("*")):
            hidden = any(part.startswith(".") for part in path.relative_to(root).parts)
            if hidden or path.suffix.lower() not in SUFFIXES or not path.is_file():
                continue
            name = path.relative_to(root).as_posix()
            try:
                yield _Entry(name, path, known_fields(read_sidecar(path))[0])
            except PartitaError as error:
                self._skipped.append(f"{name}: {error}")

    def _from_manifest(self, root: Path) -> Iterator[_Entry]:
        given = Path(self.manifest or "").expanduser()
        manifest = root / given if (root / given).is_file() else given
        if not manifest.is_file():
            raise PartitaError(f"no manifest {given}, neither in {root.absolute()} nor in {Path.cwd()}")
        seen: Counter[str] = Counter()
        for number, row in read_manifest(manifest):
            where = f"{manifest.name} line {number}"
            if isinstance(row, PartitaError):
                self._skipped.append(f"{where}: {row}")
                continue
            file = next((row[key] for key in FILE_KEYS if isinstance(row.get(key), str) and row[key]), None)
            if file is None:
                self._skipped.append(f"{where}: no {' or '.join(FILE_KEYS)}")
                continue
            name = Path(file).as_posix()
            seen[name] += 1
            try:
                fields, split = known_fields(row)
            except PartitaError as error:
                self._skipped.append(f"{where} ({name}): {error}")
                continue
            # A file may have several captions: several examples, which stay in one split.
            repeated = f"#{seen[name]}" if seen[name] > 1 else ""
            yield _Entry(name + repeated, manifest.parent / Path(file).expanduser(), fields, split)

    def _inspected(self, entry: _Entry) -> _Entry | None:
        try:
            entry.seconds = inspect_audio(entry.path).seconds
        except PartitaError as error:
            self._skipped.append(f"{entry.id}: {error}")
            return None
        return entry

    def _divided(self, entries: list[_Entry]) -> dict[Split, list[_Entry]]:
        divided: dict[Split, list[_Entry]] = {"train": [], "validation": [], "test": []}
        if any(entry.split for entry in entries):
            place = {entry.id: entry.split or "train" for entry in entries}
        else:
            of_file = {entry.id: entry.id.split("#")[0] for entry in entries}
            names = split_names(list(dict.fromkeys(of_file.values())), self.validation, self.test)
            split_of = {name: split for split, members in names.items() for name in members}
            place = {entry.id: split_of[of_file[entry.id]] for entry in entries}
        for entry in entries:
            divided[place[entry.id]].append(entry)
        return divided

    def _nothing_usable(self, root: Path) -> str:
        if self._skipped:
            return f"no usable audio in {root.absolute()}:\n  " + "\n  ".join(self._skipped[:10])
        if self.manifest:
            return f"the manifest {self.manifest} names no files"
        suffixes = Counter(path.suffix or "none" for path in root.rglob("*") if path.is_file())
        there = ", ".join(f"{count} × {suffix}" for suffix, count in suffixes.most_common(5)) or "nothing"
        return f"no audio files (.wav, .flac, .ogg, .mp3 …) in {root.absolute()}: found {there}"
