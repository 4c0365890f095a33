"""The input of scores: generated clips, the real clips with their captions, and other real clips."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ..core.contracts import Example, RepresentationSpec
from ..core.dependent_clips import group_of
from ..core.part_key import PartKey
from ..data.base import Source
from ..errors import PartitaError
from ..system.mix import Mix
from ..system.system import System
from ..tokenizers.base import LatentView, Tokenizer
from .embedders import Embedder, Embedders, batches, of_system
from .evaluation_options import Evaluation
from .pairing import other_pieces

Clips = Literal["generated", "real", "reconstructed"]
"""The three sets of clips of a comparison."""


@dataclass
class Comparison:
    """Generated clips and what they are compared with.

    Args:
        system: The system that generated the clips.
        generated: Generated clips ``[N, C, T]``, at the sample rate of the system's output.
        pieces: Real clips whose captions the generated clips were conditioned on, with the same length and order.
        reference: Other real clips, which distributions are compared with.
        options: Options of the evaluation.
        folder: Folder of the evaluation, in which a score can store files.
        embedders: Embedders that the scores share.
        data: Source of the clips, if it is not that of the system.
    """

    system: System
    generated: Tensor
    pieces: Sequence[Example]
    reference: Sequence[Example]
    options: Evaluation
    folder: Path
    embedders: Embedders = field(default_factory=Embedders)
    data: Source | None = None
    _embedded: dict[tuple[Embedder, Clips], Tensor] = field(default_factory=dict)

    @property
    def spec(self) -> RepresentationSpec:
        """Sample rate and channels of all clips."""
        return self.system.output.spec

    @property
    def source(self) -> Source:
        """The source of the clips, which also has training clips."""
        return self.system.source if self.data is None else self.data

    @property
    def fields(self) -> list[dict[str, Any]]:
        """The fields of each real clip, such as its text, key and melody."""
        return [piece.fields for piece in self.pieces]

    @property
    def piece_ids(self) -> list[str | None]:
        """The names of :func:`piece_ids`."""
        return piece_ids(self.pieces)

    @property
    def inputs(self) -> set[str]:
        """Names of the inputs that the system is conditioned on."""
        return set(self.system.inputs)

    def from_other_pieces(self, clips: Sequence[int], shift: int = 1) -> list[int] | None:
        """Return for each of these clips another of them from a different piece; ``None`` if all are from one piece.

        Args:
            clips: Indices of clips.
            shift: Distance to the other piece, in pieces, from 1 to the number of pieces minus one.
        """
        ids = self.piece_ids
        others = other_pieces([ids[i] or i for i in clips], shift)
        return None if others is None else [clips[i] for i in others]

    @cached_property
    def real(self) -> Tensor:
        """The audio of the real clips ``[N, C, T]``."""
        return torch.stack([piece.audio for piece in self.pieces])

    @cached_property
    @torch.inference_mode()
    def encoded(self) -> list[Tensor]:
        """Codes or latents of the real clips by the codec of the system's output, batch by batch, on the CPU."""
        return [self.system.output.encode(batch.to(self.system.device)).cpu() for batch in batches(self.real)]

    @cached_property
    def reconstructed(self) -> Tensor:
        """Reconstructions of the real clips by the codec of the system's output, ``[N, C, T]``."""
        codec, samples, device = self.system.output, self.real.shape[-1], self.system.device
        return torch.cat([_decode(codec, encoded.to(device), samples) for encoded in self.encoded])

    def embedder(self, slot: Any) -> Embedder:
        """Return the embedder of a slot, or of the key of a part of the system, such as ``conditioners/music``."""
        if not of_system(slot):
            return self.embedders.slot(slot)
        if slot not in self.embedders:
            self.embedders[slot] = Embedder(slot, self.system.parts[PartKey(slot)])
        return self.embedders[slot]

    def embedded(self, embedder: Embedder, clips: Clips) -> Tensor:
        """Return embeddings ``[N, S, D]`` of one set of clips, which are computed only once."""
        key = (embedder, clips)
        if key not in self._embedded:
            self._embedded[key] = embedder.embed_clips(getattr(self, clips), self.spec.sample_rate)
        return self._embedded[key]


def piece_ids(clips: Sequence[Example]) -> list[str | None]:
    """Return the name of the piece that each clip belongs to; ``None`` if it is unknown.

    Pieces that share a tune have the same name, because clips of them are not independent.
    """
    return [group_of(clip.fields) for clip in clips]


@torch.inference_mode()
def reconstruct(codec: Tokenizer | LatentView | Mix, audio: Tensor, device: torch.device) -> Tensor:
    """Encode and decode clips ``[B, C, T]`` with a codec, and return audio of the same length.

    Raises:
        PartitaError: The codec cannot decode, or the audio is a mix of several outputs, each with its own codec.
    """
    return _decode(codec, codec.encode(audio.to(device)), audio.shape[-1])


@torch.inference_mode()
def _decode(codec: Tokenizer | LatentView | Mix, encoded: Tensor, samples: int) -> Tensor:
    """Decode a representation to audio of a length in samples, on the CPU."""
    try:
        decoded = codec.decode(encoded)
    except NotImplementedError as error:
        raise PartitaError(f"this system cannot reconstruct audio: {error}") from None
    return decoded.float().cpu()[..., :samples].clamp(-1, 1)
