"""Conversions between samples, frames and seconds, computed exactly and rounded only to obtain a whole number.

A rate in floating point stands for a fraction: 86.1328125 Hz are 44,100 / 512, and 1 / 0.96 Hz are 25 / 24. Computed in
floating point, the number of frames of an exact length is sometimes off by one.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

Count = TypeVar("Count", int, "Tensor")
"""``int``, or a tensor of whole numbers."""

_LARGEST_DENOMINATOR = 1_000_000


def exact(number: float) -> Fraction:
    """The fraction that a rate in Hz or a time in seconds stands for.

    >>> exact(44100 / 1000), exact(1 / 0.96), exact(0.1)
    (Fraction(441, 10), Fraction(25, 24), Fraction(1, 10))

    Raises:
        ValueError: The number is not finite.
    """
    if not math.isfinite(number):
        raise ValueError(f"a rate or a time must be a finite number, not {number}")
    simple = Fraction(number).limit_denominator(_LARGEST_DENOMINATOR)
    return simple or Fraction(number)


def nearest(seconds: float, rate: float) -> int:
    """The number of frames at ``rate`` that is nearest to a time."""
    return round(exact(seconds) * exact(rate))


def at_least(seconds: float, rate: float) -> int:
    """The number of frames at ``rate`` that lasts at least this time.

    >>> at_least(0.1, 50), at_least(0.1, 12.5)
    (5, 2)
    """
    return math.ceil(exact(seconds) * exact(rate))


def whole_frames(samples: Count, sample_rate: float, rate: float) -> Count:
    """Number of frames at ``rate`` that end within this many samples.

    >>> whole_frames(48000, 24000, 75), whole_frames(47999, 24000, 75)
    (150, 149)
    """
    ratio = exact(rate) / exact(sample_rate)
    return samples * ratio.numerator // ratio.denominator


def begun_frames(samples: Count, sample_rate: float, rate: float) -> Count:
    """Number of frames at ``rate`` that begin within this many samples: what a tokenizer makes of them.

    >>> begun_frames(48000, 24000, 75), begun_frames(48001, 24000, 75)
    (150, 151)
    """
    ratio = exact(rate) / exact(sample_rate)
    return -(-samples * ratio.numerator // ratio.denominator)
