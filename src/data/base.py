"""The contract of data sources, which supply examples."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
from torch import Tensor

from ..core.contracts import Example
from ..core.seeds import derive_seed
from ..errors import PartitaError

Split = Literal["train", "validation", "test"]

SPLIT_NAMES: dict[Split, str] = {"train": "training", "validation": "validation", "test": "test"}
"""Names of the splits in messages."""


class UnreadableClip(PartitaError):
    """A clip cannot be read, although other clips of the source may be readable.

    Args:
        piece: Name of the piece.
        reason: Description of the error.
    """

    def __init__(self, piece: str, reason: str) -> None:
        super().__init__(f"{piece}: {reason}")
        self.piece, self.reason = piece, reason


@dataclass(frozen=True)
class Summary:
    """Numbers of pieces in a source.

    Args:
        unit: Noun for a piece, in the singular: ``file`` or ``piece``.
        splits: Number of pieces in each split.
        known: Number of pieces with a value for each field.
        seconds: Total duration. ``None`` if it differs at every reading.
        left_out: What was excluded on purpose, and how to include it. Empty if nothing was excluded.
    """

    unit: str
    splits: Mapping[Split, int]
    known: Mapping[str, int]
    seconds: float | None = None
    left_out: str = ""

    @property
    def pieces(self) -> int:
        """Number of pieces in all splits."""
        return sum(self.splits.values())

    def counted(self, count: int) -> str:
        """Return a number of pieces with its unit.

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
    """Something that data is made of, and its license, each as a phrase for reports."""

    what: str
    license: str


UNKNOWN_LICENSE = "license not stated"


class StoredNeed(NamedTuple):
    """What a stage needs from examples that carry stored representations and conditions instead of audio.

    Args:
        part: Key of the tokenizer or conditioner, such as ``tokenizers/acoustic``.
        key: The key of what it makes, in :class:`~partita.core.contracts.Example`.
        config: The name and arguments of the part.
        window: Length of the stage's clips, in seconds.
        required: Whether the stage cannot do without, because the part reads audio.
    """

    part: str
    key: str
    config: Mapping[str, Any]
    window: float
    required: bool


class Source(ABC):
    """A collection of pieces from which clips are read. The constructor accesses no file; :meth:`setup` does.

    A source must be picklable, so that worker processes can read from it.

    Attributes:
        attributes: Attributes of which captions are composed, if :meth:`reworded` can exchange them.
        fields: Fields that examples may carry besides audio (see :class:`~partita.core.contracts.Example`).
        fields_known: Whether ``fields`` is exact before :meth:`setup`.
        switches: Options with which the source supplies further fields, by field.
        carries_audio: Whether examples carry audio. Otherwise only stages can be trained on them, with stored
            representations.
        license_option: Where the owner of the data states its license.
        varied: Whether two readings of a whole piece differ, because their seed decides more than the crop.
        stored_keys: Keys of the stored conditions that examples may carry, after :meth:`setup`.
        revision: Increased whenever the same arguments yield other examples, so that an evaluation of the old examples
            is not continued with new ones.
    """

    attributes: ClassVar[tuple[str, ...]] = ()
    carries_audio: bool = True
    license_option: str = "`license` of the folder"
    varied: bool = False
    stored_keys: frozenset[str] = frozenset()
    revision: int = 0
    fields: frozenset[str]
    fields_known: bool = True
    switches: ClassVar[Mapping[str, str]] = {}
    family: ClassVar[str]
    registered_name: ClassVar[str]

    def missing(self) -> list[tuple[str, str]]:
        """Return pairs (argument, error) for files and folders that the arguments name and that do not exist.

        `partita check` and training call this, so it must be cheap: check for existence, and read nothing.
        """
        return []

    @abstractmethod
    def setup(self) -> None:
        """Scan, parse or download the data. Further calls do nothing.

        Raises:
            PartitaError: There is no usable data. The message names the places that were searched.
        """

    def unsuitable(self, needs: Sequence[StoredNeed]) -> str | None:
        """Return why the stored representations of the examples do not fit a stage, after :meth:`setup`.

        Args:
            needs: What the stage needs.

        Returns:
            One sentence that names the part that differs and says what to do. ``None`` if everything fits, or if
            examples carry audio.
        """
        return None

    @abstractmethod
    def size(self, split: Split) -> int:
        """Return the number of pieces in a split, after :meth:`setup`."""

    @abstractmethod
    def read(
        self, split: Split, index: int, *, seed: int, seconds: float | None, sample_rate: int, channels: int
    ) -> Example:
        """Read a clip of a piece. The same arguments yield the same example.

        Args:
            split: Split of the piece.
            index: Number of the piece, in ``[0, size(split))``.
            seed: Seed of all random choices: the position of the crop, an arrangement, the wording of a caption.
            seconds: Length of the clip. ``None`` reads the whole piece.
            sample_rate: Sample rate to which the audio is resampled, in Hz.
            channels: Number of channels to which the audio is mixed or copied.

        Raises:
            UnreadableClip: This clip cannot be read, although others may be.
        """

    def read_beside(
        self, split: Split, index: int, *, seed: int, seconds: float | None, sample_rate: int, channels: int
    ) -> Tensor | None:
        """Read another excerpt of the recording from which :meth:`read` reads a clip with the same arguments.

        By default, it is read with a seed of its own, which is right where the seed decides only the position; the two
        may then overlap.

        Returns:
            Audio ``[channels, T]``; ``None`` if the piece has no audio.

        Raises:
            UnreadableClip: The excerpt cannot be read.
        """
        other = derive_seed(seed, "excerpt") % 2**31
        example = self.read(split, index, seed=other, seconds=seconds, sample_rate=sample_rate, channels=channels)
        return example.recording

    def draw(self, split: Split, number: int, seed: int, attempt: int = 0) -> tuple[int, int]:
        """Return the index of the piece for an example of a training run, and the seed to read it with.

        Each epoch visits every piece once, in a new random order.

        Args:
            split: Split to draw from.
            number: Number of the example, from 0 without an upper bound.
            seed: Seed of the order.
            attempt: Number of clips drawn before for the same example that could not be read.
        """
        size = self.size(split)
        epoch, position = divmod(number, size)
        key = (seed, epoch, position, *([attempt] if attempt else []))
        clip_seed = int(np.random.default_rng(key).integers(2**31))
        return int(_order(size, seed, epoch)[(position + attempt) % size]), clip_seed

    def fallback_split(self, split: Split) -> Split:
        """Return the split whose pieces are used for ``split``: itself unless it is empty.

        Validation pieces replace missing test pieces because no weights were trained on them. Otherwise, training
        pieces replace both.
        """
        order: dict[Split, tuple[Split, ...]] = {"test": ("test", "validation"), "validation": ("validation",)}
        return next((name for name in order.get(split, ()) if self.size(name)), "train")

    def fallback_warning(self, split: Split) -> str | None:
        """Return a warning if a split is empty and another one replaces it; otherwise ``None``."""
        used = self.fallback_split(split)
        if used == split:
            return None
        means = (
            "losses and clips show how well the model remembers them, not how it does on new music"
            if used == "train"
            else "no weights were trained on them, but training was monitored on them"
        )
        return f"the data has no {split} pieces, so {SPLIT_NAMES[used]} pieces replace them: {means}"

    def reworded(self, fields: Mapping[str, Any], other: Mapping[str, Any], attribute: str) -> str | None:
        """Return the caption of an example with one attribute replaced by that of another example.

        The wording stays the same.

        Args:
            fields: Fields of the example.
            other: Fields of the other example.
            attribute: One of :attr:`attributes`.

        Returns:
            The changed caption. ``None`` if it does not differ, because the attributes are equal or the caption does
            not mention the attribute.
        """
        return None

    @property
    def summary(self) -> Summary:
        """The numbers of pieces, after :meth:`setup`."""
        splits: dict[Split, int] = {split: self.size(split) for split in ("train", "validation", "test")}
        return Summary("piece", splits, dict.fromkeys(self.fields, sum(splits.values())))

    @property
    def label(self) -> str:
        """A short name that identifies the source within a mixture."""
        return self.registered_name

    @property
    def origins(self) -> Sequence[Origin]:
        """What the examples are made of and under which licenses, also before :meth:`setup`."""
        return [Origin(self.label, UNKNOWN_LICENSE)]

    @property
    def members(self) -> Sequence[Member]:
        """The sources of a mixture; otherwise the source itself."""
        return [Member(self.label, 1.0, self)]

    def advice(self, field: str) -> str:
        """Return how its owner can add a field to more examples; empty if that is impossible."""
        return ""

    def verify(self) -> Iterator[tuple[str, str | None]]:
        """Read everything once, after :meth:`setup`, and yield each piece with its error or ``None``."""
        yield from ()

    def note(self, piece: str, reason: str) -> bool:
        """Record in the :attr:`report` why a piece is not used in full. Return whether it had no reason before."""
        noted: dict[str, str] = self.__dict__.setdefault("_noted", {})
        news = piece not in noted
        noted.setdefault(piece, reason)
        return news

    @property
    def report(self) -> list[str]:
        """A line for each skipped piece with the reason, after :meth:`setup`."""
        return [f"{piece}: {reason}" for piece, reason in sorted(self.__dict__.get("_noted", {}).items())]


class Member(NamedTuple):
    """A source in a mixture, with its label and its share of the drawn clips."""

    label: str
    share: float
    source: Source


@lru_cache(maxsize=32)
def _order(size: int, seed: int, epoch: int) -> np.ndarray:
    """Return the order of the pieces in one epoch."""
    return np.random.default_rng((seed, epoch)).permutation(size)


def _length(seconds: float) -> str:
    """Format a duration.

    >>> _length(1620), _length(59.6), _length(90_000)
    ('27 min', '60 s', '25.0 h')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:,.1f} h"
