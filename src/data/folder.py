"""Audio files of one's own, with captions from a manifest or from files beside them."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..core.contracts import Example
from ..core.registry import register
from ..errors import PartitaError, printable
from ..storage.audio_file import SUFFIXES, check_audio, inspect_audio, read_clip
from ..storage.files import kind
from .annotations import FILE_KEYS, known_fields, manifest_fields, read_manifest, read_sidecar
from .base import UNKNOWN_LICENSE, Damaged, Origin, Source, Split, Summary
from .fields.base import cropped, field
from .splits import check_fractions, split_names


@dataclass
class _Entry:
    """An example: ``id`` is the name of its ``file``, numbered where it has several captions."""

    id: str
    file: str
    path: Path
    fields: dict[str, Any]
    split: Split | None = None
    seconds: float = 0.0


@register("data", "folder")
class Folder(Source):
    """A folder of audio files in any format, rate and length, captioned by a manifest or side-car files.

    Without a manifest, every audio file below the folder is used; ``song.txt`` (a caption) or ``song.json`` (an object
    with any field: ``text``, ``lyrics``, ``tempo``, ``chords`` …, see ``partita list field``) beside ``song.wav`` says
    what is known of it. A manifest has a row for each file: its ``file`` (or ``path``, ``audio``),
    relative to the manifest, to the folder or to where the command runs, or absolute; the same keys; and if wanted its
    ``split``. Times are in seconds from the start of the file. What cannot be read is skipped and named in
    :attr:`report`, when the folder is scanned as well as later. Files that a manifest does not name are not used.

    A file is in one split by the hash of its name, unless the manifest names splits (files without one are then for
    training). All rows of a file are in one split. Of three files or more each split gets at least one.

    Args:
        path: The folder.
        manifest: A ``.jsonl``, ``.csv`` or ``.tsv`` file, in the folder or anywhere; none to use side-car files.
        validation: Fraction of the files for validation.
        test: Fraction of the files for the test.
        license: Under which the files may be used, as it is to stand in reports and model cards, such as ``CC BY 4.0``.
    """

    fields_known = False

    def __init__(
        self,
        path: str,
        manifest: str | None = None,
        validation: float = 0.05,
        test: float = 0.05,
        license: str | None = None,
    ) -> None:
        if not path:
            raise ValueError("path is empty: give the folder of the audio files")
        check_fractions(validation, test)
        self.fields = frozenset({*manifest_fields().values(), "id"})
        self.path = path
        self.manifest = manifest
        self.validation = validation
        self.test = test
        self.license = license
        self._splits: dict[Split, list[_Entry]] | None = None
        self._unnamed = 0

    def setup(self) -> None:
        """Look at every file once. Afterwards :attr:`fields` holds what is known of at least one.

        Raises:
            PartitaError: The folder or the manifest is missing, or no file in it can be used.
        """
        if self._splits is not None:
            return
        if wrong := [line for _, line in self.missing()]:
            raise PartitaError("\n".join(wrong))
        root = _place(self.path)
        found = list(self._from_manifest(root) if self.manifest else self._from_sidecars(root))
        if self.manifest:
            named = {os.path.realpath(entry.path) for entry in found}  # which links in a circle do not trouble
            there = _audio_files(root, lambda name, wrong: None)
            self._unnamed = sum(os.path.realpath(path) not in named for path in there)
        with ThreadPoolExecutor(_threads()) as pool:
            entries = [entry for entry in pool.map(self._inspected, found) if entry is not None]
        skipped = self.report
        if not entries:
            raise PartitaError(self._nothing_usable(root))
        if skipped:
            warnings.warn(
                f"{root}: {len(skipped)} skipped, {len(entries)} used\n  " + "\n  ".join(skipped[:10]),
                stacklevel=2,
            )
        self._splits = self._divided(entries)
        known = {name for entry in entries for name in entry.fields}
        self.fields = frozenset(known | {"id", "seconds_start", "seconds_total"})
        self.fields_known = True

    def size(self, split: Split) -> int:
        """Number of files in a split."""
        return len(self._entries(split))

    @property
    def summary(self) -> Summary:
        """How many files there are, how long they are together, and what is known of how many."""
        splits: dict[Split, dict[str, float]] = {
            split: {entry.file: entry.seconds for entry in self._entries(split)}
            for split in ("train", "validation", "test")
        }
        known = {(entry.file, name) for split in splits for entry in self._entries(split) for name in entry.fields}
        return Summary(
            "file",
            {split: len(files) for split, files in splits.items()},
            Counter(name for _, name in known),
            sum(sum(files.values()) for files in splits.values()),
            f"{self._unnamed:,} more in the folder left out (not in {Path(self.manifest or '').name})"
            if self._unnamed
            else "",
        )

    @property
    def label(self) -> str:
        """Name of the folder."""
        return printable(_place(self.path).absolute().name) or self.registered_name

    @property
    def origins(self) -> list[Origin]:
        """The files, under the license that their owner states."""
        return [Origin(f"audio files in {self.label}", self.license or UNKNOWN_LICENSE)]

    def advice(self, field: str) -> str:
        """Where what is missing can be written."""
        if field not in manifest_fields():
            return ""
        what = "each caption" if field == "text" else f"the {field} of each file"
        if self.manifest:
            return f"write {what} into `{field}` of {self.manifest}"
        beside = "beside it, in song.txt for song.wav" if field == "text" else "into song.json beside song.wav"
        return f"write {what} {beside}, or into `{field}` of a manifest"

    def missing(self) -> list[tuple[str, str]]:
        """The folder and the manifest, if they are not there, or the folder, if it holds no audio."""
        root, missing = _place(self.path), []
        if kind(root) != "folder":
            there = "is a file; give a folder" if kind(root) else "is not there"
            missing.append(("path", f"no folder of audio files: {root.absolute()} {there}"))
        elif not self.manifest and not any(True for _ in _audio_files(root, lambda name, wrong: None)):
            missing.append(("path", _without_audio(root)))
        if self.manifest and not any(kind(place) == "file" for place in _places(self.manifest, root)):
            tried = ", ".join(str(place.absolute()) for place in _places(self.manifest, root))
            missing.append(("manifest", f"no manifest {self.manifest}: tried {tried}"))
        return missing

    def verify(self) -> Iterator[tuple[str, str | None]]:
        """Decode every file once."""
        files = {entry.file: entry.path for split in ("train", "validation", "test") for entry in self._entries(split)}
        with ThreadPoolExecutor(_threads()) as pool:
            yield from zip(files, pool.map(_damage, files.values()), strict=True)

    def read(
        self, split: Split, index: int, *, seed: int, seconds: float | None, sample_rate: int, channels: int
    ) -> Example:
        """A clip from anywhere in a file; see :class:`~partita.data.base.Source`.

        Raises:
            Damaged: The file cannot be decoded there, or went bad since :meth:`setup`.
        """
        entry = self._entries(split)[index]
        start = 0.0
        if seconds is not None:
            digest = hashlib.sha256(f"{entry.id}/{seed}".encode()).digest()
            fraction = np.random.default_rng(int.from_bytes(digest)).random()
            start = round(fraction * max(0.0, entry.seconds - seconds) * sample_rate) / sample_rate
        try:
            audio, num_samples = read_clip(entry.path, start, seconds, sample_rate, channels)
        except PartitaError as error:
            raise Damaged(entry.file, str(error).removeprefix(f"{printable(entry.path)}: ")) from None
        fields = {"seconds_start": 0.0, "seconds_total": entry.seconds} | entry.fields
        fields = cropped(fields, start, num_samples / sample_rate) | {"id": entry.id}
        return Example(torch.from_numpy(audio), num_samples, fields)

    def _entries(self, split: Split) -> list[_Entry]:
        self.setup()
        assert self._splits is not None
        return self._splits[split]

    def _from_sidecars(self, root: Path) -> Iterator[_Entry]:
        for path in sorted(_audio_files(root, self.note)):
            name = printable(path.relative_to(root).as_posix())
            try:
                fields = known_fields(read_sidecar(path))[0]
                yield _Entry(name, name, path, _with_recordings(fields, path.parent, root))
            except PartitaError as error:
                self.note(name, str(error))

    def _from_manifest(self, root: Path) -> Iterator[_Entry]:
        manifest = next(place for place in _places(str(self.manifest), root) if kind(place) == "file")
        seen: Counter[str] = Counter()
        split_of: dict[str, Split] = {}
        for number, row in read_manifest(manifest):
            where = f"{manifest.name} line {number}"
            if isinstance(row, PartitaError):
                self.note(where, str(row))
                continue
            file = next((row[key] for key in FILE_KEYS if isinstance(row.get(key), str) and row[key].strip()), None)
            if file is None:
                self.note(where, f"no {' or '.join(FILE_KEYS)}")
                continue
            # without `..`, so that a file has one name, and all of its rows are in one split
            tried = [Path(os.path.normpath(place.absolute())) for place in _places(file, manifest.parent, root)]
            path = next((place for place in tried if kind(place)), None)
            if path is None:
                places = ", ".join(printable(place) for place in tried)
                self.note(printable(file), f"there is no such file: {where}, tried {places}")
                continue
            inside = path.is_relative_to(root.absolute())
            name = printable((path.relative_to(root.absolute()) if inside else Path(file)).as_posix())
            seen[name] += 1
            try:
                fields, split = known_fields(row)
                fields = _with_recordings(fields, manifest.parent, root)
            except PartitaError as error:
                self.note(f"{where} ({name})", str(error))
                continue
            # A file may have several captions: several examples, which stay in one split.
            if split is not None and split_of.setdefault(name, split) != split:
                self.note(f"{where} ({name})", f"the file is for {split_of[name]} already, and not for {split}")
                continue
            repeated = f"#{seen[name]}" if seen[name] > 1 else ""
            yield _Entry(name + repeated, name, path, fields, split)

    def _inspected(self, entry: _Entry) -> _Entry | None:
        try:
            entry.seconds = inspect_audio(entry.path).seconds
        except PartitaError as error:
            self.note(entry.file, str(error))
            return None
        return entry

    def _divided(self, entries: list[_Entry]) -> dict[Split, list[_Entry]]:
        divided: dict[Split, list[_Entry]] = {"train": [], "validation": [], "test": []}
        if named := {entry.file: entry.split for entry in entries if entry.split}:
            place = {entry.id: named.get(entry.file, "train") for entry in entries}
        else:
            names = split_names(list(dict.fromkeys(entry.file for entry in entries)), self.validation, self.test)
            split_of = {name: split for split, members in names.items() for name in members}
            place = {entry.id: split_of[entry.file] for entry in entries}
        for entry in entries:
            divided[place[entry.id]].append(entry)
        return divided

    def _nothing_usable(self, root: Path) -> str:
        if skipped := self.report:
            return f"no usable audio in {root.absolute()}:\n  " + "\n  ".join(skipped[:10])
        if self.manifest:
            return f"the manifest {self.manifest} names no files"
        return _without_audio(root)


def _without_audio(root: Path) -> str:
    suffixes = Counter(printable(path.suffix) or "none" for path in root.rglob("*") if path.is_file())
    there = ", ".join(f"{count} × {suffix}" for suffix, count in suffixes.most_common(5)) or "nothing"
    return f"no audio files (.wav, .flac, .ogg, .mp3 …) in {root.absolute()}: found {there}"


def _audio_files(root: Path, note: Callable[[str, str], Any]) -> Iterator[Path]:
    """Everything below a folder that is called like audio, hidden things left out and links to folders followed once.

    Args:
        root: The folder.
        note: Gets a folder that cannot be read, and why.
    """

    def unreadable(error: OSError) -> None:
        note(printable(os.path.relpath(error.filename, root)), f"this folder cannot be read: {error.strerror}")

    seen = set()
    for folder, inner, files in os.walk(root, followlinks=True, onerror=unreadable):
        try:
            status = Path(folder).stat()
        except OSError as error:  # gone since
            unreadable(error)
            continue
        if (status.st_dev, status.st_ino) in seen:
            inner.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        for path in (Path(folder, name) for name in files):
            if not path.name.startswith(".") and path.suffix.lower() in SUFFIXES:
                yield path


def _place(path: str) -> Path:
    """A path as people write it, ``~`` for their home."""
    try:
        return Path(path).expanduser()
    except RuntimeError:  # nobody is called so
        return Path(path)


def _places(path: str, *folders: Path) -> list[Path]:
    """Where a path can lead that is relative to one of these folders, or to where the command runs."""
    return list(dict.fromkeys(folder / _place(path) for folder in (*folders, Path())))


def _with_recordings(fields: dict[str, Any], *folders: Path) -> dict[str, Any]:
    """The same with the paths in fields of audio as the files they lead to.

    Raises:
        PartitaError: One of them cannot be read as audio.
    """

    def found(name: str, value: Any) -> Any:
        if isinstance(value, dict):
            return {key: found(f"{name}.{key}", inner) for key, inner in value.items()}
        if not isinstance(value, Path):
            return value
        places = _places(str(value), *folders)
        path = next((place for place in places if kind(place)), places[0])
        try:
            inspect_audio(path)
        except PartitaError as error:
            raise PartitaError(f"{name}: {printable(path)}: {error}") from None
        return path

    audible = {name for name in fields if field(name).kind == "audio"}
    return {name: found(name, value) if name in audible else value for name, value in fields.items()}


def _damage(path: Path) -> str | None:
    """What is wrong with a file; none if nothing."""
    try:
        check_audio(path)
    except PartitaError as error:
        return str(error)
    return None


def _threads() -> int:
    return min(16, 2 * (os.cpu_count() or 1))
