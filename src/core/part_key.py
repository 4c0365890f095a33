"""Keys of parts: where a part stands in a system, in its folder and in its messages."""

from __future__ import annotations

from typing import Self


class PartKey(str):
    """The key of a part, such as ``stages/acoustic``: its group and its name in it.

    It is text, equal to any other text that reads the same, and the path of the part's folder in a saved system or run.

    >>> key = PartKey.of("stages", "acoustic")
    >>> key, key.group, key.name
    ('stages/acoustic', 'stages', 'acoustic')
    """

    __slots__ = ()

    @classmethod
    def of(cls, group: str, name: str) -> Self:
        """The key of a part.

        Args:
            group: ``tokenizers``, ``conditioners`` or ``stages``.
            name: The name that the recipe gives the part in its group.
        """
        return cls(f"{group}/{name}")

    def inside(self, name: str) -> Self:
        """The key of a part inside this one, which the argument ``name`` holds.

        >>> PartKey.of("tokenizers", "semantic").inside("features")
        'tokenizers/semantic.features'
        """
        return type(self)(f"{self}.{name}")

    @property
    def around(self) -> list[Self]:
        """The keys of the parts that this one is inside, beginning with the innermost.

        >>> PartKey("tokenizers/semantic.features.codec").around
        ['tokenizers/semantic.features', 'tokenizers/semantic']
        """
        *outer, _ = self.split(".")
        return [type(self)(".".join(outer[:count])) for count in range(len(outer), 0, -1)]

    @property
    def group(self) -> str:
        """``tokenizers``, ``conditioners`` or ``stages``."""
        return self.partition("/")[0]

    @property
    def name(self) -> str:
        """The name that the recipe gives the part in its group; for one inside another, followed by its argument."""
        return self.partition("/")[2]
