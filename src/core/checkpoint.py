"""The contract of checkpoint formats: how weights that another library saved become the state of a part."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from .configured import Configured
from .registry import lookup, names


class Checkpoint(ABC):
    """A format of checkpoints, found by the ``config.json`` in their folder.

    A format is a registered class with class methods alone. ``load_weights`` of every part asks those that are for it.

    Attributes:
        reads: What it reads, for the message about a folder that holds something else.
        parts: Registered names of the parts that take it, by family: ``{"generator": ("autoregressive",)}``.
    """

    family: ClassVar[str] = "checkpoint"
    registered_name: ClassVar[str]
    reads: ClassVar[str]
    parts: ClassVar[Mapping[str, tuple[str, ...]]]

    @classmethod
    @abstractmethod
    def detect(cls, config: Mapping[str, Any]) -> bool:
        """Whether a folder with this ``config.json`` (empty where there is none) holds such a checkpoint."""

    @classmethod
    @abstractmethod
    def convert(cls, part: Any, folder: Path, config: Mapping[str, Any]) -> dict[str, Tensor]:
        """The state of ``part``, by the names in its ``exported_state``.

        What is missing stays missing: whoever loads the result names it.

        Args:
            part: The part that takes the weights.
            folder: The folder of the checkpoint. Its files come from strangers: read them with
                :mod:`partita.storage.pretrained`, which executes nothing.
            config: Its ``config.json``.

        Raises:
            PartitaError: A file is damaged, or the part's arguments cannot hold such weights.
        """


def formats_for(part: type[Configured]) -> list[type[Checkpoint]]:
    """The formats of checkpoints that a part takes, in the order of their names."""
    known = [lookup("checkpoint", name) for name in names("checkpoint")]
    return [format for format in known if part.registered_name in format.parts.get(part.family, ())]
