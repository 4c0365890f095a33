"""The contract of fields: how their values are parsed, cropped to a clip, and joined over the segments of a story."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

from torch import Tensor

from ...core.registry import lookup, names


class Segment(NamedTuple):
    """A segment of a story: start and end in seconds, and the value of a field."""

    start: float
    stop: float
    value: Any


class Field(ABC):
    """A field: an attribute of a clip that data or a user can supply.

    A subclass is registered under the name of the field. It implements :meth:`parse` and, if its value depends on time,
    :meth:`crop` and :meth:`join`.

    Attributes:
        kind: Type of the values: ``text``, ``names``, ``number``, ``times``, ``spans`` or ``audio``. A conditioner may
            accept only some kinds.
        expected: Description of a valid value, for error messages.
        aliases: Alternative names in manifests and sidecar files.
        timed: Whether the value depends on time, so that :meth:`crop` and :meth:`join` are implemented.
    """

    kind: ClassVar[str]
    expected: ClassVar[str]
    aliases: ClassVar[tuple[str, ...]] = ()
    timed: ClassVar[bool] = False
    family: ClassVar[str]
    registered_name: ClassVar[str]

    @abstractmethod
    def parse(self, value: Any) -> Any:
        """Parse a value from a table cell, a JSON file, a prompt or a call. Parsed values are returned unchanged.

        Raises:
            ValueError: The value is invalid. ``TypeError`` and other conversion errors mean the same.
        """

    def crop(self, value: Any, start: float, seconds: float) -> Any:
        """Return the value for a clip, given the value for a longer clip that contains it.

        Args:
            value: A parsed value. Times are in seconds from the start of the longer clip.
            start: Start of the clip, in seconds.
            seconds: Length of the clip.
        """
        return value

    def join(self, segments: Sequence[Segment]) -> Any:
        """Return the value for a whole story, given the values of its segments; ``None`` if none has a value."""
        return next((segment.value for segment in segments if segment.value is not None), None)

    def default(self, seconds: float) -> Any:
        """Return the value to use if none is supplied, for a clip of this length; ``None`` if there is no default."""
        return None

    def to_audio(self, value: Any, sample_rate: int, channels: int, own_rate: int) -> Any:
        """Load an audio value at a sample rate. Values of other kinds are returned unchanged.

        Args:
            value: A parsed value.
            sample_rate: Sample rate of the result, in Hz.
            channels: Number of channels of the result.
            own_rate: Sample rate of samples without one of their own, in Hz.
        """
        return value


def field(name: str) -> Field:
    """Return the field with this name.

    Raises:
        UnknownName: No field has that name.
    """
    return lookup("field", name)()


def parse_value(name: str, value: Any) -> Any:
    """Parse a value of a field; ``None`` is returned unchanged.

    Raises:
        ValueError: The value is invalid. The message says what is expected, without the name of the field.
    """
    if value is None:
        return None
    one = field(name)
    try:
        return one.parse(value)
    except UnicodeEncodeError:
        raise ValueError("is not UTF-8 text") from None
    except (KeyError, TypeError, ValueError, ArithmeticError, AttributeError, RecursionError):
        raise ValueError(f"cannot be {_described(value)}; expected {one.expected}") from None


def crop_fields(fields: Mapping[str, Any], start: float, seconds: float) -> dict[str, Any]:
    """Return the fields of a clip, given those of its piece. Unregistered fields are returned unchanged.

    Args:
        fields: Parsed values of the fields of the piece. Times are in seconds from its start.
        start: Start of the clip, in seconds.
        seconds: Length of the clip.
    """
    known = names("field")
    return {
        name: field(name).crop(value, start, seconds) if name in known and value is not None else value
        for name, value in fields.items()
    }


def field_kinds(inputs: Iterable[str]) -> set[str]:
    """Return the set of the kinds of fields."""
    return {lookup("field", name).kind for name in inputs}


def _described(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor {list(value.shape)}"
    text = repr(value[:60] if isinstance(value, str) else value)
    return text if len(text) <= 80 else f"that {type(value).__name__}"
