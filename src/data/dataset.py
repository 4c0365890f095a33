"""A torch ``Dataset`` as a source, for training from a Python program."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..core.contracts import Example
from ..core.excerpt import Excerpt, samples_of
from ..core.registry import names, register
from ..errors import PartitaError
from .base import Source, Split
from .fields.base import crop_fields, field, parse_value
from .splits import check_fractions, split_names

SPLITS: tuple[Split, ...] = ("train", "validation", "test")

_supplied: Any = None


@contextmanager
def supply_dataset(data: Any) -> Iterator[None]:
    """Let sources that are built within this context read from ``data``."""
    global _supplied
    before, _supplied = _supplied, data
    try:
        yield
    finally:
        _supplied = before


def dataset_fields(data: Any) -> list[str]:
    """Return the fields of the first item besides its audio.

    Raises:
        PartitaError: The data is neither a data set nor a mapping of data sets.
    """
    datasets = _by_split(data)
    _, _, fields = _read_item(datasets["train"], 0)
    return sorted(fields)


@register("data", "dataset")
class DatasetSource(Source):
    """A torch ``Dataset``: any object with a length whose items are pieces of music.

    An item is a mapping with ``audio`` (``[T]`` or ``[C, T]``, an array or tensor), ``sample_rate`` in Hz and any
    fields, such as ``text``; or a tuple (audio, sample rate) or (audio, sample rate, text), as in torchaudio. A run
    stores its weights and its recipe, but not its data: pass ``partita.train(…, data=…)`` each time::

        import partita

        music = MyDataset()  # items such as {"audio": array, "sample_rate": 44100, "text": "slow flute"}
        partita.train("chorales-tiny", "runs/mine", data=music)
        audio = partita.load("runs/mine").generate(["slow flute"])

    Args:
        fields: Fields of an item besides audio.
        validation: Fraction of the items for validation, if the data is a single data set.
        test: Fraction of the items for testing, if the data is a single data set.
    """

    def __init__(self, *, fields: tuple[str, ...] = ("text",), validation: float = 0.05, test: float = 0.05) -> None:
        check_fractions(validation, test)
        self.fields = frozenset({*fields, "id", "seconds_start", "seconds_total"})
        self.validation, self.test = validation, test
        self._data = _supplied
        self._pieces: dict[Split, list[tuple[Any, int]]] | None = None

    def setup(self) -> None:
        """Divide the items into splits, unless the data names the splits.

        Raises:
            PartitaError: No data was passed to ``partita.train``.
        """
        if self._pieces is not None:
            return
        if self._data is None:
            raise PartitaError(
                "this system was trained on a torch Dataset, which the run does not store: pass it again with "
                "partita.train(…, data=…)"
            )
        datasets = _by_split(self._data)
        if isinstance(self._data, Mapping):
            self._pieces = {split: [(datasets[split], i) for i in range(_length(datasets, split))] for split in SPLITS}
            return
        dealt = split_names([str(i) for i in range(_length(datasets, "train"))], self.validation, self.test)
        self._pieces = {split: [(datasets["train"], int(name)) for name in dealt[split]] for split in SPLITS}

    def size(self, split: Split) -> int:
        """Return the number of items in a split."""
        return len(self._items(split))

    def read(
        self, split: Split, index: int, *, seed: int, seconds: float | None, sample_rate: int, channels: int
    ) -> Example:
        """Read a clip from a random position of an item; see :meth:`~partita.data.base.Source.read`.

        Raises:
            PartitaError: The item has the wrong type or an invalid value.
        """
        dataset, i = (self._items(split) or self._items(self.fallback_split(split)))[index]
        audio, rate, fields = _read_item(dataset, i)
        whole, start = audio.shape[-1] / rate, 0.0
        if seconds is not None:
            digest = hashlib.sha256(f"{i}/{seed}".encode()).digest()
            fraction = np.random.default_rng(int.from_bytes(digest)).random()
            start = round(fraction * max(0.0, whole - seconds) * rate) / rate
        clip = Excerpt(audio, sample_rate=rate, start=start, seconds=seconds).read(sample_rate, channels)[0]
        length = clip.shape[-1] if seconds is None else round(seconds * sample_rate)
        num_samples = min(length, clip.shape[-1])
        fields = {"seconds_start": 0.0, "seconds_total": whole} | fields
        fields = crop_fields(fields, start, num_samples / sample_rate) | {"id": str(fields.get("id", i))}
        audible = [name for name in fields if name in names("field") and fields[name] is not None]
        fields |= {name: field(name).to_audio(fields[name], sample_rate, channels, rate) for name in audible}
        return Example(F.pad(clip[:, :length], (0, length - num_samples)), num_samples, fields)

    def _items(self, split: Split) -> list[tuple[Any, int]]:
        self.setup()
        assert self._pieces is not None
        return self._pieces[split]


def _by_split(data: Any) -> dict[Split, Any]:
    """Return the data sets by split; a single data set is under ``train``."""
    found: dict[Split, Any] = {}
    for name, dataset in (data if isinstance(data, Mapping) else {"train": data}).items():
        if name not in SPLITS:
            raise PartitaError(
                f"data has the unknown split {name!r}: pass one data set, or a mapping from {', '.join(SPLITS)} to them"
            )
        if not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
            raise PartitaError(
                f"data must be a torch Dataset with a length and numbered items, not {type(dataset).__name__}"
            )
        found[name] = dataset
    if not len(found.get("train", ())):
        raise PartitaError("the data has no training items")
    return found


def _length(datasets: Mapping[Split, Any], split: Split) -> int:
    return len(datasets.get(split, ()))


def _read_item(dataset: Any, index: int) -> tuple[Tensor, int, dict[str, Any]]:
    """Return the audio ``[1, C, T]`` of an item, its sample rate and its fields."""
    item = dataset[index]
    if isinstance(item, Mapping):
        fields = dict(item)
        audio, rate = fields.pop("audio", None), fields.pop("sample_rate", None)
    elif isinstance(item, Sequence) and len(item) >= 2 and not isinstance(item, str | bytes):
        audio, rate = item[:2]
        fields = {"text": item[2]} if len(item) > 2 and isinstance(item[2], str) else {}
    else:
        audio, rate, fields = None, None, {}
    if audio is None or isinstance(rate, bool) or not isinstance(rate, int | np.integer) or rate < 1:
        raise PartitaError(
            f"item {index} of the data must be a mapping with audio and sample_rate, or a tuple of them, not "
            f"{type(item).__name__}{f' with {sorted(map(str, item))}' if isinstance(item, Mapping) else ''}"
        )
    try:
        samples = samples_of(audio)
    except PartitaError as error:
        raise PartitaError(f"item {index} of the data: {error}") from None
    known = names("field")
    for name in fields:
        try:
            fields[name] = parse_value(name, fields[name]) if name in known else fields[name]
        except ValueError as error:
            raise PartitaError(f"item {index} of the data: {name} {error}") from None
    if len(samples) > 1:
        raise PartitaError(f"item {index} of the data: audio must be [T] or [C, T], not {list(samples.shape)}")
    return torch.as_tensor(samples), int(rate), fields
