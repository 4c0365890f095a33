"""The representations on which a stage is trained: stored ones, or those encoded from the audio of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..core.contracts import RepresentationSpec, finite
from ..core.reference import Reference
from ..core.resample import convert
from ..errors import PartitaError
from ..system.system import System
from ..tokenizers.base import LatentView, Tokenizer


def with_audio(batch: dict[str, Any], reads: str | None = None) -> dict[str, Any]:
    """Return a batch whose ``audio`` is the audio that a part reads.

    Args:
        batch: A collated batch.
        reads: The field that the part reads instead of the mix. ``None`` reads the mix.

    Raises:
        PartitaError: An example has no such audio.
    """
    audio, has_audio = batch_audio(batch, reads)
    if silent := [piece for piece, one in zip(batch["id"], has_audio, strict=True) if not one]:
        what = "audio" if reads is None else reads
        raise PartitaError(
            f"{silent[0]} has no {what}, on which this part is trained: supply the audio, or give the part weights"
        )
    return batch | {"audio": audio}


def batch_audio(batch: dict[str, Any], reads: str | None) -> tuple[Tensor, list[bool]]:
    """Return the audio ``[B, C, T]`` of a batch, and which of its examples have audio."""
    return (batch["audio"], batch["has_audio"]) if reads is None else batch["field_audio"][reads]


def representation_key(system: System, reference: Reference) -> str:
    """Return the key under which examples carry a representation: the tokenizer's fingerprint, and what it reads."""
    reads = system.plan.reads(reference)
    return system.tokenizer_of(reference).fingerprint() + (f":{reads}" if reads else "")


class BatchEncoder:
    """Encodes the examples of a batch, except those with a stored representation.

    Args:
        system: The system, with trained tokenizers.
        references: The required representations.
        sample_rate: Sample rate of the batches, in Hz.
        seconds: Length of the examples.
    """

    def __init__(self, system: System, references: Sequence[Reference], sample_rate: int, seconds: float) -> None:
        self.system = system
        self.references = {reference.source: reference for reference in references}
        self.sample_rate = sample_rate
        self.seconds = seconds
        self._fingerprints: dict[str, str] = {}

    @torch.no_grad()
    def __call__(self, batch: dict[str, Any]) -> dict[str, tuple[Tensor, Tensor]]:
        """Return codes ``[B, K, S]`` or latents ``[B, D, S]`` by source, with the mask ``[B, S]`` bool of frames.

        Raises:
            PartitaError: An example has neither audio nor a stored representation of this tokenizer.
        """
        return {source: self._encode(reference, batch) for source, reference in self.references.items()}

    def _encode(self, reference: Reference, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        audio, has_audio = batch_audio(batch, self.system.plan.reads(reference))
        tokenizer = self.system.tokenizer_of(reference)
        spec = tokenizer.spec
        stored = [self._stored(reference, tokenizer, found) for found in batch["stored"]]
        fresh = [i for i, values in enumerate(stored) if values is None]
        for i in fresh:
            if not has_audio[i]:
                raise PartitaError(self._unusable(reference, tokenizer, batch["id"][i], batch["stored"][i]))
        if fresh:
            self.system.tokenizers[reference.tokenizer].to(audio.device).eval()
            selected = audio if len(fresh) == len(audio) else audio[fresh]
            encoded = tokenizer.encode(convert(selected, self.sample_rate, spec.sample_rate, spec.channels))
            if len(fresh) == len(audio):
                return encoded, spec.present(encoded, batch["num_samples"], self.sample_rate)
            frames = encoded.shape[-1]
        elif spec.frame_rate is None:
            frames = spec.frames(self.seconds)
        else:
            frames = int(spec.begun_frames(round(self.seconds * self.sample_rate), self.sample_rate))
        rows, lengths = [], []
        for i, values in enumerate(stored):
            row = encoded[fresh.index(i)] if values is None else _resized(values.to(audio.device), frames, spec)
            rows.append(row)
            lengths.append(frames if values is None else values.shape[-1])
        whole = torch.stack(rows)
        there = torch.arange(frames, device=whole.device) < torch.tensor(lengths, device=whole.device)[:, None]
        return whole, there & spec.present(whole, batch["num_samples"], self.sample_rate)

    def _fingerprint(self, reference: Reference, tokenizer: Tokenizer | LatentView) -> str:
        """Return the fingerprint of a tokenizer, which is constant because the tokenizer is not trained anymore."""
        if reference.source not in self._fingerprints:
            self._fingerprints[reference.source] = representation_key(self.system, reference)
        return self._fingerprints[reference.source]

    def _stored(
        self, reference: Reference, tokenizer: Tokenizer | LatentView, stored: dict[str, Tensor]
    ) -> Tensor | None:
        """Return the stored representation of this tokenizer; ``None`` if the example has none."""
        values = stored.get(self._fingerprint(reference, tokenizer)) if stored else None
        if values is None:
            return None
        spec = tokenizer.spec
        rows = spec.num_codebooks if spec.discrete else spec.dim
        if values.dim() != 2 or len(values) != rows or values.is_floating_point() == spec.discrete:
            raise PartitaError(
                f"the stored representation of {reference.source} has the shape {list(values.shape)} and the type "
                f"{values.dtype}, but should be {spec}: store it as [{rows}, frames]"
            )
        for book, (codes, cardinality) in enumerate(zip(values, spec.cardinalities, strict=False)):
            if codes.numel() and not 0 <= int(codes.min()) <= int(codes.max()) < cardinality:
                raise PartitaError(
                    f"the stored representation of {reference.source} has codes outside [0, {cardinality}) in "
                    f"codebook {book}: encode the audio again"
                )
        if not finite(values):
            raise PartitaError(f"the stored representation of {reference.source} is not finite: encode the audio again")
        return values.long() if spec.discrete else values.float()

    def _unusable(
        self, reference: Reference, tokenizer: Tokenizer | LatentView, piece: Any, stored: dict[str, Tensor]
    ) -> str:
        what = f"only stored representations of {', '.join(stored)}" if stored else "no stored representation"
        wanted = self.system.plan.reads(reference) or "audio"
        return (
            f"{piece or 'an example'} has no {wanted} and {what}, but {reference.source} has the fingerprint "
            f"{self._fingerprint(reference, tokenizer)}: encode the audio again, or supply it"
        )


def _resized(values: Tensor, frames: int, spec: RepresentationSpec) -> Tensor:
    """Crop a stored representation to a number of frames, or pad it with zeros or the end token."""
    kept = F.pad(values[:, :frames], (0, max(0, frames - values.shape[-1])))
    if spec.end is not None:
        kept[0, values.shape[-1] :] = spec.end
    return kept
