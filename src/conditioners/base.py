"""The contract of conditioners: what a person supplies, to a condition."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..core.contracts import Clip, Condition, ConditionSpec
from ..core.part import Part
from ..core.rates import at_least
from ..core.registry import did_you_mean, lookup, names


class Conditioner(Part):
    """Turns clips into a condition, in two phases.

    :meth:`prepare` runs on the CPU, in the data workers; :meth:`forward` on the device. The output has the
    conditioner's native width: the projection into a stage belongs to the stage.

    A conditioner that is trained on its own implements ``training_step`` and ``configure_optimizers``. Its batches are
    what :meth:`prepare` returns. One that is trained with its stage implements neither.

    Args:
        inputs: The fields that it reads (``partita list field``); ``None`` for those of its class.

    Raises:
        ValueError: A field does not exist, or is of a kind that it cannot read.

    Attributes:
        inputs: The fields that it reads. ``audio`` is the clip itself, which every clip has in training; a conditioner
            that reads ``("audio", "text")`` can hear clips in training and be told texts in generation.
        kinds: The kinds of fields it can read, such as ``text``; ``None`` for any.
        sample_rate: Rate of the audio that it reads, in Hz; ``None`` if it reads none.
        channels: Channels of the audio that it reads.
        trained_with_stage: Whether it has no training of its own but learns together with the first stage that is given
            it.
    """

    inputs: tuple[str, ...]
    kinds: ClassVar[tuple[str, ...] | None] = None
    sample_rate: int | None = None
    channels: int = 1
    trained_with_stage: ClassVar[bool] = False
    training_input = "clips"

    def __init__(self, inputs: Sequence[str] | None = None) -> None:
        super().__init__()
        if inputs is not None:
            self.inputs = tuple(inputs)
        if not self.inputs:
            raise ValueError("inputs is empty: name at least one field")
        known = names("field")
        for name in self.inputs:
            if name not in known:
                raise ValueError(f"inputs: there is no field {name!r}{did_you_mean(name, known)}")
            kind = lookup("field", name).kind
            if self.kinds is not None and kind not in self.kinds:
                raise ValueError(
                    f"inputs: {self.registered_name} reads {' or '.join(self.kinds)}, and {name} is {kind}"
                )

    @property
    @abstractmethod
    def spec(self) -> ConditionSpec:
        """The facts of what :meth:`forward` returns."""

    @abstractmethod
    def prepare(self, clips: Sequence[Clip]) -> dict[str, Tensor]:
        """What is known of a batch of clips to tensors, first axis ``B``.

        Args:
            clips: One per sample. A sample of which none of :attr:`inputs` is known has a null condition.
        """

    @abstractmethod
    def forward(self, prepared: dict[str, Tensor]) -> Condition:
        """The tensors of :meth:`prepare`, on the device, to a condition.

        A condition that is aligned in time has a position for every frame, at ``spec.frame_rate``, that begins within
        the clip: :meth:`positions` says how many.
        """

    def positions(self, seconds: float) -> int:
        """How many positions a condition that is aligned in time has in a clip of so many seconds."""
        rate = self.spec.frame_rate
        if rate is None:
            raise ValueError(f"{self.registered_name} is not aligned in time")
        return max(1, at_least(seconds, rate))

    @property
    def reads_audio(self) -> bool:
        """Whether any field that it reads holds audio."""
        return any(lookup("field", name).kind == "audio" for name in self.inputs)

    @property
    def audio_format(self) -> tuple[int, int] | None:
        """Rate in Hz and channels of the audio that it reads; ``None`` if it reads none.

        Raises:
            ValueError: It reads audio and declares no rate.
        """
        if not self.reads_audio:
            return None
        if self.sample_rate is None:
            raise ValueError(f"{self.registered_name} reads audio, and declares no sample_rate")
        return self.sample_rate, self.channels

    def knows(self, value: Any) -> bool:
        """Whether an input means anything to it. Of one that does not, people are warned; most take whatever it is."""
        return True

    def null(self, condition: Condition) -> Condition:
        """The condition that says nothing, of the same shape: here all zeros, all masked.

        A conditioner may override this with parameters of its own, or keep a part of the condition.
        """
        return Condition(torch.zeros_like(condition.values), torch.zeros_like(condition.mask))


class JointConditioner(Conditioner):
    """A conditioner that has texts and audio in one space, such as CLAP or MuLan: near where they say the same.

    Besides conditions it yields embeddings, which consistency scores and Fréchet distances compare.

    Attributes:
        sample_rate: Of the audio it embeds (one channel), in Hz.
        dim: Width of an embedding.
    """

    sample_rate: int
    dim: int

    @abstractmethod
    def embed_text(self, texts: Sequence[str]) -> Tensor:
        """Texts to embeddings ``[B, D]`` float32 of unit length."""

    @abstractmethod
    def embed_audio(self, audio: Tensor) -> Tensor:
        """Audio ``[B, 1, T]`` at :attr:`sample_rate` to embeddings ``[B, N, D]`` float32 of unit length.

        One for each window; a clip shorter than a window is one. The last window may hold padding.
        """
