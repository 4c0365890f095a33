"""A folder of audio files, with captions from a manifest or from sidecar files."""

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
from .annotations import FILE_KEYS, manifest_fields, parse_row, read_manifest, read_sidecar
from .base import UNKNOWN_LICENSE, Origin, Source, Split, Summary, UnreadableClip
from .fields.base import crop_fields, field
from .splits import check_fractions, split_names


@dataclass
class Entry:
    """An example of a folder. ``id`` is the name of its ``file``, numbered if the file has several captions."""

    id: str
    file: str
    path: Path
    fields: dict[str, Any]
    split: Split | None = None
    seconds: float = 0.0


@register("data", "folder")
class Folder(Source):
    """A folder of audio files of any format, sample rate and length, captioned by a manifest or sidecar files.

    Without a manifest, every audio file below the folder is used. Its fields are in sidecar files: for ``song.wav``,
    the caption in ``song.txt``, or an object with any fields in ``song.json`` (``text``, ``lyrics``, ``tempo``,
    ``chords`` …, see ``partita list field``). A manifest has a row for each file to use, with its path in ``file`` (or
    ``path``, ``audio``), its fields, and optionally its ``split``. The path is absolute, or relative to the manifest,
    the folder or the working directory. Times are in seconds from the start of the file. Unreadable files are skipped
    and listed in :attr:`report`.

    The hash of its name puts a file into a split, unless the manifest names splits; files without one are then for
    training. All rows of a file are in the same split. With three or more files, each split gets at least one.

    Args:
        path: The folder.
        manifest: A ``.jsonl``, ``.csv`` or ``.tsv`` file, in the folder or elsewhere. ``None`` uses sidecar files.
        validation: Fraction of the files for validation.
        test: Fraction of the files for testing.
        license: License of the files for reports and model cards, such as ``CC BY 4.0``.
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
        self._splits: dict[Split, list[Entry]] | None = None
        self._unnamed = 0

    def setup(self) -> None:
        """Inspect every file once. Afterwards, :attr:`fields` lists the fields of at least one file.

        Raises:
            PartitaError: The folder or the manifest is missing, or no file is usable.
        """
        if self._splits is not None:
            return
        if wrong := [line for _, line in self.missing()]:
            raise PartitaError("\n".join(wrong))
        root = _expanded(self.path)
        found = list(self._from_manifest(root) if self.manifest else self._from_sidecars(root))
        if self.manifest:
            named = {os.path.realpath(entry.path) for entry in found}  # also resolves cyclic links without an error
            there = audio_files(root, lambda name, wrong: None)
            self._unnamed = sum(os.path.realpath(path) not in named for path in there)
        with ThreadPoolExecutor(_threads()) as pool:
            entries = [entry for entry in pool.map(self._inspect, found) if entry is not None]
        skipped = self.report
        if not entries:
            raise PartitaError(self._no_files_message(root))
        if skipped:
            warnings.warn(
                f"{root}: {len(skipped)} skipped, {len(entries)} used\n  " + "\n  ".join(skipped[:10]),
                stacklevel=2,
            )
        self._splits = self._divide(entries)
        known = {name for entry in entries for name in entry.fields}
        self.fields = frozenset(known | {"id", "seconds_start", "seconds_total"})
        self.fields_known = True

    def size(self, split: Split) -> int:
        """Return the number of files in a split."""
        return len(self._entries(split))

    @property
    def summary(self) -> Summary:
        """The number of files, their total duration, and the number of files with each field."""
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
            f"{self._unnamed:,} more in the folder are not used (not in {Path(self.manifest or '').name})"
            if self._unnamed
            else "",
        )

    @property
    def label(self) -> str:
        """Name of the folder."""
        return printable(_expanded(self.path).absolute().name) or self.registered_name

    @property
    def origins(self) -> list[Origin]:
        """The files, with the license that their owner states."""
        return [Origin(f"audio files in {self.label}", self.license or UNKNOWN_LICENSE)]

    def advice(self, field: str) -> str:
        """Return where to write a missing field."""
        if field not in manifest_fields():
            return ""
        what = "each caption" if field == "text" else f"the {field} of each file"
        if self.manifest:
            return f"write {what} into `{field}` of {self.manifest}"
        beside = "beside it, in song.txt for song.wav" if field == "text" else "into song.json beside song.wav"
        return f"write {what} {beside}, or into `{field}` of a manifest"

    def missing(self) -> list[tuple[str, str]]:
        """Return errors about the folder and the manifest: whether they exist, and whether the folder holds audio."""
        root, missing = _expanded(self.path), []
        if kind(root) != "folder":
            there = "is a file; give a folder" if kind(root) else "does not exist (give yours, as in data.path=/music)"
            missing.append(("path", f"no folder of audio files: {root.absolute()} {there}"))
        elif not self.manifest and not any(True for _ in audio_files(root, lambda name, wrong: None)):
            missing.append(("path", _no_audio_message(root)))
        if self.manifest and not any(kind(place) == "file" for place in candidate_paths(self.manifest, root)):
            tried = ", ".join(str(place.absolute()) for place in candidate_paths(self.manifest, root))
            missing.append(("manifest", f"no manifest {self.manifest}: tried {tried}"))
        return missing

    def verify(self) -> Iterator[tuple[str, str | None]]:
        """Decode every file once, and yield its name and error, if any."""
        files = {entry.file: entry.path for split in ("train", "validation", "test") for entry in self._entries(split)}
        with ThreadPoolExecutor(_threads()) as pool:
            yield from zip(files, pool.map(_decoding_error, files.values()), strict=True)

    def read(
        self, split: Split, index: int, *, seed: int, seconds: float | None, sample_rate: int, channels: int
    ) -> Example:
        """Read a clip from a random position of a file; see :meth:`~partita.data.base.Source.read`.

        Raises:
            UnreadableClip: The file cannot be decoded at this position, or has been damaged since :meth:`setup`.
        """
        entry = self._entries(split)[index]
        start = 0.0
        if seconds is not None:
            digest = hashlib.sha256(f"{entry.id}/{seed}".encode()).digest()
            fraction = np.random.default_rng(int.from_bytes(digest)).random()
            start = round(fraction * max(0.0, entry.seconds - seconds) * sample_rate) / sample_rate
        try:
            audio, num_samples = self._clip(entry, start, seconds, sample_rate, channels)
        except PartitaError as error:
            raise UnreadableClip(entry.file, str(error).removeprefix(f"{printable(entry.path)}: ")) from None
        fields = {"seconds_start": 0.0, "seconds_total": entry.seconds} | entry.fields
        fields = crop_fields(fields, start, num_samples / sample_rate) | {"id": entry.id}
        return Example(torch.from_numpy(audio), num_samples, fields)

    def _clip(
        self, entry: Entry, start: float, seconds: float | None, sample_rate: int, channels: int
    ) -> tuple[np.ndarray, int]:
        """Return a clip of an example; see :func:`~partita.storage.audio_file.read_clip`."""
        return read_clip(entry.path, start, seconds, sample_rate, channels)

    def _entries(self, split: Split) -> list[Entry]:
        self.setup()
        assert self._splits is not None
        return self._splits[split]

    def _from_sidecars(self, root: Path) -> Iterator[Entry]:
        for path in sorted(audio_files(root, self.note)):
            name = printable(path.relative_to(root).as_posix())
            try:
                fields = parse_row(read_sidecar(path))[0]
                yield Entry(name, name, path, _with_recordings(fields, path.parent, root))
            except PartitaError as error:
                self.note(name, str(error))

    def _from_manifest(self, root: Path) -> Iterator[Entry]:
        manifest = next(place for place in candidate_paths(str(self.manifest), root) if kind(place) == "file")
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
            # normalized, so that a file has one name and all of its rows are in one split
            tried = [Path(os.path.normpath(place.absolute())) for place in candidate_paths(file, manifest.parent, root)]
            path = next((place for place in tried if kind(place)), None)
            if path is None:
                places = ", ".join(printable(place) for place in tried)
                self.note(printable(file), f"there is no such file: {where}, tried {places}")
                continue
            inside = path.is_relative_to(root.absolute())
            name = printable((path.relative_to(root.absolute()) if inside else Path(file)).as_posix())
            seen[name] += 1
            try:
                fields, split = parse_row(row)
                fields = _with_recordings(fields, manifest.parent, root)
            except PartitaError as error:
                self.note(f"{where} ({name})", str(error))
                continue
            # A file with several captions is several examples, which must be in one split.
            if split is not None and split_of.setdefault(name, split) != split:
                self.note(f"{where} ({name})", f"an earlier row puts it into {split_of[name]}, this one into {split}")
                continue
            repeated = f"#{seen[name]}" if seen[name] > 1 else ""
            yield Entry(name + repeated, name, path, fields, split)

    def _inspect(self, entry: Entry) -> Entry | None:
        try:
            entry.seconds = inspect_audio(entry.path).seconds
        except PartitaError as error:
            self.note(entry.file, str(error))
            return None
        return entry

    def _divide(self, entries: list[Entry]) -> dict[Split, list[Entry]]:
        divided: dict[Split, list[Entry]] = {"train": [], "validation": [], "test": []}
        if named := {entry.file: entry.split for entry in entries if entry.split}:
            place = {entry.id: named.get(entry.file, "train") for entry in entries}
        else:
            names = split_names(list(dict.fromkeys(entry.file for entry in entries)), self.validation, self.test)
            split_of = {name: split for split, members in names.items() for name in members}
            place = {entry.id: split_of[entry.file] for entry in entries}
        for entry in entries:
            divided[place[entry.id]].append(entry)
        return divided

    def _no_files_message(self, root: Path) -> str:
        if skipped := self.report:
            return f"no usable audio in {root.absolute()}:\n  " + "\n  ".join(skipped[:10])
        if self.manifest:
            return f"the manifest {self.manifest} names no files"
        return _no_audio_message(root)


def _no_audio_message(root: Path) -> str:
    suffixes = Counter(printable(path.suffix) or "none" for path in root.rglob("*") if path.is_file())
    there = ", ".join(f"{count} × {suffix}" for suffix, count in suffixes.most_common(5)) or "nothing"
    return f"no audio files (.wav, .flac, .ogg, .mp3 …) in {root.absolute()}: found {there}"


def audio_files(root: Path, note: Callable[[str, str], Any]) -> Iterator[Path]:
    """Yield the files below a folder with an audio suffix. Hidden files are ignored, and links are followed once.

    Args:
        root: The folder.
        note: Called with each folder that cannot be read, and the reason.
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


def _expanded(path: str) -> Path:
    """Return a path with ``~`` expanded."""
    try:
        return Path(path).expanduser()
    except RuntimeError:  # there is no such user
        return Path(path)


def candidate_paths(path: str, *folders: Path) -> list[Path]:
    """Return the paths that a relative path can mean: below these folders, or below the working directory."""
    return list(dict.fromkeys(folder / _expanded(path) for folder in (*folders, Path())))


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
        places = candidate_paths(str(value), *folders)
        path = next((place for place in places if kind(place)), places[0])
        try:
            inspect_audio(path)
        except PartitaError as error:
            raise PartitaError(f"{name}: {printable(path)}: {error}") from None
        return path

    audible = {name for name in fields if field(name).kind == "audio"}
    return {name: found(name, value) if name in audible else value for name, value in fields.items()}


def _decoding_error(path: Path) -> str | None:
    """Return the error of decoding a file; ``None`` if there is none."""
    try:
        check_audio(path)
    except PartitaError as error:
        return str(error)
    return None


def _threads() -> int:
    return min(16, 2 * (os.cpu_count() or 1))
