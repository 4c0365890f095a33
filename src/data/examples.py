"""Numbered examples of a training run, which can be resumed at any of them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from ..core.contracts import Clip, Example, RepresentationSpec
from ..core.logs import shared_logger
from ..core.seeds import derive_seed
from ..errors import PartitaError
from .base import Source, Split, UnreadableClip
from .clips import ClipReader, clip_for, tokenizer_audio
from .overlay import overlaid

log = shared_logger(__name__)

MAX_ATTEMPTS = 50
"""Maximum number of unreadable clips in a row. If half of the pieces are damaged, that many practically never occur; if
nine tenths are, they occur for one in 200 examples."""


class Examples(Dataset):
    """Clips from a source. Example ``i`` is the same whenever and in whichever process it is read.

    The source selects the piece (:meth:`~partita.data.base.Source.draw`). Unreadable clips are skipped
    deterministically and recorded in the report of the source.

    Args:
        source: The source, after its setup.
        split: Split of the source. An empty split is replaced by
            :meth:`~partita.data.base.Source.fallback_split`.
        length: Number of examples.
        seconds: Length of each clip.
        sample_rate: Sample rate of the clips, in Hz.
        channels: Number of audio channels.
        seed: Seed of the order and the crops.
        excerpts: Whether every example carries a second clip of its piece, in the field ``excerpt``.

    Attributes:
        overlay: Fraction of the examples that are a clip :func:`laid over another <partita.data.overlay.overlaid>`.
    """

    overlay: float = 0.0

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
        self.pieces = source.fallback_split(split)
        self.length = length
        self.seconds = seconds
        self.sample_rate = sample_rate
        self.channels = channels
        self.seed = seed
        self.excerpts = excerpts

    @classmethod
    def for_spec(
        cls,
        spec: RepresentationSpec,
        source: Source,
        split: Split,
        length: int,
        seconds: float,
        seed: int,
        excerpts: bool = False,
    ) -> Self:
        """Return examples at the sample rate and with the channels of a representation."""
        return cls(
            source,
            split,
            length=length,
            seconds=seconds,
            sample_rate=spec.sample_rate,
            channels=spec.channels,
            seed=seed,
            excerpts=excerpts,
        )

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Example:
        """Return example ``index``. If its piece cannot be read, return a clip of the next readable piece.

        Raises:
            PartitaError: Too many clips in a row cannot be read.
        """
        damaged: dict[str, str] = {}
        for attempt in range(MAX_ATTEMPTS):
            piece, seed = self.source.draw(self.pieces, index, self.seed, attempt)
            try:
                example = self._read(piece, seed)
                if np.random.default_rng(derive_seed(seed, "overlay")).random() < self.overlay:
                    example = self._overlaid(example, piece, seed)
                elif self.excerpts and example.fields.get("excerpt") is None:
                    example.fields["excerpt"] = self.source.read_beside(self.pieces, piece, **self._clip(seed))
            except UnreadableClip as error:
                damaged.setdefault(error.piece, error.reason)
                self.source.note(error.piece, error.reason)  # lost in a worker process, so the example carries it too
                continue
            example.seed = seed if self.split == "train" else None
            example.damaged = damaged
            return example
        piece_name, reason = next(iter(damaged.items()))
        raise PartitaError(
            f"{MAX_ATTEMPTS} clips in a row cannot be read, such as {piece_name}: {reason}; "
            "`partita check RECIPE --data` reads all files once and lists the damaged ones"
        )

    def _read(self, piece: int, seed: int) -> Example:
        return self.source.read(self.pieces, piece, **self._clip(seed))

    def _overlaid(self, example: Example, piece: int, seed: int) -> Example:
        """The example with a clip of another piece, or of the same one if there is no other."""
        rng = np.random.default_rng(derive_seed(seed, "second"))
        others = self.source.size(self.pieces) - 1
        other = (piece + 1 + int(rng.integers(others))) % (others + 1) if others else piece
        return overlaid(example, self._read(other, int(rng.integers(2**31))), int(rng.integers(2**31)))

    def _clip(self, seed: int) -> dict[str, Any]:
        """What is read of a piece."""
        return {
            "seed": seed,
            "seconds": self.seconds,
            "sample_rate": self.sample_rate,
            "channels": self.channels,
        }


class StepSampler(Sampler[int]):
    """The example numbers of one process, from a given step on. Its length counts from step 0.

    Args:
        steps: Number of steps of the whole run.
        batch_size: Examples per step and process.
        start: Number of completed steps.
        rank: Rank of this process.
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
    """Collates examples into a batch, which is a dictionary with these keys.

    - ``audio``: Audio ``[B, C, T]``, silent for examples without audio; no samples if none has audio.
    - ``has_audio``: Whether each example has audio.
    - ``num_samples``: Number of samples of each clip that are not padding, ``[B]``.
    - ``prepared``: The prepared tensors of each conditioner, of the examples without a stored condition.
    - ``conditions``: For each conditioner whose conditions are stored, that of each example, or ``None``.
    - ``text``, ``id``: The caption and the name of the piece of each example.
    - ``stored``: The stored representations of each example, by fingerprint.
    - ``field_audio``: For each field that a tokenizer reads instead of the mix, its audio and which examples have it.
    - ``damaged``: Pairs (piece, reason) of the pieces that were skipped.

    Args:
        conditioners: Conditioners by name. Their ``prepare`` runs here, in the data workers.
        sample_rate: Sample rate of the examples, in Hz.
        seconds: Length of examples without audio.
        reads: Fields that tokenizers read instead of the mix (``stems.drums``).
        stored: Keys of stored conditions, by the name of their conditioner.
    """

    def __init__(
        self,
        conditioners: Mapping[str, ClipReader] | None = None,
        sample_rate: int = 1,
        seconds: float = 0.0,
        reads: Sequence[str] = (),
        stored: Mapping[str, str] | None = None,
    ) -> None:
        self.conditioners = dict(conditioners or {})
        self.sample_rate = sample_rate
        self.seconds = seconds
        self.reads = tuple(reads)
        self.stored = dict(stored or {})

    def __call__(self, examples: Sequence[Example]) -> dict[str, Any]:
        """Collate examples of equal length."""
        clips = [self._clip(example) for example in examples]
        conditions = {
            name: found
            for name, key in self.stored.items()
            if any(found := [example.conditions.get(key) for example in examples])
        }
        prepared = {}
        for name, conditioner in self.conditioners.items():
            known = conditions.get(name, [None] * len(clips))
            if fresh := [clip for clip, condition in zip(clips, known, strict=True) if condition is None]:
                prepared[name] = conditioner.prepare([clip_for(conditioner, clip) for clip in fresh])
        audio, has_audio = _stacked([example.recording for example in examples])
        return {
            "audio": audio,
            "has_audio": has_audio,
            "field_audio": {
                name: _stacked([tokenizer_audio(example, name, self.sample_rate) for example in examples])
                for name in self.reads
            },
            "stored": [example.representations for example in examples],
            "id": [example.fields.get("id") for example in examples],
            "num_samples": torch.tensor([example.num_samples for example in examples]),
            "prepared": prepared,
            "conditions": conditions,
            "text": [example.fields.get("text") for example in examples],
            "damaged": [reason for example in examples for reason in example.damaged.items()],
        }

    def _clip(self, example: Example) -> Clip:
        audio = example.recording
        seconds = self.seconds if audio is None else audio.shape[-1] / self.sample_rate
        return Clip(example.fields, seconds, audio, self.sample_rate, example.seed)


def _stacked(recordings: Sequence[Tensor | None]) -> tuple[Tensor, list[bool]]:
    """Stack recordings to ``[B, C, T]``, with silence for missing ones, and return which exist."""
    silence = next((torch.zeros_like(one) for one in recordings if one is not None), torch.zeros(1, 0))
    stacked = torch.stack([silence if one is None else one for one in recordings])
    return stacked, [one is not None for one in recordings]


class ExampleLoader(DataLoader):
    """Loads batches of examples, logs each skipped piece once, and raises the errors of its workers unchanged.

    Args:
        examples: The examples.
        options: Arguments of ``DataLoader``. ``collate_fn`` must be a :class:`Collate`.
    """

    def __init__(self, examples: Examples, **options: Any) -> None:
        super().__init__(examples, **options)
        self.examples = examples
        self.logged: set[str] = set()

    def __iter__(self) -> Any:
        try:
            for batch in super().__iter__():
                for piece, reason in batch["damaged"]:
                    if piece not in self.logged:
                        self.logged.add(piece)
                        self.examples.source.note(piece, reason)
                        log.info("  skipped: %s: %s", piece, reason)
                yield batch
        except PartitaError as error:
            raise from_worker(error) from None


def from_worker(error: PartitaError) -> PartitaError:
    """Return an error as its worker process raised it. What a loader raises is text with a traceback."""
    _, *messages = re.split(r"^partita\.[\w.]+: ", str(error), flags=re.MULTILINE)
    return PartitaError(messages[-1].strip()) if messages and str(error).startswith("Caught ") else error
