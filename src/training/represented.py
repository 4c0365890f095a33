"""What a stage is trained on, as tokenizers represent it: stored before, or encoded from the audio of a batch."""

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


def audible(batch: dict[str, Any], reads: str | None = None) -> dict[str, Any]:
    """A batch for a part that hears its examples, with what it hears as ``audio``.

    Args:
        batch: As collated.
        reads: A field that the part reads in the place of the mix; ``None`` for the mix.

    Raises:
        PartitaError: Some bring no such audio.
    """
    audio, heard = heard_in(batch, reads)
    if silent := [piece for piece, one in zip(batch["id"], heard, strict=True) if not one]:
        what = "audio" if reads is None else reads
        raise PartitaError(f"{silent[0]} brings no {what}, which this part is trained on: give it weights instead")
    return batch | {"audio": audio}


def heard_in(batch: dict[str, Any], reads: str | None) -> tuple[Tensor, list[bool]]:
    """The audio ``[B, C, T]`` that is read of a batch, and which of its examples have some."""
    return (batch["audio"], batch["audible"]) if reads is None else batch["read"][reads]


class Represented:
    """Represents the examples of a batch. An example that brings its representation is not encoded.

    Args:
        system: The system with the tokenizers, trained.
        references: What is wanted.
        sample_rate: Rate of the batches, in Hz.
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
        """By source, codes ``[B, K, S]`` or latents ``[B, D, S]``, and which frames hold something, ``[B, S]`` bool.

        Raises:
            PartitaError: An example brings neither audio nor what this tokenizer makes of it.
        """
        return {source: self._of(reference, batch) for source, reference in self.references.items()}

    def _of(self, reference: Reference, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        audio, there_is = heard_in(batch, self.system.plan.reads(reference))
        tokenizer = self.system.tokenizer_of(reference)
        spec = tokenizer.spec
        stored = [self._stored(reference, tokenizer, brought) for brought in batch["stored"]]
        fresh = [i for i, values in enumerate(stored) if values is None]
        for i in fresh:
            if not there_is[i]:
                raise PartitaError(self._unusable(reference, tokenizer, batch["id"][i], batch["stored"][i]))
        if fresh:
            self.system.tokenizers[reference.tokenizer].to(audio.device).eval()
            heard = audio if len(fresh) == len(audio) else audio[fresh]
            encoded = tokenizer.encode(convert(heard, self.sample_rate, spec.sample_rate, spec.channels))
            if len(fresh) == len(audio):
                return encoded, spec.present(encoded, batch["num_samples"], self.sample_rate)
            frames = encoded.shape[-1]
        elif spec.frame_rate is None:
            frames = spec.frames(self.seconds)
        else:
            frames = int(spec.begun_frames(round(self.seconds * self.sample_rate), self.sample_rate))
        rows, lengths = [], []
        for i, values in enumerate(stored):
            row = encoded[fresh.index(i)] if values is None else _lasting(values.to(audio.device), frames, spec)
            rows.append(row)
            lengths.append(frames if values is None else values.shape[-1])
        whole = torch.stack(rows)
        there = torch.arange(frames, device=whole.device) < torch.tensor(lengths, device=whole.device)[:, None]
        return whole, there & spec.present(whole, batch["num_samples"], self.sample_rate)

    def _fingerprint(self, reference: Reference, tokenizer: Tokenizer | LatentView) -> str:
        """That of a tokenizer; it is not trained any more, so that it stays the same."""
        if reference.source not in self._fingerprints:
            reads = self.system.plan.reads(reference)
            self._fingerprints[reference.source] = tokenizer.fingerprint() + (f":{reads}" if reads else "")
        return self._fingerprints[reference.source]

    def _stored(
        self, reference: Reference, tokenizer: Tokenizer | LatentView, brought: dict[str, Tensor]
    ) -> Tensor | None:
        """What an example brings that this tokenizer made; ``None`` if it brings no such thing."""
        values = brought.get(self._fingerprint(reference, tokenizer)) if brought else None
        if values is None:
            return None
        spec = tokenizer.spec
        rows = spec.num_codebooks if spec.discrete else spec.dim
        if values.dim() != 2 or len(values) != rows or values.is_floating_point() == spec.discrete:
            raise PartitaError(
                f"what an example brings for {reference.source} has the shape {list(values.shape)} and the type "
                f"{values.dtype}, but these are {spec}: store them as [{rows}, frames]"
            )
        for book, (codes, cardinality) in enumerate(zip(values, spec.cardinalities, strict=False)):
            if codes.numel() and not 0 <= int(codes.min()) <= int(codes.max()) < cardinality:
                raise PartitaError(
                    f"what an example brings for {reference.source} holds codes outside [0, {cardinality}) in "
                    f"codebook {book}: store it anew"
                )
        if not finite(values):
            raise PartitaError(f"what an example brings for {reference.source} is not finite: store it anew")
        return values.long() if spec.discrete else values.float()

    def _unusable(
        self, reference: Reference, tokenizer: Tokenizer | LatentView, piece: Any, brought: dict[str, Tensor]
    ) -> str:
        what = f"what was made by {', '.join(brought)}" if brought else "nothing that was made before"
        wanted = self.system.plan.reads(reference) or "audio"
        return (
            f"{piece or 'an example'} brings no {wanted}, and {what}, but the fingerprint of {reference.source} is "
            f"{self._fingerprint(reference, tokenizer)}: encode it anew, or bring the audio"
        )


def _lasting(values: Tensor, frames: int, spec: RepresentationSpec) -> Tensor:
    """The first frames of a stored representation, and what stands for no frame after them."""
    kept = F.pad(values[:, :frames], (0, max(0, frames - values.shape[-1])))
    if spec.end is not None:
        kept[0, values.shape[-1] :] = spec.end
    return kept
