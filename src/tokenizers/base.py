"""The contract of tokenizers: audio to a representation and, where it can, back."""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor

from ..contracts import Representation
from ..part import Part


class Tokenizer(Part):
    """Turns audio ``[B, C, T]`` into codes ``[B, K, S]`` or latents ``[B, D, S]`` and, where it can, back.

    Subclasses call ``super().__init__()`` and implement :attr:`representation`, :meth:`encode` and, where they can,
    :meth:`decode`. Trained as a part: ``training_step`` gets a batch with the key ``audio``.
    """

    @property
    @abstractmethod
    def representation(self) -> Representation:
        """The facts of what :meth:`encode` returns, at the number of codebooks in use."""

    @abstractmethod
    def encode(self, audio: Tensor) -> Tensor:
        """Audio ``[B, C, T]`` to codes ``[B, K, S]`` int64 or latents ``[B, D, S]``.

        ``S = ceil(T · frame_rate / sample_rate)``: short tails are padded with silence. Deterministic.
        """

    def decode(self, representation: Tensor) -> Tensor:
        """Back to audio ``[B, C, S · sample_rate / frame_rate]``.

        Raises:
            NotImplementedError: This tokenizer cannot.
        """
        raise NotImplementedError(f"{self.registered_name} cannot turn its representation back into audio")

    def set_num_codebooks(self, num_codebooks: int) -> None:
        """Use only the first ``num_codebooks`` codebooks from now on.

        Raises:
            NotImplementedError: It has none.
            ValueError: It has fewer.
        """
        raise NotImplementedError(f"{self.registered_name} has no codebooks to choose from")
