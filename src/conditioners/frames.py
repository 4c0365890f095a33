"""Limits of conditions that have a frame rate."""

from __future__ import annotations

LONGEST_SECONDS = 3600.0
"""Largest ``at_least``."""

FASTEST = 1000.0
"""Highest frame rate, in Hz."""


def check_frames(frame_rate: float, at_least: float = 0.0) -> None:
    """Check the frame rate in Hz and the least seconds of a condition.

    Raises:
        ValueError: A value is out of range.
    """
    if not 0 < frame_rate <= FASTEST:
        raise ValueError(f"frame_rate must be above 0 and at most {FASTEST:g} Hz, not {frame_rate}")
    if not 0 <= at_least <= LONGEST_SECONDS:
        raise ValueError(f"at_least must be from 0 to {LONGEST_SECONDS:g} seconds, not {at_least}")
