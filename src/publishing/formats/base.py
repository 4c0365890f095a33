"""The contract of formats in which other libraries publish whole systems."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar


class PublishedSystem(ABC):
    """A format of systems that other libraries publish: a recipe, and the weights of each of its parts.

    A format is a registered class that has only class methods. Its files come from strangers: they are read with
    :mod:`partita.storage.pretrained`, which executes nothing.

    Attributes:
        reads: What the format reads, for the message about a folder that holds something else.
        files: Patterns of the files that are downloaded from the Hub.
    """

    family: ClassVar[str] = "published"
    registered_name: ClassVar[str]
    reads: ClassVar[str]
    files: ClassVar[tuple[str, ...]]

    @classmethod
    @abstractmethod
    def detect(cls, folder: Path, config: Mapping[str, Any]) -> bool:
        """Whether a folder with this ``config.json`` (empty if the folder has none) holds such a system."""

    @classmethod
    @abstractmethod
    def recipe(cls, folder: Path, config: Mapping[str, Any]) -> dict[str, Any]:
        """The recipe of the system, without its data.

        Raises:
            PartitaError: The configuration describes something that no recipe can express. The message says what.
        """

    @classmethod
    @abstractmethod
    def unpack(cls, folder: Path, config: Mapping[str, Any], into: Path) -> dict[str, str]:
        """The sources of weights by the key of each part, as its ``load_weights`` takes them.

        Args:
            folder: The folder of the system.
            config: The content of its ``config.json``.
            into: An empty folder for sources that have to be written first.

        Raises:
            PartitaError: A file is missing or damaged.
        """
