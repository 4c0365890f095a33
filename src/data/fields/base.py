"""The contract of fields: how what is known of a clip is read, cut to a clip, and joined over a story."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

from torch import Tensor

from ...core.registry import lookup, names


class Segment(NamedTuple):
    """One segment of a story: when it begins and ends, in seconds, and what is said of it."""

    start: float
    stop: float
    value: Any


class Field(ABC):
    """Something that can be known of a clip.

    A subclass is registered under the name of the field. It implements :meth:`parse`, and where time matters
    :meth:`crop` and :meth:`join`.

    Attributes:
        kind: What its values are: ``text``, ``names``, ``number``, ``times``, ``spans`` or ``audio``. A conditioner
            may read only some kinds.
        expected: What a value is, as messages say it.
        aliases: Other names of it in manifests and sidecar files.
        timed: Whether a shorter clip of the same music may have another value: :meth:`crop` and :meth:`join` count.
    """

    kind: ClassVar[str]
    expected: ClassVar[str]
    aliases: ClassVar[tuple[str, ...]] = ()
    timed: ClassVar[bool] = False
    family: ClassVar[str]
    registered_name: ClassVar[str]

    @abstractmethod
    def parse(self, value: Any) -> Any:
        """A value as people write it, in a cell, a JSON file, a prompt or a call; parsed values stay as they are.

        Raises:
            ValueError: The value is no such thing; so do TypeError and other errors of conversion.
        """

    def crop(self, value: Any, start: float, seconds: float) -> Any:
        """The value of a clip out of that of a longer one.

        Args:
            value: A parsed value. Times are in seconds from the start of the longer clip.
            start: Start of the clip, in seconds.
            seconds: Length of the clip.
        """
        return value

    def join(self, segments: Sequence[Segment]) -> Any:
        """The value over a whole story of which the segments have values of their own; ``None`` if none is known."""
        return next((segment.value for segment in segments if segment.value is not None), None)

    def unknown(self, seconds: float) -> Any:
        """The value that stands for an unknown one, in a clip of so many seconds; ``None`` if nothing does."""
        return None

    def heard(self, value: Any, sample_rate: int, channels: int, own_rate: int) -> Any:
        """A value that is audio, at another rate and with other channels; other values stay as they are.

        Args:
            value: A parsed value.
            sample_rate: Rate of the result, in Hz.
            channels: Channels of the result.
            own_rate: Rate of samples that do not tell theirs, in Hz.
        """
        return value


def field(name: str) -> Field:
    """The field of that name.

    Raises:
        UnknownName: No field has that name.
    """
    return lookup("field", name)()


def parsed(name: str, value: Any) -> Any:
    """A value of a field as its parser has it; ``None`` stays unknown.

    Raises:
        ValueError: It is no such value; the message says what is expected, without the name of the field.
    """
    if value is None:
        return None
    one = field(name)
    try:
        return one.parse(value)
    except UnicodeEncodeError:
        raise ValueError("is not UTF-8 text") from None
    except (KeyError, TypeError, ValueError, ArithmeticError, AttributeError, RecursionError):
        raise ValueError(f"cannot be {_said(value)}; expected {one.expected}") from None


def cropped(fields: Mapping[str, Any], start: float, seconds: float) -> dict[str, Any]:
    """What is known of a piece as what is known of a clip of it; what is no registered field stays.

    Args:
        fields: Parsed values of the piece. Times are in seconds from its start.
        start: Start of the clip, in seconds.
        seconds: Length of the clip.
    """
    known = names("field")
    return {
        name: field(name).crop(value, start, seconds) if name in known and value is not None else value
        for name, value in fields.items()
    }


def kinds(inputs: Iterable[str]) -> set[str]:
    """The kinds of some fields."""
    return {lookup("field", name).kind for name in inputs}


def _said(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor {list(value.shape)}"
    text = repr(value[:60] if isinstance(value, str) else value)
    return text if len(text) <= 80 else f"that {type(value).__name__}"
