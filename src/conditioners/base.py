"""The contract of conditioners, which turn what a person supplies into a condition."""

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

    :meth:`prepare` runs on the CPU, in the data workers; :meth:`forward` runs on the device. The output has the
    conditioner's native width: the projection to the width of a stage belongs to the stage.

    A conditioner that is trained on its own implements ``training_step``, whose batches are what :meth:`prepare`
    returns. A conditioner that is trained with its stage does not.

    Args:
        inputs: Names of the fields that the conditioner reads (``partita list field``); ``None`` takes those of its
            class.

    Raises:
        ValueError: A field does not exist, or is of a kind that the conditioner cannot read.

    Attributes:
        inputs: The fields that the conditioner reads. ``audio`` is the clip itself, which every clip has in training; a
            conditioner that reads ``("audio", "text")`` can use audio in training and text in generation.
        kinds: The kinds of fields that the conditioner can read, such as ``text``; ``None`` for any.
        sample_rate: Sample rate of the audio that it reads, in Hz; ``None`` if it reads none.
        channels: Channels of the audio that it reads.
        longest_audio: Seconds from the start of a recording on which a condition depends; ``None`` for all of it.
        reads_one: Whether, of the fields that a clip has, only the one that :attr:`inputs` names first is read.
        trained_with_stage: Whether it has no training of its own but learns together with the first stage that uses
            it.
    """

    family: ClassVar[str] = "conditioner"
    inputs: tuple[str, ...]
    kinds: ClassVar[tuple[str, ...] | None] = None
    sample_rate: int | None = None
    channels: int = 1
    longest_audio: float | None = None
    reads_one: ClassVar[bool] = False
    trained_with_stage: ClassVar[bool] = False
    training_input = "clips"

    def __init__(self, inputs: Sequence[str] | None = None) -> None:
        super().__init__()
        if inputs is not None:
            self.inputs = tuple(inputs)
        if not self.inputs:
            raise ValueError("inputs is empty: name at least one field")
        if len(set(self.inputs)) < len(self.inputs):
            raise ValueError(f"inputs names a field twice: {', '.join(self.inputs)}")
        known = names("field")
        for name in self.inputs:
            if name not in known:
                raise ValueError(f"inputs: there is no field {name!r}{did_you_mean(name, known)}")
            kind = lookup("field", name).kind
            if self.kinds is not None and kind not in self.kinds:
                raise ValueError(
                    f"inputs: {self.registered_name} reads {' or '.join(self.kinds)}, but {name} is {kind}"
                )

    @property
    @abstractmethod
    def spec(self) -> ConditionSpec:
        """The spec of the condition that :meth:`forward` returns."""

    @abstractmethod
    def prepare(self, clips: Sequence[Clip]) -> dict[str, Tensor]:
        """Convert the fields of a batch of clips to tensors whose first axis is ``B``.

        Args:
            clips: One clip per sample. A sample that has none of the :attr:`inputs` gets a null condition.
        """

    @abstractmethod
    def forward(self, prepared: dict[str, Tensor]) -> Condition:
        """Turn the tensors of :meth:`prepare`, on the device, into a condition.

        A condition that is aligned in time has a position for every frame, at ``spec.frame_rate``, that begins within
        the clip. :meth:`positions` returns their number.
        """

    def positions(self, seconds: float) -> int:
        """Number of positions of a condition that is aligned in time, for a clip of this many seconds."""
        rate = self.spec.frame_rate
        if rate is None:
            raise ValueError(f"{self.registered_name} is not aligned in time")
        return max(1, at_least(seconds, rate))

    @property
    def draws(self) -> bool:
        """Whether :meth:`prepare` draws something at random in training, from the seed of a clip."""
        return False

    @property
    def trained_on(self) -> tuple[str, ...]:
        """The fields without any of which the conditioner cannot be trained on its own."""
        return ()

    @property
    def reads_audio(self) -> bool:
        """Whether any of the conditioner's fields holds audio."""
        return any(lookup("field", name).kind == "audio" for name in self.inputs)

    @property
    def audio_format(self) -> tuple[int, int] | None:
        """Sample rate in Hz and channels of the audio that the conditioner reads; ``None`` if it reads none.

        Raises:
            ValueError: The conditioner reads audio but declares no sample rate.
        """
        if not self.reads_audio:
            return None
        if self.sample_rate is None:
            raise ValueError(f"{self.registered_name} reads audio, but declares no sample_rate")
        return self.sample_rate, self.channels

    def knows(self, value: Any) -> bool:
        """Whether the conditioner knows an input. Users are warned of unknown ones; most accept anything."""
        return True

    def null(self, condition: Condition) -> Condition:
        """The null condition of the same shape: by default all zeros and fully masked.

        A conditioner may override this with parameters of its own, or keep a part of the condition.
        """
        return Condition(torch.zeros_like(condition.values), torch.zeros_like(condition.mask))
