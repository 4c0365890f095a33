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

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import PartitaError
from .rates import Count, begun_frames, nearest, whole_frames


@dataclass(frozen=True)
class RepresentationSpec:
    """What a tokenizer turns audio into. Whoever needs a rate or a size reads it here; no recipe repeats it.

    Args:
        sample_rate: Sample rate of the audio, in Hz.
        channels: Channels of the audio.
        frame_rate: Frames per second; ``None`` where the length does not follow from the duration, as that of a text, a
            plan or a list of events.
        num_codebooks: Codes per frame; ``None`` where the representation is continuous.
        cardinality: Entries per codebook, one number for all or a tuple with one for each; ``None`` where the
            representation is continuous.
        dim: Width of a latent frame; ``None`` where the representation is discrete.
        end: Reserved id of the first codebook that says that the clip has ended: it stands in every frame after the
            last, and never reaches ``decode``. ``None`` reserves no id.
        longest: Most frames of a clip; for a representation without frame rate, which says it in no other way.

    Raises:
        ValueError: The numbers contradict each other.
    """

    sample_rate: int
    channels: int
    frame_rate: float | None
    num_codebooks: int | None = None
    cardinality: int | tuple[int, ...] | None = None
    dim: int | None = None
    end: int | None = None
    longest: int | None = None

    def __post_init__(self) -> None:
        if isinstance(self.cardinality, tuple) and len(self.cardinality) != self.num_codebooks:
            raise ValueError(f"{self.num_codebooks} codebooks have as many cardinalities, unlike {self.cardinality}")
        if self.frame_rate is None and self.longest is None:
            raise ValueError("a representation without frame rate says how many frames a clip has at most (longest)")
        if self.end is not None and not (self.discrete and 0 <= self.end < self.cardinalities[0]):
            raise ValueError(f"the id {self.end} that ends a clip must be one of the first codebook")

    @property
    def discrete(self) -> bool:
        """Whether it consists of codes rather than latents."""
        return self.cardinality is not None

    @property
    def cardinalities(self) -> tuple[int, ...]:
        """Entries of each codebook; empty where the representation is continuous."""
        return _each(self.cardinality, self.num_codebooks)

    def frames(self, seconds: float) -> int:
        """The number of frames that is nearest to ``seconds``, at least one; without frame rate, the most there are."""
        if self.frame_rate is None:
            return self.longest or 1
        return max(1, nearest(seconds, self.frame_rate))

    @property
    def rate(self) -> float:
        """The frame rate of a representation that has one.

        Raises:
            ValueError: It has none.
        """
        if self.frame_rate is None:
            raise ValueError(f"{self} have no frame rate")
        return self.frame_rate

    def whole_frames(self, samples: Count, sample_rate: int) -> Count:
        """Frames that end within ``samples`` (a number, or a tensor of them) at ``sample_rate`` Hz."""
        return whole_frames(samples, sample_rate, self.rate)

    def begun_frames(self, samples: Count, sample_rate: int) -> Count:
        """Frames that begin within ``samples`` (a number, or a tensor of them) at ``sample_rate`` Hz."""
        return begun_frames(samples, sample_rate, self.rate)

    def present(self, representation: Tensor, samples: Tensor, sample_rate: int) -> Tensor:
        """Which frames of encoded clips hold something, ``[B, S]`` bool.

        Args:
            representation: Codes ``[B, K, S]`` or latents ``[B, D, S]``.
            samples: ``[B]``, the length of each clip's material.
            sample_rate: Sample rate at which the material was counted, in Hz.
        """
        places = torch.arange(representation.shape[-1], device=representation.device)
        kept = torch.ones(len(representation), len(places), dtype=torch.bool, device=representation.device)
        if self.frame_rate is not None:
            kept &= places < begun_frames(samples, sample_rate, self.frame_rate)[:, None]
        if self.end is not None:
            kept &= (representation[:, 0] == self.end).cumsum(1) == 0
        return kept

    def __str__(self) -> str:
        content = f"{_times(self.cardinalities)} codes" if self.discrete else f"{self.dim}-d latents"
        rate = f"at {self.frame_rate:g} Hz" if self.frame_rate is not None else f"of up to {self.longest} frames"
        return f"{content} {rate}, {self.sample_rate / 1000:g} kHz × {self.channels} ch"

    def as_condition(self) -> ConditionSpec:
        """The facts of this representation where a later stage is given it: aligned in time if it has a frame rate."""
        return ConditionSpec(self.dim, self.frame_rate, self.num_codebooks, self.cardinality)


@dataclass(frozen=True)
class ConditionSpec:
    """The facts of a condition, known before any of it is computed.

    Args:
        dim: Width of an embedding; ``None`` for codes.
        frame_rate: Positions per second where the condition is aligned with the audio in time; ``None`` elsewhere.
        num_codebooks: Codes per position; ``None`` for embeddings.
        cardinality: Entries per codebook, one number for all or a tuple with one for each; ``None`` for embeddings.
    """

    dim: int | None = None
    frame_rate: float | None = None
    num_codebooks: int | None = None
    cardinality: int | tuple[int, ...] | None = None

    @property
    def cardinalities(self) -> tuple[int, ...]:
        """Entries of each codebook; empty for embeddings."""
        return _each(self.cardinality, self.num_codebooks)

    def __str__(self) -> str:
        content = f"{self.dim}-d" if self.dim is not None else f"{_times(self.cardinalities)} codes"
        return content + (f" at {self.frame_rate:g} Hz" if self.frame_rate is not None else "")


def _each(cardinality: int | tuple[int, ...] | None, num_codebooks: int | None) -> tuple[int, ...]:
    return cardinality if isinstance(cardinality, tuple) else (cardinality or 0,) * (num_codebooks or 0)


def _times(cardinalities: tuple[int, ...]) -> str:
    """``4×1024`` for equal codebooks, ``12+1024`` for others."""
    if len(set(cardinalities)) == 1:
        return f"{len(cardinalities)}×{cardinalities[0]}"
    return "+".join(map(str, cardinalities))


def finite(values: Tensor) -> bool:
    """Whether there is neither NaN nor infinity in a tensor; one without memory or of whole numbers has none."""
    if values.is_meta or not values.is_floating_point():
        return True
    wide = values.float() if values.element_size() == 1 else values  # isfinite lacks the types of 8 bits
    return bool(wide.isfinite().all())


ALIGNED_FUSIONS = ("add", "concat")
"""The ways to enter that need what enters to be aligned in time."""


def ways(fusion: str) -> tuple[str, ...]:
    """The ways to enter that a fusion joins.

    >>> ways("cross"), ways("prepend+add")
    (('cross',), ('prepend', 'add'))
    """
    return tuple(dict.fromkeys(fusion.split("+")))


@dataclass(frozen=True)
class Given:
    """One thing a stage is given: its facts, and how it enters.

    Args:
        spec: The facts of the condition.
        fusion: ``cross`` (attended to), ``prepend`` (a prefix), ``add`` (aligned, interpolated to the target's rate),
            ``concat`` (on the channels) or ``modulate`` (scale and shift). ``prepend+add`` does both, with one
            projection.
    """

    spec: ConditionSpec
    fusion: str

    @property
    def fusions(self) -> tuple[str, ...]:
        """The ways in which it enters, usually one."""
        return ways(self.fusion)


@dataclass
class Condition:
    """A batch of one condition.

    Args:
        values: Embeddings ``[B, L, D]`` float, or codes ``[B, K, L]`` int64.
        mask: ``[B, L]`` bool, true where a position is known, false where it holds nothing or only pads. This is
            the polarity of every mask here. A null condition usually masks everything; one that keeps part of it masks
            the rest.
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

    def lasting(self, length: int) -> Condition:
        """Its first ``length`` positions; masked ones follow if it has fewer."""
        more = length - self.mask.shape[1]
        if more <= 0:
            return self.crop(0, length)
        beyond = (0, 0, 0, more) if self.values.is_floating_point() else (0, more)
        return Condition(F.pad(self.values, beyond), F.pad(self.mask, (0, more)))

    @staticmethod
    def cat(conditions: list[Condition]) -> Condition:
        """The batches of several conditions, one after the other; masked positions follow in all but the longest."""
        longest = max(c.mask.shape[1] for c in conditions)
        conditions = [c if c.mask.shape[1] == longest else c.lasting(longest) for c in conditions]
        return Condition(torch.cat([c.values for c in conditions]), torch.cat([c.mask for c in conditions]))


@dataclass
class Generated:
    """What a stage generates.

    Args:
        values: Codes ``[B, K, S]`` or latents ``[B, D, S]``. What follows a sample's last frame means nothing.
        lengths: ``[B]`` int64, the frames of each sample; ``None`` where all samples have all ``S``.
        outputs: By name, side outputs that a later stage can be given, such as the hidden states of each frame: a
            condition each, of ``S`` positions.
    """

    values: Tensor
    lengths: Tensor = None  # type: ignore[assignment]
    outputs: dict[str, Condition] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.lengths is None:
            self.lengths = torch.full((len(self.values),), self.values.shape[-1], device=self.values.device)

    @property
    def whole(self) -> bool:
        """Whether no sample ends before the others."""
        return bool((self.lengths == self.values.shape[-1]).all())

    @property
    def mask(self) -> Tensor:
        """``[B, S]`` bool, true on the frames of each sample."""
        return torch.arange(self.values.shape[-1], device=self.values.device) < self.lengths[:, None]


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


@dataclass(frozen=True)
class Clip:
    """The fields and the audio of one clip, as a conditioner reads them.

    Args:
        fields: What is known, by the name of a registered field (``partita list field``). Times are in seconds from the
            start of the clip. A field that is not known is missing or ``None``.
        seconds: Length of the clip.
        audio: The clip itself ``[C, T]``, at the rate and with the channels that the conditioner declares. ``None`` if
            the conditioner reads no audio, and in generation unless somebody supplies it.
        sample_rate: Rate of ``audio``, and of every other field that holds audio, in Hz.
        seed: Seed of everything random about the condition, in training; ``None`` outside training.
    """

    fields: Mapping[str, Any]
    seconds: float
    audio: Tensor | None = None
    sample_rate: int | None = None
    seed: int | None = None


@dataclass
class Example:
    """One clip and what is known of it.

    Args:
        recording: ``[C, T]`` float32 in [-1, 1], always of the length asked for; short material is padded with silence.
            ``None`` if the example brings representations instead.
        num_samples: How many samples, at the rate asked for, are material rather than padding.
        fields: What is known, by the name of a registered field (``partita list field``), and the ``id`` of the piece.
            Times are in seconds from the start of the clip. Audio is ``[C, T]`` at the rate of ``audio``, or a path.
        seed: In training, what whatever else is random about it is drawn from.
        damaged: Pieces that should have been in its place and cannot be read, and why.
        representations: What tokenizers made of the clip before, by the tokenizer's ``fingerprint()``: codes
            ``[K, S]`` or latents ``[D, S]``, from the first frame of the clip on. Frames after the clip's end are left
            out. A stage that needs one of them encodes nothing. The key of what was made of something else than the
            mix ends with its field: ``FINGERPRINT:stems.drums``.
        conditions: What frozen conditioners made of the clip before, by the conditioner's ``fingerprint()``: embeddings
            ``[L, D]`` or codes ``[K, L]``, and the mask ``[L]`` bool. The conditioner then does not run.
    """

    recording: Tensor | None
    num_samples: int
    fields: dict[str, Any] = field(default_factory=dict)
    seed: int | None = None
    damaged: dict[str, str] = field(default_factory=dict)
    representations: dict[str, Tensor] = field(default_factory=dict)
    conditions: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)

    @property
    def audio(self) -> Tensor:
        """The recording.

        Raises:
            PartitaError: There is none.
        """
        if self.recording is None:
            piece = self.fields.get("id", "an example")
            raise PartitaError(f"{piece} brings no audio, which is needed here: only stages train on representations")
        return self.recording
