"""A recipe that is being put together, which remembers where every key came from."""

from __future__ import annotations

from typing import Any

from ..errors import Problem
from ..limits import MOST_PARTS, TooMuch, beyond
from .slots import LISTS, KeyPath, may_be_slot, names_part

COMMAND_LINE = "command line"
"""What is named as the file of a key that an override set."""


class Tree:
    """A recipe during composition: a plain nested mapping, the origin of each key, and the mistakes found so far."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self.problems: list[Problem] = []
        self._parts = 0
        self._origins: dict[KeyPath, str] = {}
        self._below: dict[KeyPath, dict[KeyPath, None]] = {}

    def origin(self, key: str) -> str:
        """The file that set the dotted ``key``, or its closest parent."""
        path = tuple(key.split("."))
        while path and path not in self._origins:
            path = path[:-1]
        return self._origins.get(path, self._origins.get((), "recipe"))

    def blame(self, key: str) -> str:
        """The most likely origin of a mistake in ``key``: the command line if it set anything there."""
        path = tuple(key.split("."))
        below = {file for known, file in self._origins.items() if known[: len(path)] == path}
        return COMMAND_LINE if COMMAND_LINE in below else self.origin(key)

    def later(self, path: KeyPath, other: KeyPath) -> bool:
        """Whether the value at ``path`` was set after that at ``other``, or by the same file."""
        # `place` moves the keys that it records to the end.
        order = {known: i for i, known in enumerate(self._origins)}
        newest, reference = (
            max((known for known in order if known[: len(p)] == p), key=order.__getitem__, default=())
            for p in (path, other)
        )
        same = self.origin(".".join(newest)) == self.origin(".".join(reference))
        return same or order.get(newest, 0) > order.get(reference, 0)

    def complain(self, key: str, message: str, suggestion: str = "", file: str | None = None) -> None:
        """Record a mistake."""
        self.problems.append(Problem(file or self.origin(key), key, message, suggestion))

    def merge(self, values: dict[str, Any], file: str, at: KeyPath = ()) -> None:
        """Merge ``values`` over the tree. A part with a new name replaces the old part completely."""
        self._origins.setdefault((), file)
        node = self.values
        for step in at:
            node = node[step]
        self._merge(node, values, file, at)

    def place(self, path: KeyPath, file: str) -> None:
        """Record the origin of the value at ``path``, replacing the origins of this key and all keys below it."""
        self._forget(path)
        self._origins[path] = file
        if path:
            self._below.setdefault(path[:-1], {})[path] = None

    def count_part(self) -> None:
        """Count one more slot that is going to be expanded.

        Raises:
            TooMuch: The recipe has too many.
        """
        self._parts += 1
        if beyond(self._parts, MOST_PARTS):
            raise TooMuch(f"{self.origin('')}: more than {MOST_PARTS:,} parts, far more than a recipe has: refused")

    def _merge(self, node: dict[str, Any], values: dict[str, Any], file: str, at: KeyPath) -> None:
        for key, value in values.items():
            path = (*at, key)
            old = node.get(key)
            # `given` is replaced completely, so that a recipe can give a stage less than its base does; so are lists
            whole = len(path) == 3 and path[0] == "stages" and path[2] == "given"
            if isinstance(value, list) and ".".join(path) in LISTS:
                value, whole = {str(number): slot for number, slot in enumerate(value)}, True
            if isinstance(value, dict):
                if isinstance(old, str) and may_be_slot(path) and not (whole or names_part(value)):
                    old = node[key] = {"preset": old}
                    self.place((*path, "preset"), self._origins[path])
                if isinstance(old, dict) and not whole and not (may_be_slot(path) and names_part(value)):
                    self._merge(old, value, file, path)
                    continue
                node[key] = {}
                self.place(path, file)
                self._merge(node[key], value, file, path)
            else:
                node[key] = value
                self.place(path, file)

    def _forget(self, path: KeyPath) -> None:
        for inner in self._below.pop(path, ()):
            self._forget(inner)
        self._origins.pop(path, None)
