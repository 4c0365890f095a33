"""The contract of data sources: where examples come from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np

from ..core.contracts import Example
from ..errors import PartitaError

Split = Literal["train", "validation", "test"]

NAMES: dict[Split, str] = {"train": "training", "validation": "validation", "test": "test"}
"""What the pieces of a split are called."""


class Damaged(PartitaError):
    """One clip cannot be read, while others can.

    Args:
        piece: Name of the piece.
        reason: What is wrong with it.
    """

    def __init__(self, piece: str, reason: str) -> None:
        super().__init__(f"{piece}: {reason}")
        self.piece, self.reason = piece, reason


@dataclass(frozen=True)
class Summary:
    """What there is in a source.

    Args:
        unit: What it consists of, in the singular: ``file``, ``piece``.
        splits: How many of them are in each split.
        known: By field, how many of them have it.
        seconds: Length of all together; none where that is different at every reading.
        left_out: What was not taken in on purpose, and how it would be; empty where nothing was left out.
    """

    unit: str
    splits: Mapping[Split, int]
    known: Mapping[str, int]
    seconds: float | None = None
    left_out: str = ""

    @property
    def pieces(self) -> int:
        """How many there are in all splits."""
        return sum(self.splits.values())

    def counted(self, count: int) -> str:
        """A number of its pieces.

        >>> Summary("file", {"train": 1}, {}).counted(2)
        '2 files'
        """
        return f"{count:,} {self.unit}{'' if count == 1 else 's'}"

    def __str__(self) -> str:
        captions = self.known.get("text", 0)
        share = "all" if captions == self.pieces else f"{captions:,}" if captions else "none"
        length = [] if self.seconds is None else [_length(self.seconds)]
        splits = ", ".join(f"{count:,} {split}" for split, count in self.splits.items())
        what = ", ".join([self.counted(self.pieces), *length, f"{share} with captions"])
        return "; ".join(filter(None, [what, splits, self.left_out]))


class Origin(NamedTuple):
    """Something that data is made of, and the terms under which it may be used, each as a phrase."""

    what: str
    license: str


UNKNOWN_LICENSE = "license not stated"


class Source(ABC):
    """A collection of pieces from which clips are read. Building one touches no file; :meth:`setup` does.

    A source is picklable, so that worker processes can read from it.

    Attributes:
        attributes: What its captions are made of, where it can tell: see :meth:`reworded`.
        fields: What its examples may carry beside audio (see :class:`~partita.core.contracts.Example`).
        fields_known: Whether every one of ``fields`` is there; otherwise only :meth:`setup` tells.
        revision: Goes up when the same arguments begin to give other examples, with which an evaluation of the old ones
            must not be continued.
    """

    attributes: ClassVar[tuple[str, ...]] = ()
    revision: int = 0
    fields: frozenset[str]
    fields_known: bool = True
    family: ClassVar[str]
    registered_name: ClassVar[str]

    def missing(self) -> list[tuple[str, str]]:
        """Files and folders that its arguments name and that are not there: pairs (argument, what is wrong with it).

        `partita check` and training ask this, so it must be cheap: it looks whether things are there, not into them.
        """
        return []

    @abstractmethod
    def setup(self) -> None:
        """Scan, parse or download what it needs, once; cheap when done before.

        Raises:
            PartitaError: There is nothing usable; the message says where it looked.
        """

    @abstractmethod
    def size(self, split: Split) -> int:
        """Number of pieces in a split, after :meth:`setup`; 0 where it is empty."""

    @abstractmethod
    def read(
        self, split: Split, index: int, *, seed: int, seconds: float | None, sample_rate: int, channels: int
    ) -> Example:
        """A clip of piece ``index``; the same arguments give the same example.

        Args:
            split: Of the data.
            index: In ``[0, size(split))``.
            seed: Decides everything random: the position of the crop, an arrangement, the wording of a caption.
            seconds: Length of the clip; the whole piece where none is given.
            sample_rate: The audio comes resampled to this rate, in Hz.
            channels: And mixed or copied to this number of channels.

        Raises:
            Damaged: This clip cannot be read; another one may be.
        """

    def draw(self, split: Split, number: int, seed: int, attempt: int = 0) -> tuple[int, int]:
        """The piece that example ``number`` of a training run is a clip of, and the seed to read it with.

        Pieces come in a new random order each time round, every one once.

        Args:
            split: Of the data.
            number: 0 or more, without end.
            seed: Of the order.
            attempt: How many clips that were drawn for the same example could not be read.
        """
        size = self.size(split)
        round_, position = divmod(number, size)
        key = (seed, round_, position, *([attempt] if attempt else []))
        clip_seed = int(np.random.default_rng(key).integers(2**31))
        return int(_order(size, seed, round_)[(position + attempt) % size]), clip_seed

    def stand_in(self, split: Split) -> Split:
        """The split whose pieces serve as those of ``split``: itself, unless it is empty.

        Validation pieces stand in for test pieces, as no step was taken on them, and training pieces for both.
        """
        order: dict[Split, tuple[Split, ...]] = {"test": ("test", "validation"), "validation": ("validation",)}
        return next((name for name in order.get(split, ()) if self.size(name)), "train")

    def shortage(self, split: Split) -> str | None:
        """What people must know where a split is empty and another one stands in; none where it is not."""
        used = self.stand_in(split)
        if used == split:
            return None
        means = (
            "losses and clips say how well these are remembered, not what is made of new music"
            if used == "train"
            else "they are not trained on, but training was watched by them"
        )
        return f"the data has no {split} pieces, so {NAMES[used]} pieces stand in: {means}"

    def reworded(self, fields: Mapping[str, Any], other: Mapping[str, Any], attribute: str) -> str | None:
        """The caption of an example with one attribute taken from another one, worded as it was.

        Args:
            fields: Of the example.
            other: Of the other one.
            attribute: One of :attr:`attributes`.

        Returns:
            None where that is the same caption, as the two share the attribute or the caption does not tell it.
        """
        return None

    @property
    def summary(self) -> Summary:
        """After :meth:`setup`: what there is."""
        splits: dict[Split, int] = {split: self.size(split) for split in ("train", "validation", "test")}
        return Summary("piece", splits, dict.fromkeys(self.fields, sum(splits.values())))

    @property
    def label(self) -> str:
        """A word for it, where it is one of several."""
        return self.registered_name

    @property
    def origins(self) -> Sequence[Origin]:
        """Also before :meth:`setup`: what its examples are made of, and under which licenses."""
        return [Origin(self.label, UNKNOWN_LICENSE)]

    @property
    def members(self) -> Sequence[Member]:
        """The sources it consists of, which is itself unless it is a mixture."""
        return [Member(self.label, 1.0, self)]

    def advice(self, field: str) -> str:
        """What its owner can do so that more of its examples carry a field; empty where nothing can be done."""
        return ""

    def verify(self) -> Iterator[tuple[str, str | None]]:
        """After :meth:`setup`: read everything once, and say of each piece what is wrong with it, none if nothing."""
        yield from ()

    def note(self, piece: str, reason: str) -> bool:
        """Remember for the :attr:`report` why a piece is not used, or not all of it; whether that is news."""
        noted: dict[str, str] = self.__dict__.setdefault("_noted", {})
        news = piece not in noted
        noted.setdefault(piece, reason)
        return news

    @property
    def report(self) -> list[str]:
        """After :meth:`setup`: what was skipped, a line each, naming file and reason."""
        return [f"{piece}: {reason}" for piece, reason in sorted(self.__dict__.get("_noted", {}).items())]


class Member(NamedTuple):
    """A source, a word for it, and its share of the clips that are drawn."""

    label: str
    share: float
    source: Source


@lru_cache(maxsize=32)
def _order(size: int, seed: int, round_: int) -> np.ndarray:
    """In which order pieces come in one round."""
    return np.random.default_rng((seed, round_)).permutation(size)


def _length(seconds: float) -> str:
    """A duration as people say it.

    >>> _length(1620), _length(59.6), _length(90_000)
    ('27 min', '60 s', '25.0 h')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:,.1f} h"
