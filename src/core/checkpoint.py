"""The contract of checkpoint formats: how weights saved by another library become the state of a part."""

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

    A format is a registered class that has only class methods. ``load_weights`` of a part asks each of its formats.

    Attributes:
        reads: What the format reads, for the message about a folder that holds something else.
        parts: Registered names of the parts that can load this format, by family:
            ``{"generator": ("autoregressive",)}``.
    """

    family: ClassVar[str] = "checkpoint"
    registered_name: ClassVar[str]
    reads: ClassVar[str]
    parts: ClassVar[Mapping[str, tuple[str, ...]]]

    @classmethod
    @abstractmethod
    def detect(cls, config: Mapping[str, Any]) -> bool:
        """Whether a folder with this ``config.json`` (empty if the folder has none) holds such a checkpoint."""

    @classmethod
    def reads_file(cls, path: Path) -> bool:
        """Whether a single file, which is no safetensors file, can hold such a checkpoint. By default, none can."""
        return False

    @classmethod
    @abstractmethod
    def convert(cls, part: Any, folder: Path, config: Mapping[str, Any]) -> dict[str, Tensor]:
        """The state of ``part``, under the names in its ``exported_state``.

        Parameters that the checkpoint does not have are left out: the caller reports them.

        Args:
            part: The part that takes the weights.
            folder: The folder of the checkpoint, or a file that the format reads, from strangers: read it with
                :mod:`partita.storage.pretrained`, which executes nothing.
            config: The content of the folder's ``config.json``; empty for a file.

        Raises:
            PartitaError: A file is damaged, or the part's arguments cannot hold such weights.
        """


def formats_for(part: type[Configured]) -> list[type[Checkpoint]]:
    """The checkpoint formats that a part can load, sorted by name."""
    known = [lookup("checkpoint", name) for name in names("checkpoint")]
    return [format for format in known if part.registered_name in format.parts.get(part.family, ())]
