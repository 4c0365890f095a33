"""Hugging Face data sets as a source: on the Hub, saved to disk, or Parquet files."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..core.contracts import Example
from ..core.registry import did_you_mean, lookup, register
from ..errors import PartitaError, printable
from ..storage.audio_file import check_audio, inspect_audio, read_clip
from ..storage.files import kind
from .annotations import manifest_fields
from .base import UNKNOWN_LICENSE, Origin, Source, Split, Summary, UnreadableClip
from .fields.base import crop_fields, parse_value
from .hub_rows import BLOCK, Rows, Stream, Table, audio_path, expanded, first_line, load_splits, require_datasets
from .splits import check_fractions, split_names

ALIASES: dict[Split, tuple[str, ...]] = {
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "eval"),
}
"""Names of held-out splits in data sets."""


@dataclass(frozen=True)
class HubOptions:
    """Further options of a data set.

    Args:
        config: Configuration of the repository, if it has several.
        revision: Branch, tag or commit of the repository. ``None`` uses the main branch.
        rows: Number of rows of the training split, for streams that do not state it.
        validation: Fraction of the rows for validation, if the data set has no such split.
        test: Fraction of the rows for testing, if the data set has no such split.
        license: License of the music for reports and model cards, such as ``CC BY 4.0``.
    """

    config: str | None = None
    revision: str | None = None
    rows: int | None = None
    validation: float = 0.05
    test: float = 0.05
    license: str | None = None

    def __post_init__(self) -> None:
        check_fractions(self.validation, self.test)
        if self.rows is not None and self.rows < 1:
            raise ValueError(f"rows must be at least 1, not {self.rows}")


@register("data", "hub")
class HubData(Source):
    """A Hugging Face data set with a column of audio, from the Hub, a saved folder, or Parquet files.

    Columns that are called like a field (``text``, ``tempo``, ``chords`` …, see ``partita list field``) supply it, and
    ``columns`` assigns others. Audio is decoded like that of ``folder``; times are in seconds from its start. Splits of
    the data set called validation and test are used as such. Otherwise, rows of the training split are held out by the
    hash of their number. Unreadable rows are skipped, and listed in :attr:`report`. No code of a repository is run.

    Args:
        repository: Hub id of the data set (``user/name``). Set either this or ``path``.
        path: A folder that ``save_to_disk`` wrote, a folder of Parquet files, or one such file.
        split: Split of the data set for training.
        audio: Column of the audio.
        text: Column of the captions. ``None`` uses a column called text or caption, if there is one.
        columns: Columns of other fields, by field: ``{tempo: bpm}``.
        streaming: Whether rows are fetched when they are needed, and not stored. They are then read nearly in order,
            and every worker process fetches all rows.
        options: Further options, which are needed less often.
    """

    fields_known = False
    license_option = "`options.license` of the data"

    def __init__(
        self,
        repository: str | None = None,
        path: str | None = None,
        split: str = "train",
        audio: str = "audio",
        text: str | None = None,
        columns: dict[str, str] | None = None,
        streaming: bool = False,
        options: HubOptions = HubOptions(),
    ) -> None:
        if (repository is None) == (path is None):
            raise ValueError("set either repository (a hub id) or path (a folder or a Parquet file)")
        known = plain_fields()
        for name in columns or {}:
            if name not in known:
                raise ValueError(f"columns: there is no field {name!r}{did_you_mean(name, sorted(known))}")
        self.repository, self.path, self.split = repository, path, split
        self.audio, self.streaming, self.options = audio, streaming, options
        self.assigned = {known[name]: column for name, column in (columns or {}).items()}
        if text is not None:
            self.assigned["text"] = text
        self.fields = frozenset({*known.values(), "id"})
        self._rows: dict[str, Rows] = {}
        self._pieces: dict[Split, tuple[str, list[int]]] = {}
        self._columns: dict[str, str] = {}

    def missing(self) -> list[tuple[str, str]]:
        """Return an error if the folder or file is missing."""
        if self.path is None or kind(expanded(self.path)) in ("folder", "file"):
            return []
        return [("path", f"no data set: {expanded(self.path).absolute()} does not exist")]

    def setup(self) -> None:
        """Load the data set and divide its rows. Afterwards, :attr:`fields` lists the fields of its columns.

        Raises:
            PartitaError: There is no such data set, split or column.
        """
        if self._pieces:
            return
        require_datasets()
        if wrong := [line for _, line in self.missing()]:
            raise PartitaError("\n".join(wrong))
        config, revision = self.options.config, self.options.revision
        found = load_splits(self.path, self.repository, config, revision, self.streaming)
        if self.split not in found:
            raise PartitaError(
                f"{self._name} has no split {self.split!r}{did_you_mean(self.split, [str(name) for name in found])}"
            )
        used = {"train": self.split}
        for split, aliases in ALIASES.items():
            name = next((name for name in aliases if name in found and name != self.split), None)
            if name is not None:
                used[split] = name
        rows = {name: self._undecoded(name, found[name]) for name in used.values()}
        columns = rows[self.split].columns
        self._columns = self._assign(columns)
        pieces: dict[Split, tuple[str, list[int]]] = {}
        for split in ALIASES:
            if split in used:
                pieces[split] = (used[split], list(range(len(rows[used[split]]))))
        numbers = [str(number) for number in range(len(rows[self.split]))]
        dealt = split_names(
            numbers,
            0.0 if "validation" in used else self.options.validation,
            0.0 if "test" in used else self.options.test,
        )
        for split, mine in dealt.items():
            pieces.setdefault(split, (self.split, [int(number) for number in mine]))
        self._rows, self._pieces = rows, pieces
        self.fields = frozenset({*self._columns, "id", "seconds_start", "seconds_total"})
        self.fields_known = True

    def size(self, split: Split) -> int:
        """Return the number of rows in a split."""
        self.setup()
        return len(self._pieces[split][1])

    def draw(self, split: Split, number: int, seed: int, attempt: int = 0) -> tuple[int, int]:
        """Draw a row. Rows of a stream come in random order within blocks, as they cannot be read in any order."""
        if not self.streaming:
            return super().draw(split, number, seed, attempt)
        size = self.size(split)
        epoch, position = divmod(number, size)
        key = (seed, epoch, position, *([attempt] if attempt else []))
        begin = position - position % BLOCK
        order = np.random.default_rng((seed, epoch, begin)).permutation(min(BLOCK, size - begin))
        place = int(order[(position - begin + attempt) % len(order)])
        return begin + place, int(np.random.default_rng(key).integers(2**31))

    def read(
        self, split: Split, index: int, *, seed: int, seconds: float | None, sample_rate: int, channels: int
    ) -> Example:
        """Read a clip from a random position of a row's audio; see :meth:`~partita.data.base.Source.read`.

        Raises:
            UnreadableClip: The audio cannot be decoded, or a value does not fit its field.
        """
        self.setup()
        piece, row = self._row(split, index)
        try:
            fields = self._fields(row)
            with audio_path(row.get(self.audio), self._roots) as path:
                audio, num_samples, start, whole = _clip(path, f"{piece}/{seed}", seconds, sample_rate, channels)
        except PartitaError as error:
            raise UnreadableClip(piece, str(error)) from None
        fields = {"seconds_start": 0.0, "seconds_total": whole} | fields
        fields = crop_fields(fields, start, num_samples / sample_rate) | {"id": piece}
        return Example(torch.from_numpy(audio), num_samples, fields)

    def verify(self) -> Iterator[tuple[str, str | None]]:
        """Decode the audio of every row once, and yield the name of the row and its error, if any."""
        for split in self._pieces:
            for index in range(self.size(split)):
                piece, row = self._row(split, index)
                try:
                    self._fields(row)
                    with audio_path(row.get(self.audio), self._roots) as path:
                        check_audio(path)
                except PartitaError as error:
                    yield piece, str(error)
                else:
                    yield piece, None

    @property
    def summary(self) -> Summary:
        """The numbers of rows, and of those with each field, which is not known of streams."""
        sizes: dict[Split, int] = {split: self.size(split) for split in ("train", "validation", "test")}
        known: Counter[str] = Counter()
        for name in {name for name, _ in self._pieces.values()}:
            rows = self._rows[name]
            for field, column in self._columns.items():
                known[field] += rows.known(column) if isinstance(rows, Table) else len(rows)
        return Summary("row", sizes, known)

    @property
    def label(self) -> str:
        """Name of the repository, the folder or the file."""
        name = self.repository or expanded(self.path or "").absolute().name
        return printable(name) or self.registered_name

    @property
    def origins(self) -> Sequence[Origin]:
        """The data set, with the license that its user states."""
        where = f"the data set {self.repository}" if self.repository else f"the data set in {self.label}"
        return [Origin(where, self.options.license or UNKNOWN_LICENSE)]

    def advice(self, field: str) -> str:
        """Return how to name the column of a missing field."""
        known = plain_fields().values()
        return f"name its column in `columns: {{{field}: COLUMN}}` of the data" if field in known else ""

    @property
    def _name(self) -> str:
        return self.repository or str(self.path)

    @property
    def _roots(self) -> list[Path] | None:
        """The folders that may contain the files that rows of a repository name."""
        if self.repository is None:
            return None
        from huggingface_hub import constants

        config = require_datasets().config
        return [Path(root).resolve() for root in (constants.HF_HUB_CACHE, config.HF_DATASETS_CACHE)]

    def _undecoded(self, name: str, dataset: Any) -> Rows:
        """Return the rows of a split, with the files of the audio as they are."""
        datasets = require_datasets()
        columns = list(dataset.column_names or [])
        if self.audio not in columns:
            raise PartitaError(
                f"{self._name} has no column {self.audio!r}{did_you_mean(self.audio, columns)}: set `audio` of the data"
            )
        if isinstance((dataset.features or {}).get(self.audio), datasets.Audio):
            dataset = dataset.cast_column(self.audio, datasets.Audio(decode=False))
        if hasattr(dataset, "__len__"):
            return Table(dataset)
        stated = (dataset.info.splits or {}).get(name)
        rows = (self.options.rows if name == self.split else None) or (stated.num_examples if stated else None)
        if not rows:
            raise PartitaError(
                f"{self._name}: the stream does not state its number of rows: set `options.rows` of the data, or "
                "streaming: false"
            )
        return Stream(dataset, rows)

    def _assign(self, columns: Sequence[str]) -> dict[str, str]:
        """Return the column of each field."""
        for field, column in self.assigned.items():
            if column not in columns:
                raise PartitaError(f"{self._name} has no column {column!r} for {field}{did_you_mean(column, columns)}")
        known = plain_fields()
        found = {known[column]: column for column in columns if column in known and column != self.audio}
        return found | self.assigned

    def _row(self, split: Split, index: int) -> tuple[str, Mapping[str, Any]]:
        name, numbers = self._pieces[split]
        piece = f"{name}/{numbers[index]}"
        try:
            return piece, self._rows[name][numbers[index]]
        except PartitaError as error:
            raise UnreadableClip(piece, str(error)) from None
        except Exception as error:  # pyarrow and the clients of the network raise errors of many kinds
            raise UnreadableClip(piece, f"this row cannot be read: {first_line(error)}") from None

    def _fields(self, row: Mapping[str, Any]) -> dict[str, Any]:
        fields = {}
        for field, column in self._columns.items():
            try:
                value = parse_value(field, row.get(column))
            except ValueError as error:
                raise PartitaError(f"{column} {error}") from None
            if value is not None and not (isinstance(value, str | list | dict) and not value):
                fields[field] = value
        return fields


def plain_fields() -> dict[str, str]:
    """Return the fields that a column can supply, by each of their names. Values of audio could name any file."""
    return {name: field for name, field in manifest_fields().items() if lookup("field", field).kind != "audio"}


def _clip(
    path: Path, key: str, seconds: float | None, sample_rate: int, channels: int
) -> tuple[np.ndarray, int, float, float]:
    """Return a clip of a file, its number of samples, its start, and the length of the file in seconds."""
    whole, start = inspect_audio(path).seconds, 0.0
    if seconds is not None:
        fraction = np.random.default_rng(int.from_bytes(hashlib.sha256(key.encode()).digest())).random()
        start = round(fraction * max(0.0, whole - seconds) * sample_rate) / sample_rate
    try:
        return *read_clip(path, start, seconds, sample_rate, channels), start, whole
    except PartitaError as error:  # the path may be that of a temporary file
        raise PartitaError(str(error).removeprefix(f"{printable(path)}: ")) from None
