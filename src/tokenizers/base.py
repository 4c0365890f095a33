"""The contract of tokenizers: audio to a representation and, where it can, back."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace
from typing import ClassVar

from torch import Tensor

from ..contracts import Representation
from ..part import Part


class Tokenizer(Part):
    """Turns audio ``[B, C, T]`` into codes ``[B, K, S]`` or latents ``[B, D, S]`` and, where it can, back.

    Subclasses call ``super().__init__()`` and implement :attr:`representation`, :meth:`encode` and, where they can,
    :meth:`decode`. Trained as a part: ``training_step`` gets a batch with the key ``audio``.

    A codec whose codes stand for latents offers these, too: it sets :attr:`latent_dim` and implements
    :meth:`encode_latents` and :meth:`decode_latents`.

    Attributes:
        latent_dim: Width of the latents before quantization; none where there are none.
        logits: Whether its latents are a classifier's logits, one per label, which probabilities can be made of.
    """

    family: ClassVar[str] = "tokenizer"
    logits: bool = False
    latent_dim: int | None = None

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

    def encode_latents(self, audio: Tensor) -> Tensor:
        """Audio ``[B, C, T]`` to latents ``[B, D, S]`` as they are before quantization."""
        raise NotImplementedError(f"{self.registered_name} has no latents before its codes")

    def decode_latents(self, latents: Tensor) -> Tensor:
        """Latents ``[B, D, S]``, quantized or not, back to audio ``[B, C, S · sample_rate / frame_rate]``."""
        raise NotImplementedError(f"{self.registered_name} has no latents before its codes")

    def set_num_codebooks(self, num_codebooks: int) -> None:
        """Use only the first ``num_codebooks`` codebooks from now on.

        Raises:
            NotImplementedError: It has none.
            ValueError: It has fewer.
        """
        raise NotImplementedError(f"{self.registered_name} has no codebooks to choose from")


class Latents:
    """A codec's latents before quantization, seen as a continuous tokenizer. The weights are the codec's own.

    Args:
        codec: A tokenizer that has latents.

    Raises:
        ValueError: It has none.
    """

    def __init__(self, codec: Tokenizer) -> None:
        if codec.latent_dim is None:
            raise ValueError(f"{codec.registered_name} has no latents before its codes")
        self.codec = codec

    @property
    def representation(self) -> Representation:
        """The codec's, with latents in the place of codes."""
        return replace(self.codec.representation, num_codebooks=None, cardinality=None, dim=self.codec.latent_dim)

    def encode(self, audio: Tensor) -> Tensor:
        """Audio ``[B, C, T]`` to latents ``[B, D, S]``."""
        return self.codec.encode_latents(audio)

    def decode(self, representation: Tensor) -> Tensor:
        """Latents ``[B, D, S]`` to audio."""
        return self.codec.decode_latents(representation)
