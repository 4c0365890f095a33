"""Examples as a training run reads them: numbered, so that any position of a run can be taken up again."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from ..core.contracts import Clip, Example, RepresentationSpec
from ..core.logs import shared_logger
from ..core.seeds import derive_seed
from ..errors import PartitaError
from .base import Damaged, Source, Split
from .clips import Reader, clip_for, recording_of

log = shared_logger(__name__)

MOST_ATTEMPTS = 50
"""Clips in a row that cannot be read before it is taken for certain that hardly any can. Of pieces of which a half is
damaged, so many are as good as never drawn; of those of which nine tenths are, every 200th example."""


class Examples(Dataset):
    """Clips from a source; example ``i`` is the same however often, and by whichever process, it is read.

    Which piece it is a clip of, the source decides (:meth:`~partita.data.base.Source.draw`). What cannot be read is
    left out, the same clips each time, and noted in the source's report.

    Args:
        source: Set up.
        split: Of the source; where it is empty, its :meth:`~partita.data.base.Source.stand_in`.
        length: Number of examples.
        seconds: Per clip.
        sample_rate: In Hz.
        channels: Of the audio.
        seed: Of order and crops.
        excerpts: Whether every example carries a second clip of its piece, as ``excerpt``.
    """

    def __init__(
        self,
        source: Source,
        split: Split,
        *,
        length: int,
        seconds: float,
        sample_rate: int,
        channels: int,
        seed: int,
        excerpts: bool = False,
    ) -> None:
        self.source = source
        self.split: Split = split
        self.pieces = source.stand_in(split)
        self.length = length
        self.seconds = seconds
        self.sample_rate = sample_rate
        self.channels = channels
        self.seed = seed
        self.excerpts = excerpts

    @classmethod
    def at(cls, spec: RepresentationSpec, source: Source, split: Split, length: int, seconds: float, seed: int) -> Self:
        """Clips at the sample rate and with the channels of a representation."""
        return cls(
            source,
            split,
            length=length,
            seconds=seconds,
            sample_rate=spec.sample_rate,
            channels=spec.channels,
            seed=seed,
        )

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Example:
        """Example ``index``; the next piece that can be read, in the place of one that cannot.

        Raises:
            PartitaError: Nearly nothing can be read.
        """
        damaged: dict[str, str] = {}
        for attempt in range(MOST_ATTEMPTS):
            piece, seed = self.source.draw(self.pieces, index, self.seed, attempt)
            try:
                example = self._read(piece, seed)
                if self.excerpts and example.fields.get("excerpt") is None:
                    example.fields["excerpt"] = self._read(piece, derive_seed(seed, "excerpt") % 2**31).recording
            except Damaged as error:
                damaged.setdefault(error.piece, error.reason)
                self.source.note(error.piece, error.reason)  # in a worker nobody sees that: the example tells, too
                continue
            example.seed = seed if self.split == "train" else None
            example.damaged = damaged
            return example
        piece_name, reason = next(iter(damaged.items()))
        raise PartitaError(
            f"{MOST_ATTEMPTS} clips in a row cannot be read, such as {piece_name}: {reason}; "
            "`partita check RECIPE --data` reads everything once and says what is damaged"
        )

    def _read(self, piece: int, seed: int) -> Example:
        return self.source.read(
            self.pieces,
            piece,
            seed=seed,
            seconds=self.seconds,
            sample_rate=self.sample_rate,
            channels=self.channels,
        )


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

    ``text`` has their captions, ``id`` their pieces, and ``damaged`` pairs (piece, reason) of what was left out for
    them. ``stored`` has the representations that each brings, by fingerprint. ``audible`` says which have audio; the
    others are silent, and a batch without any audio has no samples. ``read`` has the same pair, audio and which have
    some, of each field that a tokenizer reads in the place of the mix.

    Args:
        conditioners: By name; each one's ``prepare`` runs here, in the data workers.
        sample_rate: Rate of the examples, in Hz.
        seconds: Length of examples that bring no audio.
        reads: Fields that tokenizers read in the place of the mix (``stems.drums``).
    """

    def __init__(
        self,
        conditioners: Mapping[str, Reader] | None = None,
        sample_rate: int = 1,
        seconds: float = 0.0,
        reads: Sequence[str] = (),
    ) -> None:
        self.conditioners = dict(conditioners or {})
        self.sample_rate = sample_rate
        self.seconds = seconds
        self.reads = tuple(reads)

    def __call__(self, examples: Sequence[Example]) -> dict[str, Any]:
        """Join examples of equal length."""
        clips = [self._clip(example) for example in examples]
        prepared = {
            name: conditioner.prepare([clip_for(conditioner, clip) for clip in clips])
            for name, conditioner in self.conditioners.items()
        }
        audio, audible = _joined([example.recording for example in examples])
        return {
            "audio": audio,
            "audible": audible,
            "read": {
                name: _joined([recording_of(example, name, self.sample_rate) for example in examples])
                for name in self.reads
            },
            "stored": [example.representations for example in examples],
            "id": [example.fields.get("id") for example in examples],
            "num_samples": torch.tensor([example.num_samples for example in examples]),
            "prepared": prepared,
            "text": [example.fields.get("text") for example in examples],
            "damaged": [reason for example in examples for reason in example.damaged.items()],
        }

    def _clip(self, example: Example) -> Clip:
        heard = example.recording
        seconds = self.seconds if heard is None else heard.shape[-1] / self.sample_rate
        return Clip(example.fields, seconds, heard, self.sample_rate, example.seed)


def _joined(recordings: Sequence[Tensor | None]) -> tuple[Tensor, list[bool]]:
    """Recordings ``[B, C, T]``, silent where there is none, and where there is one."""
    silence = next((torch.zeros_like(one) for one in recordings if one is not None), torch.zeros(1, 0))
    joined = torch.stack([silence if one is None else one for one in recordings])
    return joined, [one is not None for one in recordings]


class Loader(DataLoader):
    """Batches of examples. What had to be left out is logged once, and errors of its workers are as they were raised.

    Args:
        examples: What is read.
        options: As ``DataLoader`` takes them; ``collate_fn`` is a :class:`Collate`.
    """

    def __init__(self, examples: Examples, **options: Any) -> None:
        super().__init__(examples, **options)
        self.examples = examples
        self.told: set[str] = set()

    def __iter__(self) -> Any:
        try:
            for batch in super().__iter__():
                for piece, reason in batch["damaged"]:
                    if piece not in self.told:
                        self.told.add(piece)
                        self.examples.source.note(piece, reason)
                        log.info("  left out: %s: %s", piece, reason)
                yield batch
        except PartitaError as error:
            # A worker's error comes with its traceback, as text.
            _, *said = re.split(r"^partita\.[\w.]+: ", str(error), flags=re.MULTILINE)
            if not said or not str(error).startswith("Caught "):
                raise
            raise PartitaError(said[-1].strip()) from None
