"""The log of a run: what was said while it trained, with the time of each line."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from lightning.fabric.utilities.rank_zero import rank_zero_only


class RunLog:
    """Says lines and keeps them in a file, on the first process only.

    Args:
        path: The file, appended to; its folder is made when the first line comes.
        say: Gets each line as well.
    """

    def __init__(self, path: Path, say: Callable[[str], None]) -> None:
        self.path, self.say = path, say

    def __call__(self, line: str) -> None:
        """Say a line and keep it."""
        self.say(line)
        self.keep(line)

    @rank_zero_only
    def keep(self, line: str) -> None:
        """Keep a line without saying it. A disk that is full does not end a training here."""
        with suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(f"{datetime.now().astimezone():%Y-%m-%d %H:%M:%S} {line}\n")
