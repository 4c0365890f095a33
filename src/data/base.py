"""The contract of data sources: where examples come from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Literal

from ..contracts import Example

Split = Literal["train", "validation", "test"]


class Source(ABC):
    """A collection of pieces from which clips are read. Building one touches no file; :meth:`setup` does.

    A source is picklable, so that worker processes can read from it.

    Attributes:
        fields: What its examples may carry beside audio (see :class:`~partita.contracts.Example`).
    """

    fields: frozenset[str]
    family: ClassVar[str]
    registered_name: ClassVar[str]

    @abstractmethod
    def setup(self) -> None:
        """Scan, parse or download what it needs, once; cheap when done before.

        Raises:
            PartitaError: There is nothing usable; the message says where it looked.
        """

    @abstractmethod
    def size(self, split: Split) -> int:
        """Number of pieces in a split, after :meth:`setup`."""

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

    @property
    def report(self) -> list[str]:
        """After :meth:`setup`: what was skipped, a line each, naming file and reason."""
        return []
