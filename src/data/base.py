"""The contract of data sources: where examples come from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from ..contracts import Example

Split = Literal["train", "validation", "test"]

NAMES: dict[Split, str] = {"train": "training", "validation": "validation", "test": "test"}
"""What the pieces of a split are called."""


class Source(ABC):
    """A collection of pieces from which clips are read. Building one touches no file; :meth:`setup` does.

    A source is picklable, so that worker processes can read from it.

    Attributes:
        attributes: What its captions are made of, where it can tell: see :meth:`reworded`.
        fields: What its examples may carry beside audio (see :class:`~partita.contracts.Example`).
    """

    attributes: ClassVar[tuple[str, ...]] = ()
    fields: frozenset[str]
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
        """

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
    def report(self) -> list[str]:
        """After :meth:`setup`: what was skipped, a line each, naming file and reason."""
        return []
