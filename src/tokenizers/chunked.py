"""Encoding and decoding clips of any length in bounded memory, chunk by chunk."""

from __future__ import annotations

from math import prod
from typing import Protocol

import torch
from torch import Tensor

from ..core.contracts import RepresentationSpec
from ..core.rates import exact
from ..layers.chunks import Local, Step, in_chunks
from ..layers.convolution import pad_to_multiple

CHUNK = 5.0
"""Seconds of audio that are encoded or decoded at a time. A clip of up to two chunks is processed as a whole."""


class Coder(Protocol):
    """What encoding and decoding in chunks needs of a tokenizer."""

    @property
    def spec(self) -> RepresentationSpec:
        """Spec of the representation."""

    def encode(self, audio: Tensor) -> Tensor:
        """Encode audio ``[B, C, T]``."""

    def decode(self, representation: Tensor) -> Tensor:
        """Decode to audio ``[B, C, T]``."""

    def encoding_steps(self) -> list[Step] | None:
        """Steps of :meth:`encode`."""

    def decoding_steps(self) -> list[Step] | None:
        """Steps of :meth:`decode`."""


@torch.no_grad()
def encode_long(tokenizer: Coder, audio: Tensor, chunk: float = CHUNK) -> Tensor:
    """Encode audio ``[B, C, T]`` like ``tokenizer.encode``, but long audio chunk by chunk where the tokenizer can.

    The memory that the encoder takes then depends on the length of a chunk rather than of the clip.

    Args:
        tokenizer: Tokenizer to encode with.
        audio: Audio at the sample rate and with the channels of the tokenizer.
        chunk: Length of a chunk in seconds.
    """
    if audio.shape[-1] <= 2 * chunk * tokenizer.spec.sample_rate or (steps := tokenizer.encoding_steps()) is None:
        return tokenizer.encode(audio)
    hop = prod(step.inputs for step in steps if isinstance(step, Local))
    frames = max(1, int(chunk * tokenizer.spec.sample_rate) // hop)
    return in_chunks(steps, pad_to_multiple(audio, hop), frames * hop)


@torch.no_grad()
def decode_long(tokenizer: Coder, representation: Tensor, chunk: float = CHUNK) -> Tensor:
    """Decode a representation to audio ``[B, C, T]`` like ``tokenizer.decode``, but a long one chunk by chunk where the
    tokenizer can.

    Args:
        tokenizer: Tokenizer to decode with.
        representation: Codes ``[B, K, S]`` or latents ``[B, D, S]``.
        chunk: Length of a chunk in seconds.

    Raises:
        NotImplementedError: The tokenizer cannot decode.
    """
    rate = tokenizer.spec.frame_rate
    frames = 0 if rate is None else max(1, int(exact(chunk) * exact(rate)))
    if rate is None or representation.shape[-1] <= 2 * frames or (steps := tokenizer.decoding_steps()) is None:
        return tokenizer.decode(representation)
    return in_chunks(steps, representation, frames)
