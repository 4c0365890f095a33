"""The catalog of a folder of shards: which parts made the tokens, of what, and how they are laid out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

from ..errors import PartitaError
from ..limits import LARGEST_INDEX
from ..storage.untrusted import own_file, read_json
from .base import Split

CATALOG = "tokens.json"
"""Name of the file with the catalog. It is written last, so a folder without it is incomplete."""

PLAN = "plan.json"
"""Name of the file with the catalog of a folder that is being written, as yet without the counts."""

FORMAT = 1
"""Increased whenever shards are laid out differently."""

SPLITS: tuple[Split, ...] = ("train", "validation", "test")


@dataclass(frozen=True)
class Catalog:
    """What a folder of shards contains.

    A *reading* is one version of a piece. Its examples are excerpts of the whole piece, each starting ``hop`` seconds
    after the previous one, so that every window lies completely within one of them. Most pieces are one example.

    Args:
        parts: Fingerprint and configuration of each tokenizer and conditioner, by part key.
        representations: Frame rate of each stored representation, by its key; ``None`` without a frame rate.
        conditions: Frame rate of each stored condition, by its key; ``None`` if it is not aligned in time.
        fields: Fields that examples may carry.
        members: Sources of the pieces, with the keys ``label``, ``weight``, ``unit``, ``splits``, ``known`` and
            ``seconds`` (see :class:`~partita.data.base.Summary`).
        origins: Pairs of what the data is made of and its license.
        versions: Number of readings of each piece, by split.
        whole: Whether whole pieces are stored. Otherwise, an example is a clip of ``window`` seconds, drawn at random.
        window: Length of the longest clip that can be read from any piece, in seconds.
        step: Crops start at multiples of this fraction of a second.
        hop: Time between the starts of two excerpts of a piece, in seconds.
        data: Digest of the data options of the recipe.
        seed: Seed of the readings.
        counts: Number of examples of each reading, by split, in the order of the pieces and their versions. It is empty
            until all shards are written.
        format: Format of the folder.
    """

    parts: dict[str, dict[str, Any]]
    representations: dict[str, float | None]
    conditions: dict[str, float | None]
    fields: list[str]
    members: list[dict[str, Any]]
    origins: list[list[str]]
    versions: dict[str, int]
    whole: bool
    window: float
    step: str
    hop: float
    data: str
    seed: int
    counts: dict[str, list[int]] = field(default_factory=dict)
    format: int = FORMAT

    @property
    def plan(self) -> Catalog:
        """The catalog before anything was written."""
        return replace(self, counts={})

    def pieces(self, split: Split) -> int:
        """Return the number of pieces in a split."""
        return sum(member["splits"][split] for member in self.members)

    def readings(self, split: Split) -> int:
        """Return the number of readings in a split."""
        return self.pieces(split) * self.versions[split]

    def as_json(self) -> dict[str, Any]:
        """Return the values that :func:`read_catalog` reads."""
        return asdict(self)


def read_catalog(folder: Path, name: str = CATALOG) -> Catalog:
    """Read and check the catalog of a folder from anyone.

    Raises:
        PartitaError: The catalog is damaged, or was written by another version of Partita.
    """
    path = own_file(folder, name, LARGEST_INDEX)
    remedy = "delete its folder, and run `partita tokenize` again"
    try:
        values = read_json(path, LARGEST_INDEX)
    except PartitaError as error:
        raise PartitaError(f"{error}: {remedy}") from None
    if values.get("format") != FORMAT:
        raise PartitaError(
            f"{path} has the format {values.get('format')!r:.20} instead of {FORMAT}: another version of Partita wrote "
            "these shards; run `partita tokenize` again into another folder"
        )
    if set(values) != {one.name for one in fields(Catalog)} or not _well_formed(values):
        raise PartitaError(f"{path} is damaged: {remedy}")
    return Catalog(**values)


def _well_formed(values: Mapping[str, Any]) -> bool:
    """Return whether all values have the types and ranges that reading relies on."""
    members, versions, counts = values["members"], values["versions"], values["counts"]
    try:
        rates = (*_items(values["representations"]), *_items(values["conditions"]))
        step = Fraction(values["step"])
        return (
            all(rate is None or (_is_number(rate) and 0 < rate < 1e6) for _, rate in rates)
            and all(isinstance(part["fingerprint"], str) for _, part in _items(values["parts"]))
            and all(isinstance(part["config"], dict) for _, part in _items(values["parts"]))
            and all(isinstance(name, str) for name in values["fields"])
            and all(isinstance(what, str) and isinstance(given, str) for what, given in values["origins"])
            and isinstance(members, list)
            and bool(members)
            and all(_member_is_well_formed(member) for member in members)
            and all(type(versions[split]) is int and 1 <= versions[split] <= 1_000_000 for split in SPLITS)
            and isinstance(values["whole"], bool)
            and all(_is_number(values[name]) and 0 < values[name] < 1e9 for name in ("window", "hop"))
            and 0 < step < 1e6
            and isinstance(counts, dict)
            and all(
                split in SPLITS and isinstance(found, list) and all(type(n) is int and n > 0 for n in found)
                for split, found in counts.items()
            )
            and all(
                len(counts.get(split, ())) == versions[split] * sum(member["splits"][split] for member in members)
                for split in (SPLITS if counts else ())
            )
        )
    except (KeyError, TypeError, ValueError, ArithmeticError, AttributeError):
        return False


def _member_is_well_formed(member: Mapping[str, Any]) -> bool:
    return (
        isinstance(member["label"], str)
        and isinstance(member["unit"], str)
        and _is_number(member["weight"])
        and 0 < member["weight"] < float("inf")
        and all(type(member["splits"][split]) is int and member["splits"][split] >= 0 for split in SPLITS)
        and all(isinstance(name, str) and type(n) is int for name, n in _items(member["known"]))
        and (member["seconds"] is None or _is_number(member["seconds"]))
    )


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and value == value


def _items(value: Any) -> Any:
    if not isinstance(value, dict):
        raise TypeError
    return value.items()
