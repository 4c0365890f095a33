"""The contract of text towers, which embed texts."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from torch import Tensor

from ...core.component import Component


class TextTower(Component):
    """A network that embeds texts.

    Subclasses implement :meth:`build`, :meth:`tokenize` and :meth:`forward`. Those with a text tokenizer in files also
    implement the methods that save and load it.
    """

    family: ClassVar[str] = "text_tower"

    def build(self, dim: int) -> None:
        """Create the weights, once. Subclasses call this first.

        Args:
            dim: Width of an embedding.
        """
        self.claim()

    @abstractmethod
    def tokenize(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Convert texts to tokens ``[B, L]`` int64 and their mask ``[B, L]`` bool, padded to the longest."""

    @abstractmethod
    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Embed tokens ``[B, L]`` as ``[B, dim]`` of any length, finite even where everything is masked."""

    def begin(self) -> None:
        """Load what training starts from, unless it is loaded already."""

    def vocabulary(self) -> bytes:
        """The words of the text tokenizer and their numbers, for the digest of the part."""
        return b""

    def save_tokenizer(self, folder: Path) -> None:
        """Write the files of the text tokenizer into a folder of a saved part, if there is a tokenizer."""

    def load_tokenizer(self, folder: Path) -> None:
        """Read the files that :meth:`save_tokenizer` wrote, if there are any."""
