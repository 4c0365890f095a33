"""Common code of pretrained, frozen networks as tokenizers: loading weights and cutting windows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Self

from torch import Tensor
from torch.nn import functional as F

from ..errors import PartitaError
from ..storage.pretrained import checkpoint_folder, read_config, read_weights
from .base import Tokenizer


class FrozenFeatures(Tokenizer):
    """A pretrained network for mono audio that stays frozen. Subclasses call ``freeze`` in their constructor.

    Attributes:
        weight_files: Names of its weights in a folder or repository of others, as patterns of ``glob``.
    """

    trainable = False
    weight_files: ClassVar[tuple[str, ...]] = ()

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode, because the network is frozen."""
        return super().train(False)

    def own_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Rename foreign weights to the names used here, and leave out what only training needs."""
        return state

    def load_weights(self, source: str | Path) -> None:
        """Load weights from the original release, or that :meth:`save` wrote.

        Args:
            source: A file (``.safetensors``, ``.pt`` or ``.pth``), a folder with such files, or a hub id.

        Raises:
            PartitaError: ``source`` has no weights, cannot be reached, or holds those of another model.
        """
        state: dict[str, Tensor] = {}
        for path in self._files(source):
            state |= read_weights(path)
        self.load_exported_state(self.own_state(state), source)

    def mono(self, audio: Tensor) -> Tensor:
        """Audio ``[B, 1, T]`` as ``[B, T]`` float32.

        Raises:
            PartitaError: The audio has several channels.
        """
        if audio.shape[1] != 1:
            raise PartitaError(f"{self.registered_name} takes one channel, not {audio.shape[1]}: mix them down first")
        return audio[:, 0].float()

    def _files(self, source: str | Path) -> list[Path]:
        path = Path(source)
        if path.is_file():
            return [path]
        folder = checkpoint_folder(source, ("model.safetensors", *self.weight_files))
        if (folder / "model.safetensors").is_file():
            return [folder / "model.safetensors"]
        found = [sorted(folder.glob(pattern)) for pattern in self.weight_files]
        if not any(found):
            names = ", ".join(("model.safetensors", *self.weight_files))
            raise PartitaError(f"no weights at {source}: there is none of {names}; give a file, a folder or a hub id")
        for files in found:
            if len(files) > 1:
                raise PartitaError(
                    f"{source} holds the weights of several models, {', '.join(f.name for f in files)}: name one file"
                )
        return [file for files in found for file in files]


def read_checked_config(source: str | Path, expected: dict[str, Any], other: str, part: str) -> dict[str, Any]:
    """The ``config.json`` of a checkpoint; empty if there is none.

    Args:
        source: A file of weights, a folder or a hub id.
        expected: Required values of what the file says.
        other: What a checkpoint with other values is, for the message.
        part: Name of the part, for the message.

    Raises:
        PartitaError: A value differs, so the part would compute something else than the checkpoint's model.
    """
    path = Path(source)
    config = read_config(path.parent if path.is_file() else checkpoint_folder(source, ("config.json",)))
    found = {name: config[name] for name, value in expected.items() if config.get(name, value) != value}
    if found:
        wanted = {name: expected[name] for name in found}
        raise PartitaError(
            f"{source} is {other}: its config.json has {found} instead of {wanted}, which {part} does not compute"
        )
    return config


def cut(audio: Tensor, length: int, shortest: int) -> Iterator[Tensor]:
    """Windows of ``length`` samples of a clip ``[B, T]``, one after the other; the last one may be shorter.

    The rest is not padded: a label of a window that is nearly all silence would say nothing about the clip, but count
    as much as the others. If the rest is shorter than ``shortest``, the last window is instead the last ``length``
    samples of the clip. Only a whole clip shorter than ``shortest`` is padded, with silence at its end.
    """
    total = audio.shape[1]
    for start in range(0, total, length):
        begin = total - length if start and total - start < shortest else start
        window = audio[:, begin : begin + length]
        yield F.pad(window, (0, max(0, shortest - window.shape[1])))
