"""Exceptions whose messages say what is wrong, where, and what to do."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Characters that messages escape: control characters, which terminals obey, and those that change text direction."""

MOST_SHOWN = 50
"""Maximum number of mistakes in one recipe that a message lists."""


class PartitaError(Exception):
    """Error that a user can correct. The command line prints the message, not a traceback, and exits with status 2."""


class Stopped(BaseException):
    """Request to stop a run, from Ctrl-C or from the scheduler of a cluster. A training run can be resumed.

    Args:
        signal: Number of the signal.
    """

    def __init__(self, signal: int) -> None:
        super().__init__(f"stopped by signal {signal}")
        self.signal = signal


class Problem(NamedTuple):
    """One mistake in a recipe."""

    file: str
    key: str
    message: str
    suggestion: str = ""

    def __str__(self) -> str:
        return f"{self.file}: {_cut(self.key, 200) or '(top level)'}: {_cut(self.message)}{_cut(self.suggestion)}"


class RecipeError(PartitaError):
    """All mistakes in a recipe, in one message."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = list(dict.fromkeys(problems))
        count = f"{len(self.problems)} mistake{'s' if len(self.problems) > 1 else ''} in the recipe"
        lines = [f"  {problem}" for problem in self.problems[:MOST_SHOWN]]
        more = [f"  and {len(self.problems) - MOST_SHOWN:,} more"] if len(self.problems) > MOST_SHOWN else []
        super().__init__("\n".join([count, *lines, *more]))


def _cut(text: str, longest: int = 2000) -> str:
    """Return the first ``longest`` characters of a text that may quote very long input."""
    return text if len(text) <= longest else f"{text[:longest]} …"


def printable(text: object) -> str:
    r"""Escape the characters of a text that are unsafe on a terminal or invalid in a UTF-8 file.

    >>> printable("a\x1b[31mred\ta")
    'a\\x1b[31mred\ta'
    """
    return _UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), str(text))
