"""Examples as a training run reads them: numbered, so that any position of a run can be taken up again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Self

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from ..contracts import Example, Representation
from .base import Source, Split


class Examples(Dataset):
    """Clips from a source; example ``i`` is the same however often, and by whichever process, it is read.

    Pieces come in a new random order each time round, every one once, with a new crop each time.

    Args:
        source: Set up.
        split: Of the source; where it is empty, its :meth:`~partita.data.base.Source.stand_in`.
        length: Number of examples.
        seconds: Per clip.
        sample_rate: In Hz.
        channels: Of the audio.
        seed: Of order and crops.
    """

    def __init__(
        self, source: Source, split: Split, *, length: int, seconds: float, sample_rate: int, channels: int, seed: int
    ) -> None:
        self.source = source
        self.split: Split = split
        self.pieces = source.stand_in(split)
        self.length = length
        self.seconds = seconds
        self.sample_rate = sample_rate
        self.channels = channels
        self.seed = seed
        self._round: tuple[int, np.ndarray] = (-1, np.empty(0, dtype=int))

    @classmethod
    def at(cls, facts: Representation, source: Source, split: Split, length: int, seconds: float, seed: int) -> Self:
        """Clips at the sample rate and with the channels of a representation."""
        return cls(
            source,
            split,
            length=length,
            seconds=seconds,
            sample_rate=facts.sample_rate,
            channels=facts.channels,
            seed=seed,
        )

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Example:
        round_, position = divmod(index, self.source.size(self.pieces))
        if self._round[0] != round_:
            order = np.random.default_rng((self.seed, round_)).permutation(self.source.size(self.pieces))
            self._round = (round_, order)
        seed = int(np.random.default_rng((self.seed, round_, position)).integers(2**31))
        example = self.source.read(
            self.pieces,
            int(self._round[1][position]),
            seed=seed,
            seconds=self.seconds,
            sample_rate=self.sample_rate,
            channels=self.channels,
        )
        example.seed = seed if self.split == "train" else None
        return example


class Span(Sampler[int]):
    """The example numbers of one process from a given step on; its length counts from the beginning.

    Args:
        steps: Of the whole run.
        batch_size: Per process.
        start: Steps already done.
        rank: Of this process.
        world_size: Number of processes.
    """

    def __init__(self, steps: int, batch_size: int, *, start: int = 0, rank: int = 0, world_size: int = 1) -> None:
        self.steps, self.batch_size, self.start, self.rank, self.world_size = steps, batch_size, start, rank, world_size

    def __len__(self) -> int:
        return self.steps * self.batch_size

    def __iter__(self) -> Iterator[int]:
        for step in range(self.start, self.steps):
            first = (step * self.world_size + self.rank) * self.batch_size
            yield from range(first, first + self.batch_size)


class Collate:
    """Examples to a batch: ``audio`` ``[B, C, T]``, ``num_samples`` ``[B]``, and per conditioner its prepared tensors.

    Args:
        conditioners: By name; each one's ``prepare`` runs here, in the data workers.
    """

    def __init__(self, conditioners: Mapping[str, Any] | None = None) -> None:
        self.conditioners = dict(conditioners or {})

    def __call__(self, examples: Sequence[Example]) -> dict[str, Any]:
        """Join examples of equal length."""
        seeds = None if any(example.seed is None for example in examples) else [example.seed for example in examples]
        prepared = {
            name: conditioner.prepare([example.fields.get(conditioner.input) for example in examples], seeds)
            for name, conditioner in self.conditioners.items()
        }
        return {
            "audio": torch.stack([example.audio for example in examples]),
            "num_samples": torch.tensor([example.num_samples for example in examples]),
            "prepared": prepared,
            "text": [example.fields.get("text") for example in examples],
        }
