"""MusicCaps (arXiv 2301.11325, appendix A): captions of clips from AudioSet, with the audio that a user has."""

from __future__ import annotations

import csv
import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..core.registry import register
from ..errors import PartitaError, printable
from ..storage.audio_file import read_clip
from .annotations import parse_row
from .base import Origin, Split
from .folder import Entry, Folder, audio_files, candidate_paths
from .splits import split_names

COLUMNS = ("ytid", "start_s", "end_s", "caption", "is_balanced_subset", "is_audioset_eval")
"""Columns of MusicCaps's table that are read."""

VIDEO_ID = re.compile(r"(?:^|\[)([\w-]{11})(?=$|[\]_. -])")
"""Id of the video in a file name: at its beginning, or in brackets."""

SLACK = 1.0
"""Seconds by which a file can be longer than its clip without being the whole video."""


@dataclass
class _Clip(Entry):
    """A clip of a video, from ``start`` on. The file holds the ``whole`` video or the clip alone."""

    start: float = 0.0
    whole: bool = False


@register("data", "musiccaps")
class MusicCaps(Folder):
    """The clips of MusicCaps that a user has, with their captions from its table.

    The name of an audio file begins with the id of its video, such as ``-0Gj8-vB1q4.wav`` or ``-0Gj8-vB1q4_30.flac``,
    or contains it in brackets. A file can be the clip alone, of about ten seconds, or the whole video, of which only
    the clip is read. Clips without a file are listed in :attr:`report`. Clips of AudioSet's evaluation split are for
    testing.

    Args:
        csv: MusicCaps's table, ``musiccaps-public.csv``.
        audio: Folder of the audio files.
        balanced: Whether only the 1,000 clips of the balanced subset are used, all of which are for testing.
        validation: Fraction of the other clips for validation.
    """

    def __init__(self, csv: str, audio: str, balanced: bool = False, validation: float = 0.05) -> None:
        if not csv:
            raise ValueError("csv is empty: give the path of musiccaps-public.csv")
        if not audio:
            raise ValueError("audio is empty: give the folder of the audio files")
        super().__init__(audio, csv, validation, 0.0)
        self.balanced = balanced

    @property
    def origins(self) -> list[Origin]:
        """The captions, and the audio, whose licenses are those of the videos."""
        return [
            Origin("captions of MusicCaps", "CC BY-SA 4.0"),
            Origin(f"audio files in {self.label}", "as stated by the owner of each video"),
        ]

    def missing(self) -> list[tuple[str, str]]:
        """Return errors about the folder and the table: whether they exist, and whether the folder has audio."""
        key = {"path": "audio", "manifest": "csv"}
        return [(key[name], line) for name, line in super().missing()]

    def _from_manifest(self, root: Path) -> Iterator[Entry]:
        table = next(place for place in candidate_paths(str(self.manifest), root) if place.is_file())
        files: dict[str, Path] = {}
        for path in sorted(audio_files(root, self.note)):
            for found in VIDEO_ID.finditer(path.stem):  # a title can begin with a word of as many letters
                files.setdefault(found[1], path)
        entries = list(self._rows(table, root, files))
        training = list(dict.fromkeys(entry.id for entry in entries if entry.split == "train"))
        held_out = set(split_names(training, self.validation, 0.0)["validation"]) if training else set()
        seen: Counter[str] = Counter()
        for entry in entries:
            entry.split = "validation" if entry.id in held_out else entry.split
            seen[entry.id] += 1
            entry.id += f"#{seen[entry.id]}" if seen[entry.id] > 1 else ""
            yield entry

    def _rows(self, table: Path, root: Path, files: dict[str, Path]) -> Iterator[Entry]:
        """Yield the clips of the table that have a file, and note the others."""
        for number, row in enumerate(_read(table), 2):
            where = f"{table.name} row {number}"
            if any(row[name] is None for name in COLUMNS):
                self.note(where, "it has fewer cells than the header")
                continue
            if self.balanced and not _true(row["is_balanced_subset"]):
                continue
            name = printable(row["ytid"])
            path = files.get(row["ytid"])
            if path is None:
                self.note(name, "there is no audio file of this video")
                continue
            try:
                fields, _ = parse_row({"text": row["caption"]})
                start, stop = float(row["start_s"]), float(row["end_s"])
            except (PartitaError, ValueError) as error:
                self.note(f"{where} ({name})", str(error))
                continue
            if not 0 <= start < stop < math.inf:
                self.note(f"{where} ({name})", f"there is no clip from {start:g} to {stop:g} s")
                continue
            file, split = printable(path.relative_to(root).as_posix()), _split(row)
            yield _Clip(name, file, path, fields, split, seconds=stop - start, start=start)

    def _inspect(self, entry: Entry) -> Entry | None:
        assert isinstance(entry, _Clip)
        length = entry.seconds
        if super()._inspect(entry) is None:
            return None
        entry.whole = entry.seconds > length + SLACK
        if entry.whole:
            left = entry.seconds - entry.start
            entry.seconds = min(length, left)
            if left <= max(0.0, length - SLACK):
                self.note(entry.file, f"it ends before its clip does, at {entry.start + length:g} s")
                return None
        return entry

    def _clip(
        self, entry: Entry, start: float, seconds: float | None, sample_rate: int, channels: int
    ) -> tuple[np.ndarray, int]:
        assert isinstance(entry, _Clip)
        if not entry.whole:
            return super()._clip(entry, start, seconds, sample_rate, channels)
        left = entry.seconds - start
        audio, num_samples = read_clip(
            entry.path, entry.start + start, left if seconds is None else min(left, seconds), sample_rate, channels
        )
        longer = 0 if seconds is None else max(0, round(seconds * sample_rate) - audio.shape[1])
        return np.pad(audio, ((0, 0), (0, longer))), num_samples


def _read(table: Path) -> list[dict[str, str]]:
    """Return the rows of MusicCaps's table.

    Raises:
        PartitaError: It cannot be read, or is another table.
    """
    try:
        with table.open(encoding="utf-8-sig", errors="replace", newline="") as file:
            reader = csv.DictReader(file)
            there = list(reader.fieldnames or ())
            rows = list(reader)
    except (OSError, csv.Error) as error:
        raise PartitaError(f"cannot read {table}: {error}") from None
    if lacking := [name for name in COLUMNS if name not in there]:
        found = ", ".join(printable(name) for name in there[:10]) or "no columns"
        raise PartitaError(f"{table} is not MusicCaps's table: it lacks {', '.join(lacking)}, and has {found}")
    return rows


def _true(cell: str) -> bool:
    return cell.strip().lower() == "true"


def _split(row: dict[str, Any]) -> Split:
    return "test" if _true(row["is_audioset_eval"]) else "train"
