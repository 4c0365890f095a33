"""Errors that are messages: what is wrong, where, and what to do."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters, which a terminal would obey, and characters that reverse the direction of the text after them."""


MOST_SHOWN = 50
"""Maximum number of mistakes of one recipe that a message lists."""


class PartitaError(Exception):
    """A foreseeable mistake. The command line prints the message and exits with status 2, without a traceback."""


class Stopped(BaseException):
    """Somebody asked a training run to stop (Ctrl-C, or the scheduler of a cluster). The run can be resumed.

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
    """Everything that is wrong with a recipe, at once."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = list(dict.fromkeys(problems))
        count = f"{len(self.problems)} mistake{'s' if len(self.problems) > 1 else ''} in the recipe"
        lines = [f"  {problem}" for problem in self.problems[:MOST_SHOWN]]
        more = [f"  and {len(self.problems) - MOST_SHOWN:,} more"] if len(self.problems) > MOST_SHOWN else []
        super().__init__("\n".join([count, *lines, *more]))


def _cut(text: str, longest: int = 2000) -> str:
    """The first ``longest`` characters of a text, which may quote something very long."""
    return text if len(text) <= longest else f"{text[:longest]} …"


def printable(text: object) -> str:
    r"""A text that is safe on any terminal and in any UTF-8 file: other characters are escaped.

    >>> printable("a\x1b[31mred\ta")
    'a\\x1b[31mred\ta'
    """
    return _UNSEEN.sub(lambda found: found[0].encode("unicode_escape").decode(), str(text))
