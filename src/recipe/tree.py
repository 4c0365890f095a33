"""A recipe during composition, with the origin of every key."""

from __future__ import annotations

from typing import Any

from ..errors import Problem
from ..limits import MOST_PARTS, TooMuch, beyond
from .slots import LIST_KEYS, KeyPath, may_be_slot, names_part

COMMAND_LINE = "command line"
"""Origin of keys that are set by overrides, in the place of a file."""


class Tree:
    """A nested mapping of recipe values, the origin of each key, and the mistakes found so far."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self.problems: list[Problem] = []
        self._parts = 0
        self._origins: dict[KeyPath, str] = {}
        self._below: dict[KeyPath, dict[KeyPath, None]] = {}

    def origin(self, key: str) -> str:
        """Return the file that set the dotted ``key``, or else its closest parent."""
        path = tuple(key.split("."))
        while path and path not in self._origins:
            path = path[:-1]
        return self._origins.get(path, self._origins.get((), "recipe"))

    def blame(self, key: str) -> str:
        """Return the likely origin of a mistake in ``key``: the command line if it set the key or a key below it."""
        path = tuple(key.split("."))
        below = {file for known, file in self._origins.items() if known[: len(path)] == path}
        return COMMAND_LINE if COMMAND_LINE in below else self.origin(key)

    def set_later(self, path: KeyPath, other: KeyPath) -> bool:
        """Return whether the value at ``path`` was set after the one at ``other``, or by the same file."""
        # `set_origin` moves a key to the end, so the order of keys is the order in which they were set.
        order = {known: i for i, known in enumerate(self._origins)}
        newest, reference = (
            max((known for known in order if known[: len(p)] == p), key=order.__getitem__, default=())
            for p in (path, other)
        )
        same = self.origin(".".join(newest)) == self.origin(".".join(reference))
        return same or order.get(newest, 0) > order.get(reference, 0)

    def add_problem(self, key: str, message: str, suggestion: str = "", file: str | None = None) -> None:
        """Record a mistake."""
        self.problems.append(Problem(file or self.origin(key), key, message, suggestion))

    def merge(self, values: dict[str, Any], file: str, at: KeyPath = ()) -> None:
        """Merge ``values`` over the tree at path ``at``. A part with a new name replaces the old part completely."""
        self._origins.setdefault((), file)
        node = self.values
        for step in at:
            node = node[step]
        self._merge(node, values, file, at)

    def set_origin(self, path: KeyPath, file: str) -> None:
        """Record the origin of the value at ``path``, replacing the origins of the key and all keys below it."""
        self._forget(path)
        self._origins[path] = file
        if path:
            self._below.setdefault(path[:-1], {})[path] = None

    def count_part(self) -> None:
        """Count a slot before it is expanded.

        Raises:
            TooMuch: The recipe has too many slots.
        """
        self._parts += 1
        if beyond(self._parts, MOST_PARTS):
            raise TooMuch(f"{self.origin('')}: more than {MOST_PARTS:,} parts, far more than any recipe: refused")

    def _merge(self, node: dict[str, Any], values: dict[str, Any], file: str, at: KeyPath) -> None:
        for key, value in values.items():
            path = (*at, key)
            old = node.get(key)
            # `given` and lists are replaced completely, so that a recipe can remove inputs that its base gives a stage.
            whole = len(path) == 3 and path[0] == "stages" and path[2] == "given"
            if isinstance(value, list) and ".".join(path) in LIST_KEYS:
                value, whole = {str(number): slot for number, slot in enumerate(value)}, True
            if isinstance(value, dict):
                if isinstance(old, str) and may_be_slot(path) and not (whole or names_part(value)):
                    old = node[key] = {"preset": old}
                    self.set_origin((*path, "preset"), self._origins[path])
                if isinstance(old, dict) and not whole and not (may_be_slot(path) and names_part(value)):
                    self._merge(old, value, file, path)
                    continue
                node[key] = {}
                self.set_origin(path, file)
                self._merge(node[key], value, file, path)
            else:
                node[key] = value
                self.set_origin(path, file)

    def _forget(self, path: KeyPath) -> None:
        for inner in self._below.pop(path, ()):
            self._forget(inner)
        self._origins.pop(path, None)
