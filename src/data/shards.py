"""Tokens that `partita tokenize` stored, as a source of examples without audio."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ..core.contracts import Example
from ..core.rates import at_least, exact, nearest
from ..core.registry import lookup, names, register
from ..core.seeds import derive_seed
from ..errors import PartitaError, printable
from ..storage.cache import default_cache_dir
from ..storage.files import kind
from ..storage.object_store import fetch_file, is_remote
from ..storage.shard_folder import INDEX, ShardReader, check_index, require_litdata
from .base import UNKNOWN_LICENSE, Origin, Source, Split, StoredNeed, Summary, UnreadableClip
from .fields.base import crop_fields, parse_value
from .mixture import Mixture
from .token_catalog import CATALOG, PLAN, SPLITS, Catalog, read_catalog


@register("data", "shards")
class Shards(Source):
    """Tokens that `partita tokenize` stored. Stages are trained on them without reading or encoding audio.

    Examples carry codes or latents, the outputs of frozen conditioners, and the fields of the data, but no audio. Their
    order and the positions of their crops in whole pieces follow the same seeds as those of the data from which they
    were made; a crop starts at a frame. Splits are the same. The tokens belong to certain weights of tokenizers and
    conditioners, and stages refuse those of others.

    Args:
        path: Folder of the shards, or a URL of object storage (``s3://…``, ``gs://…``, ``r2://…``), from which shards
            are copied to ``$PARTITA_CACHE`` when they are needed.
        license: License of the music for reports and model cards. ``None`` takes that of the data that was stored.
    """

    fields_known = False
    carries_audio = False
    license_option = "`license` of the shards"

    def __init__(self, path: str, license: str | None = None) -> None:
        if not path:
            raise ValueError("path is empty: give the folder that `partita tokenize` wrote")
        self.path, self.license = path, license
        self.fields = frozenset({*(name for name in names("field") if lookup("field", name).kind != "audio"), "id"})
        self._catalog: Catalog | None = None
        self._readers: dict[Split, ShardReader] = {}
        self._starts: dict[Split, np.ndarray] = {}

    def missing(self) -> list[tuple[str, str]]:
        """Return an error if the folder is missing or incomplete."""
        wrong = None if is_remote(self.path) else _incomplete(_expanded(self.path))
        return [("path", wrong)] if wrong else []

    def setup(self) -> None:
        """Read the catalog and check the index of every split.

        Raises:
            PartitaError: The folder is missing, incomplete or damaged, or another version of Partita wrote it.
        """
        if self._catalog is not None:
            return
        require_litdata()
        folder, remote = (self._fetched(), True) if is_remote(self.path) else (_expanded(self.path), False)
        if not remote and (wrong := _incomplete(folder)):
            raise PartitaError(wrong)
        catalog = read_catalog(folder)
        if not catalog.counts:
            raise PartitaError(f"{self.path} is incomplete: run `partita tokenize` again, which finishes it")
        for split in SPLITS:
            counts = np.array(catalog.counts[split], np.int64)
            self._starts[split] = np.concatenate([[0], np.cumsum(counts)])
            if not len(counts):
                continue
            if remote:
                fetch_file(self.path, f"{split}/{INDEX}", folder / split / INDEX)
            check_index(folder / split, int(counts.sum()), shards=not remote)
            self._readers[split] = ShardReader(folder / split, f"{self.path.rstrip('/')}/{split}" if remote else None)
        self._catalog = catalog
        self.fields = frozenset({*catalog.fields, "id", "seconds_start", "seconds_total"})
        self.fields_known = True

    @property
    def catalog(self) -> Catalog:
        """The catalog of the folder."""
        self.setup()
        assert self._catalog is not None
        return self._catalog

    @property
    def stored_keys(self) -> frozenset[str]:  # type: ignore[override]
        """The keys of the stored conditions."""
        return frozenset(self.catalog.conditions)

    def size(self, split: Split) -> int:
        """Return the number of pieces in a split."""
        return self.catalog.pieces(split)

    def draw(self, split: Split, number: int, seed: int, attempt: int = 0) -> tuple[int, int]:
        """Draw the same piece and seed as the data from which the tokens were made, also a mixture."""
        members = self.catalog.members
        if len(members) == 1:
            return super().draw(split, number, seed, attempt)
        sizes = [_Counted(member["splits"]) for member in members]
        return Mixture(sizes, [member["weight"] for member in members]).draw(split, number, seed, attempt)

    def read(
        self, split: Split, index: int, *, seed: int, seconds: float | None, sample_rate: int, channels: int
    ) -> Example:
        """Read a crop of the tokens of a piece; see :meth:`~partita.data.base.Source.read`.

        Raises:
            UnreadableClip: The audio of this piece could not be read when its tokens were stored.
            PartitaError: A shard is damaged.
        """
        catalog, versions = self.catalog, self.catalog.versions[split]
        reading = index * versions + version_of(seed, versions)
        first, count = int(self._starts[split][reading]), catalog.counts[split][reading]
        tensors, values = self._example(split, first)
        whole, crop_id = values["seconds"], values["crop_id"]
        start, length = Fraction(0), whole if seconds is None else min(seconds, whole)
        if seconds is None and count > 1:
            raise PartitaError(f"{values['id']} is too long to be read as a whole: its tokens are stored in excerpts")
        if seconds is not None:
            start = crop_start(catalog, crop_id, seed, whole, seconds)
        number = min(int(start / exact(catalog.hop)), count - 1)
        if number:
            tensors, values = self._example(split, first + number)
        local = start - number * exact(catalog.hop)
        num_samples = round(length * sample_rate)
        fields = _cropped_fields(values["fields"], float(local), num_samples / sample_rate) | {"id": values["id"]}
        representations, conditions = self._cropped(tensors, local, length)
        return Example(None, num_samples, fields, representations=representations, conditions=conditions)

    def verify(self) -> Iterator[tuple[str, str | None]]:
        """Read every example once, and yield its piece and error, if any."""
        for split, reader in self._readers.items():
            for number in range(int(self._starts[split][-1])):
                try:
                    yield str(reader[number][1].get("id")), None
                except PartitaError as error:
                    yield f"{split} {number}", str(error)

    def unsuitable(self, needs: Sequence[StoredNeed]) -> str | None:
        """Return which part differs from the one that made the tokens."""
        catalog = self.catalog
        again = "run `partita tokenize` again with this recipe, or use the weights with which the shards were made"
        for need in needs:
            made = catalog.parts.get(need.part)
            if need.key not in catalog.representations and need.key not in catalog.conditions:
                if made is not None and not need.key.startswith(made["fingerprint"]):
                    return f"shards in {self.path} are of another {need.part}: {_differs(made, need)}; {again}"
                if need.required:
                    return f"shards in {self.path} hold nothing of {need.part}, which reads audio; {again}"
            excerpts = not catalog.whole or any(n > 1 for found in catalog.counts.values() for n in found)
            whole_clips = need.key in catalog.representations and catalog.representations[need.key] is None
            if whole_clips and need.window < catalog.window - 1e-9:
                return (
                    f"shards in {self.path} hold clips of {catalog.window:g} s of {need.part}, which cannot be "
                    f"cropped, but a stage has a window of {need.window:g} s; {again}"
                )
            if excerpts and need.window > catalog.window + 1e-9:
                return (
                    f"shards in {self.path} hold excerpts for windows of up to {catalog.window:g} s, but a stage has a "
                    f"window of {need.window:g} s; {again}"
                )
        return None

    @property
    def summary(self) -> Summary:
        """The numbers of pieces, as in the data from which the tokens were made."""
        members = self.catalog.members
        units, seconds = {member["unit"] for member in members}, [member["seconds"] for member in members]
        return Summary(
            units.pop() if len(units) == 1 else "piece",
            {split: self.size(split) for split in SPLITS},
            sum((Counter(member["known"]) for member in members), Counter()),
            None if None in seconds else math.fsum(seconds),
        )

    @property
    def label(self) -> str:
        """Name of the folder."""
        return printable(self.path.rstrip("/").rpartition("/")[2]) or self.registered_name

    @property
    def origins(self) -> Sequence[Origin]:
        """What the stored data was made of, with its licenses."""
        if self.license is not None:
            return [Origin(f"tokens in {self.label}", self.license)]
        catalog = self._catalog
        if catalog is None and not self.missing() and not is_remote(self.path):
            with suppress(PartitaError):  # setup reports it
                catalog = read_catalog(_expanded(self.path))
        if catalog is None:
            return [Origin(f"tokens in {self.label}", UNKNOWN_LICENSE)]
        return [Origin(printable(what), printable(given)) for what, given in catalog.origins]

    def _example(self, split: Split, number: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors, values = self._readers[split][number]
        match values:
            case {"damaged": str(reason), "id": str(piece)}:
                raise UnreadableClip(printable(piece), printable(reason))
            case {"id": str(), "crop_id": str(), "seconds": int() | float() as seconds, "fields": dict()} if (
                0 < seconds < math.inf
            ):
                return tensors, values
        raise PartitaError(f"{self.path}: example {number} is damaged: run `partita tokenize` again")

    def _cropped(
        self, tensors: Mapping[str, Tensor], start: Fraction, seconds: float
    ) -> tuple[dict[str, Tensor], dict[str, tuple[Tensor, Tensor]]]:
        """Return the representations and conditions of a crop."""
        catalog, representations, conditions = self.catalog, {}, {}
        try:
            for key, rate in catalog.representations.items():
                representations[key] = _crop(tensors[f"representation {key}"], start, seconds, rate)
            for key, rate in catalog.conditions.items():
                values, mask = tensors[f"condition {key}"], tensors[f"mask {key}"]
                along = 0 if values.is_floating_point() else 1
                conditions[key] = _crop(values, start, seconds, rate, along), _crop(mask, start, seconds, rate).bool()
        except (KeyError, IndexError) as error:
            raise PartitaError(f"{self.path} lacks {error}: run `partita tokenize` again") from None
        return representations, conditions

    def _fetched(self) -> Path:
        """Return a folder of the cache with the catalog of object storage. Another catalog has another folder."""
        cache = default_cache_dir() / "shards"
        catalog = fetch_file(self.path, CATALOG, cache / hashlib.sha256(self.path.encode()).hexdigest()[:32] / CATALOG)
        content = hashlib.sha256(self.path.encode() + catalog.read_bytes()).hexdigest()[:32]
        folder = cache / content
        folder.mkdir(parents=True, exist_ok=True)
        (folder / CATALOG).write_bytes(catalog.read_bytes())
        return folder


class _Counted(Source):
    """A source of which only the sizes are known, to draw pieces from."""

    def __init__(self, sizes: Mapping[str, int]) -> None:
        self.sizes, self.fields = sizes, frozenset()

    label = ""

    def setup(self) -> None:
        """Do nothing."""

    def size(self, split: Split) -> int:
        """Return the number of pieces in a split."""
        return self.sizes[split]

    def read(self, split: Split, index: int, **_: Any) -> Example:
        """Raise an error."""
        raise NotImplementedError


def version_of(seed: int, versions: int) -> int:
    """Return which of the stored versions of a piece is read with a seed."""
    return derive_seed(seed, "version") % versions if versions > 1 else 0


def crop_start(catalog: Catalog, crop_id: str, seed: int, whole: float, seconds: float) -> Fraction:
    """Return where the crop that is read with a seed starts, in seconds.

    Args:
        catalog: The catalog of the shards.
        crop_id: Name of the piece within its source.
        seed: Seed to read with.
        whole: Length of the stored piece or clip, in seconds.
        seconds: Length of the crop.
    """
    digest = hashlib.sha256(f"{crop_id}/{seed}".encode()).digest()
    fraction = np.random.default_rng(int.from_bytes(digest)).random()
    step, last = Fraction(catalog.step), max(0.0, whole - seconds)
    return min(round(exact(fraction * last) / step), math.floor(exact(last) / step)) * step


def _crop(values: Tensor, start: Fraction, seconds: float, rate: float | None, along: int = -1) -> Tensor:
    """Return the frames that begin within a crop. What is not aligned in time is returned as a whole."""
    if rate is None:
        return values
    first = nearest(float(start), rate)
    return values.narrow(along, first, max(0, min(at_least(seconds, rate), values.shape[along] - first))).clone()


def _cropped_fields(fields: Mapping[str, Any], start: float, seconds: float) -> dict[str, Any]:
    """Return fields of a crop, with the types that they have in memory. To parse only the crop takes half the time.

    Raises:
        PartitaError: A value is invalid.
    """
    known = names("field")
    try:
        cropped = crop_fields(fields, start, seconds)
        return {name: parse_value(name, value) if name in known else value for name, value in cropped.items()}
    except (ValueError, TypeError, AttributeError, ArithmeticError) as error:
        raise PartitaError(f"a field of the shards is invalid ({error}): run `partita tokenize` again") from None


def _differs(made: Mapping[str, Any], need: StoredNeed) -> str:
    """Return what differs between the part that made the tokens and the one of the recipe."""
    theirs, ours = dict(_leaves(made["config"])), dict(_leaves(json.loads(json.dumps(need.config, default=str))))
    for name in [*ours, *theirs]:
        if ours.get(name) != theirs.get(name):
            label = name.removeprefix("arguments.")
            return f"{label} was {theirs.get(name)!r:.80} and is {ours.get(name)!r:.80}"
    return "its weights differ"


def _leaves(value: Any, at: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _leaves(inner, f"{at}.{key}" if at else str(key))
    else:
        yield at, value


def _incomplete(folder: Path) -> str | None:
    """Return why a folder holds no complete shards; ``None`` if it does."""
    if kind(folder) != "folder":
        return f"no folder of shards: {folder.absolute()} {'is a file' if kind(folder) else 'does not exist'}"
    if kind(folder / CATALOG) == "file":
        return None
    if kind(folder / PLAN) == "file":
        return f"{folder} is incomplete: run the same `partita tokenize` command again, which finishes it"
    return f"{folder} holds no shards (no {CATALOG}): `partita tokenize RECIPE --output {folder}` writes them"


def _expanded(path: str) -> Path:
    try:
        return Path(path).expanduser()
    except RuntimeError:  # there is no such user
        return Path(path)
