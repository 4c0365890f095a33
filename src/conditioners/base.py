"""The contract of conditioners: what a person supplies, to a condition."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..core.contracts import Condition, ConditionSpec
from ..core.part import Part


class Conditioner(Part):
    """Turns raw inputs into a condition, in two phases.

    :meth:`prepare` runs on the CPU, in the data workers; :meth:`forward` on the device. The output has the
    conditioner's native width: the projection into a stage belongs to the stage.

    Attributes:
        input: The field of an example it reads (``text``, ``melody``, …).
        with_stage: Whether it has no training of its own but learns together with the first stage that is given it.
    """

    input: ClassVar[str]
    trained_with_stage: ClassVar[bool] = False

    @property
    @abstractmethod
    def spec(self) -> ConditionSpec:
        """The facts of what :meth:`forward` returns."""

    @abstractmethod
    def prepare(self, inputs: Sequence[Any], seeds: Sequence[int] | None = None) -> dict[str, Tensor]:
        """Raw inputs of a batch to tensors, first axis ``B``.

        Args:
            inputs: One per sample; ``None`` where a sample has none: its condition is null.
            seeds: In training, one per sample: what any augmentation is drawn from. None outside training.
        """

    @abstractmethod
    def forward(self, prepared: dict[str, Tensor]) -> Condition:
        """The tensors of :meth:`prepare`, on the device, to a condition."""

    def knows(self, value: Any) -> bool:
        """Whether an input means anything to it. Of one that does not, people are warned; most take whatever it is."""
        return True

    def null(self, condition: Condition) -> Condition:
        """The condition that says nothing, of the same shape: all zeros, all masked, unless a part knows better."""
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
