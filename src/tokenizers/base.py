"""The contract of tokenizers, which turn audio into a representation and, if possible, back."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..core.contracts import RepresentationSpec, finite
from ..core.excerpt import Excerpt
from ..core.part import Part
from ..core.resample import convert
from ..errors import PartitaError
from ..layers.chunks import Step
from .chunked import decode_long, encode_long


class Tokenizer(Part):
    """Turns audio ``[B, C, T]`` into codes ``[B, K, S]`` or latents ``[B, D, S]`` and, if possible, back.

    Subclasses call ``super().__init__()`` and implement :attr:`spec`, :meth:`encode` and, if possible,
    :meth:`decode`. In training, ``training_step`` gets a batch with the key ``audio``.

    A codec whose codes represent latents also offers the latents: it sets :attr:`latent_dim` and implements
    :meth:`encode_latents` and :meth:`decode_latents`.

    Use :meth:`encode_audio` and :meth:`decode_audio` for files and arrays of any sample rate::

        codec = partita.load_part("encodec-24khz")
        codes = codec.encode_audio("song.mp3")  # or an array, with its rate: codec.encode_audio(array, 44100)
        audio = codec.decode_audio(codes, sample_rate=44100)  # [B, C, T]

    Attributes:
        latent_dim: Width of the latents before quantization; ``None`` without such latents.
        logits: Whether its latents are a classifier's logits, one per label, from which probabilities follow.
    """

    family: ClassVar[str] = "tokenizer"
    training_input = "audio"
    logits: bool = False
    latent_dim: int | None = None

    @property
    def audio_format(self) -> tuple[int, int]:
        """Sample rate in Hz and channels of the audio that the tokenizer encodes."""
        return self.spec.sample_rate, self.spec.channels

    @property
    @abstractmethod
    def spec(self) -> RepresentationSpec:
        """Spec of what :meth:`encode` returns, at the number of codebooks in use."""

    @abstractmethod
    def encode(self, audio: Tensor) -> Tensor:
        """Encode audio ``[B, C, T]`` as codes ``[B, K, S]`` int64 or latents ``[B, D, S]``.

        ``S = ceil(T · frame_rate / sample_rate)``: short tails are padded with silence. Deterministic.
        """

    def decode(self, representation: Tensor) -> Tensor:
        """Decode to audio ``[B, C, S · sample_rate / frame_rate]``.

        Raises:
            NotImplementedError: This tokenizer cannot decode.
        """
        raise NotImplementedError(f"{self.registered_name} cannot turn its representation back into audio")

    @torch.inference_mode()
    def encode_audio(self, audio: Any, sample_rate: int | None = None) -> Tensor:
        """Audio of any rate and number of channels, from a file or an array, encoded as by :meth:`encode`.

        Args:
            audio: The path of a file, samples ``[T]``, ``[C, T]`` or ``[B, C, T]`` as an array or tensor, or a
                :class:`partita.Excerpt` of either.
            sample_rate: Sample rate of an array, in Hz. A file has its own.

        Raises:
            PartitaError: The audio does not exist, or its sample rate is unknown.
        """
        excerpt = audio if isinstance(audio, Excerpt) else Excerpt(audio, sample_rate=sample_rate)
        if excerpt.sample_rate is None and not isinstance(excerpt.audio, str | Path):
            raise PartitaError("an array has no sample rate of its own: pass it, as in sample_rate=44100")
        spec = self.spec
        return encode_long(self, excerpt.read(spec.sample_rate, spec.channels).to(self.device))

    @torch.inference_mode()
    def decode_audio(self, representation: Any, sample_rate: int | None = None, channels: int | None = None) -> Tensor:
        """Decode what :meth:`encode_audio` returns to audio ``[B, C, T]`` float32 in [-1, 1] on the CPU.

        Args:
            representation: Codes ``[B, K, S]`` or latents ``[B, D, S]``, or those of a single clip, without ``B``.
            sample_rate: Sample rate of the result, in Hz. ``None`` takes the tokenizer's.
            channels: Channels of the result. ``None`` takes the tokenizer's.

        Raises:
            PartitaError: The codes or latents are invalid, or this tokenizer cannot decode.
        """
        spec = self.spec
        rows, what = (spec.num_codebooks, "codes [B, K, S]") if spec.discrete else (spec.dim, "latents [B, D, S]")
        try:
            given = torch.as_tensor(representation, device=self.device)
        except (TypeError, ValueError, RuntimeError):
            raise PartitaError(f"{what} are an array or a tensor, not {type(representation).__name__}") from None
        given = given[None] if given.dim() == 2 else given
        if given.dim() != 3 or given.shape[1] != rows or not given.numel():
            kind = "K" if spec.discrete else "D"
            raise PartitaError(
                f"{what} of this {self.registered_name} have {kind} = {rows}, unlike {list(given.shape)}"
            )
        if given.is_floating_point() == spec.discrete or given.is_complex() or not finite(given):
            raise PartitaError(f"{what} are {'whole' if spec.discrete else 'finite floating-point'} numbers here")
        for book, cardinality in enumerate(spec.cardinalities):
            least, most = int(given[:, book].min()), int(given[:, book].max())
            if not 0 <= least <= most < cardinality:
                raise PartitaError(f"{what} lie in [0, {cardinality}), not in [{least}, {most}]")
        try:
            made = decode_long(self, given.long() if spec.discrete else given.float()).float().cpu().clamp(-1, 1)
        except NotImplementedError as error:
            raise PartitaError(str(error)) from None
        return convert(made, spec.sample_rate, sample_rate or spec.sample_rate, channels or spec.channels)

    def encode_latents(self, audio: Tensor) -> Tensor:
        """Audio ``[B, C, T]`` to latents ``[B, D, S]`` before quantization."""
        raise NotImplementedError(f"{self.registered_name} has no latents before its codes")

    def decode_latents(self, latents: Tensor) -> Tensor:
        """Latents ``[B, D, S]``, quantized or not, back to audio ``[B, C, S · sample_rate / frame_rate]``."""
        raise NotImplementedError(f"{self.registered_name} has no latents before its codes")

    def encoding_steps(self, latents: bool = False) -> list[Step] | None:
        """Steps that encode audio chunk by chunk, with the result of :meth:`encode`.

        Args:
            latents: Whether they have the result of :meth:`encode_latents` instead.

        Returns:
            ``None`` if a frame depends on the whole clip.
        """
        return None

    def decoding_steps(self, latents: bool = False) -> list[Step] | None:
        """Steps that decode a representation chunk by chunk, with the result of :meth:`decode`.

        Args:
            latents: Whether they have the result of :meth:`decode_latents` instead.

        Returns:
            ``None`` if the audio of a frame depends on the whole clip, or if the tokenizer cannot decode.
        """
        return None

    def set_num_codebooks(self, num_codebooks: int) -> None:
        """Use only the first ``num_codebooks`` codebooks from now on.

        Raises:
            NotImplementedError: The tokenizer has no codebooks.
            ValueError: The tokenizer has fewer codebooks.
        """
        raise NotImplementedError(f"{self.registered_name} has no codebooks to choose from")


class LatentView:
    """A codec's latents before quantization, as a continuous tokenizer that shares the codec's weights.

    Args:
        codec: A tokenizer that has latents.

    Raises:
        ValueError: The tokenizer has no latents.
    """

    def __init__(self, codec: Tokenizer) -> None:
        if codec.latent_dim is None:
            raise ValueError(f"{codec.registered_name} has no latents before its codes")
        self.codec = codec

    @property
    def spec(self) -> RepresentationSpec:
        """The codec's spec, with latents instead of codes."""
        return replace(self.codec.spec, num_codebooks=None, cardinality=None, dim=self.codec.latent_dim, end=None)

    def fingerprint(self) -> str:
        """The codec's, marked as that of its latents."""
        return f"{self.codec.fingerprint()}/latents"

    def encode(self, audio: Tensor) -> Tensor:
        """Audio ``[B, C, T]`` to latents ``[B, D, S]``."""
        return self.codec.encode_latents(audio)

    def decode(self, representation: Tensor) -> Tensor:
        """Latents ``[B, D, S]`` to audio."""
        return self.codec.decode_latents(representation)

    def encoding_steps(self) -> list[Step] | None:
        """The codec's steps that encode audio as latents."""
        return self.codec.encoding_steps(latents=True)

    def decoding_steps(self) -> list[Step] | None:
        """The codec's steps that decode latents."""
        return self.codec.decoding_steps(latents=True)
