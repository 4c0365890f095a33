"""What parts say to each other: representations, conditions, and the facts about them.

Shapes: ``B`` batch, ``C`` audio channels, ``T`` samples, ``K`` codebooks, ``S`` frames, ``D`` width, ``L`` condition
length. Every public boundary uses one layout:

===========  =========================================================  ==========================
thing        layout                                                     dtype
===========  =========================================================  ==========================
audio        ``[B, C, T]``                                              float32 in [-1, 1]
codes        ``[B, K, S]``                                              int64 in [0, cardinality)
latents      ``[B, D, S]``                                              float32
condition    ``[B, L, D]`` or codes ``[B, K, L]``, mask ``[B, L]``      float32 or int64, bool
===========  =========================================================  ==========================
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .rates import Count, begun_frames, nearest, whole_frames


@dataclass(frozen=True)
class RepresentationSpec:
    """What a tokenizer turns audio into. Whoever needs a rate or a size reads it here; no recipe repeats it.

    Args:
        sample_rate: Of the audio, in Hz.
        channels: Of the audio.
        frame_rate: Frames per second.
        num_codebooks: Codes per frame; none where the representation is continuous.
        cardinality: Entries per codebook; none where the representation is continuous.
        dim: Width of a latent frame; none where the representation is discrete.
    """

    sample_rate: int
    channels: int
    frame_rate: float
    num_codebooks: int | None = None
    cardinality: int | None = None
    dim: int | None = None

    @property
    def discrete(self) -> bool:
        """Whether it consists of codes rather than latents."""
        return self.cardinality is not None

    def frames(self, seconds: float) -> int:
        """The number of frames that is nearest to ``seconds``, at least one."""
        return max(1, nearest(seconds, self.frame_rate))

    def whole_frames(self, samples: Count, sample_rate: int) -> Count:
        """Frames that end within ``samples`` (a number, or a tensor of them) at ``sample_rate`` Hz."""
        return whole_frames(samples, sample_rate, self.frame_rate)

    def begun_frames(self, samples: Count, sample_rate: int) -> Count:
        """Frames that begin within ``samples`` (a number, or a tensor of them) at ``sample_rate`` Hz."""
        return begun_frames(samples, sample_rate, self.frame_rate)

    def __str__(self) -> str:
        content = f"{self.num_codebooks}×{self.cardinality} codes" if self.discrete else f"{self.dim}-d latents"
        return f"{content} at {self.frame_rate:g} Hz, {self.sample_rate / 1000:g} kHz × {self.channels} ch"

    def as_condition(self) -> ConditionSpec:
        """The facts of this representation where a later stage is given it: aligned in time."""
        return ConditionSpec(self.dim, self.frame_rate, self.num_codebooks, self.cardinality)


@dataclass(frozen=True)
class ConditionSpec:
    """The facts of a condition, known before any of it is computed.

    Args:
        dim: Width of an embedding; none for codes.
        frame_rate: Positions per second where the condition is aligned with the audio in time; none where it is not.
        num_codebooks: Codes per position; none for embeddings.
        cardinality: Entries per codebook; none for embeddings.
    """

    dim: int | None = None
    frame_rate: float | None = None
    num_codebooks: int | None = None
    cardinality: int | None = None

    def __str__(self) -> str:
        content = f"{self.dim}-d" if self.dim is not None else f"{self.num_codebooks}×{self.cardinality} codes"
        return content + (f" at {self.frame_rate:g} Hz" if self.frame_rate is not None else "")


def finite(values: Tensor) -> bool:
    """Whether there is neither NaN nor infinity in a tensor; one without memory or of whole numbers has none."""
    return values.is_meta or not values.is_floating_point() or bool(values.isfinite().all())


ALIGNED_FUSIONS = ("add", "concat")
"""The ways to enter that need what enters to be aligned in time."""


@dataclass(frozen=True)
class Given:
    """One thing a stage is given: its facts, and how it enters.

    Args:
        spec: The facts of the condition.
        fusion: ``cross`` (attended to), ``prepend`` (a prefix), ``add`` (aligned, interpolated to the target's rate),
            ``concat`` (on the channels) or ``modulate`` (scale and shift).
    """

    spec: ConditionSpec
    fusion: str


@dataclass
class Condition:
    """A batch of one condition.

    Args:
        values: Embeddings ``[B, L, D]`` float, or codes ``[B, K, L]`` int64.
        mask: ``[B, L]`` bool, true where a position holds something. A null condition usually masks everything.
    """

    values: Tensor
    mask: Tensor

    def where(self, keep: Tensor, other: Condition) -> Condition:
        """This condition for the samples ``keep`` ``[B]`` bool names, ``other`` (same shape) for the rest."""
        return Condition(
            torch.where(keep[:, None, None], self.values, other.values),
            torch.where(keep[:, None], self.mask, other.mask),
        )

    @classmethod
    def of(cls, representation: Tensor, mask: Tensor) -> Condition:
        """Codes ``[B, K, S]`` or latents ``[B, D, S]`` as a condition; ``mask`` ``[B, S]`` bool."""
        return cls(representation.mT if representation.is_floating_point() else representation, mask)

    def absent(self) -> Condition:
        """The null of a condition that needs no other: of the same shape, all masked."""
        return Condition(torch.zeros_like(self.values), torch.zeros_like(self.mask))

    def crop(self, start: int, stop: int) -> Condition:
        """Positions ``start`` to ``stop``; fewer where there are no more."""
        along = slice(start, stop)
        values = self.values[:, along] if self.values.is_floating_point() else self.values[:, :, along]
        return Condition(values, self.mask[:, along])

    @staticmethod
    def cat(conditions: list[Condition]) -> Condition:
        """The batches of several conditions of equal length, one after the other."""
        return Condition(torch.cat([c.values for c in conditions]), torch.cat([c.mask for c in conditions]))


@dataclass
class StageBatch:
    """What a stage is trained on.

    Args:
        target: Codes ``[B, K, S]`` or latents ``[B, D, S]``.
        mask: ``[B, S]`` bool, false on frames that only pad a short example.
        given: Per name, either a pair (condition, its null) or, for a conditioner that is trained together with the
            stage, the tensors its ``prepare`` made.
    """

    target: Tensor
    mask: Tensor
    given: dict[str, tuple[Condition, Condition] | dict[str, Tensor]] = field(default_factory=dict)


@dataclass
class Example:
    """One clip and what is known of it.

    Args:
        audio: ``[C, T]`` float32 in [-1, 1], always of the length asked for; short material is padded with silence.
        num_samples: How many of the ``T`` samples are material rather than padding.
        fields: What is known: ``text`` (str), ``instruments`` (list of str), ``key``, ``tempo``, ``beats``,
            ``downbeats``, ``chords``, ``melody``, ``stems`` (name → ``[C, T]``), ``seconds_start``, ``seconds_total``,
            ``id``. Times are in seconds from the start of the clip.
        seed: In training, what whatever else is random about it is drawn from.
        damaged: Pieces that should have been in its place and cannot be read, and why.
    """

    audio: Tensor
    num_samples: int
    fields: dict[str, Any] = field(default_factory=dict)
    seed: int | None = None
    damaged: dict[str, str] = field(default_factory=dict)
