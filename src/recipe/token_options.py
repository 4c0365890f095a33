"""Options of tokens that are stored before stages are trained."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TokenOptions:
    """Options of stored tokens, in a recipe under ``tokens`` or of ``partita tokenize``.

    Args:
        versions: Number of readings of each training piece. ``None`` stores 4 of data that is drawn at random at each
            reading, such as ``corpus``, or of representations that cannot be cropped, and otherwise 1.
        longest: Length of the longest excerpt of a piece, in seconds. Longer pieces are stored in overlapping excerpts.
        clip: Length of clips in seconds, at least that of the longest window: a random clip of each reading is stored
            instead of the whole piece. ``None`` stores clips, of the longest window, only of what cannot be cropped.
    """

    versions: int | None = None
    longest: float = 120.0
    clip: float | None = None

    def __post_init__(self) -> None:
        if self.versions is not None and not 1 <= self.versions <= 10_000:
            raise ValueError(f"versions must be between 1 and 10,000, not {self.versions}")
        if not 1 <= self.longest <= 36_000:
            raise ValueError(f"longest must be between 1 and 36,000 seconds, not {self.longest:g}")
        if self.clip is not None and not 0 < self.clip <= 36_000:
            raise ValueError(f"clip must be above 0 and at most 36,000 seconds, not {self.clip:g}")
