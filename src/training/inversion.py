"""Textual inversion: a pseudo-word is learned from a recording, and nothing else changes."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..conditioners.base import Conditioner
from ..core.contracts import Example, StageBatch
from ..core.excerpt import Excerpt
from ..core.part_key import PartKey
from ..core.progress import progress
from ..core.seeds import derive_seed
from ..data.base import Source, Split
from ..errors import PartitaError
from ..system.saved_words import save_word, text_conditioner
from ..system.system import System
from .fit_data import FitData

PROBES = 8
"""Crops on which losses are compared."""


@dataclass(frozen=True)
class Inversion:
    """How a pseudo-word is learned.

    MusicGen-Style's paper compares with this method (arXiv 2407.12563 §4); the options of its training are not
    published. The method is that of arXiv 2208.01618.

    Args:
        start: The words whose vectors it starts from, and how many it has.
        steps: Updates of the vectors.
        batch_size: Crops of the recording in an update.
        lr: Learning rate of Adam.
        seed: Seed of the crops.

    Raises:
        ValueError: A number is out of range.
    """

    start: str = "music"
    steps: int = 200
    batch_size: int = 8
    lr: float = 0.025
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch_size < 1:
            raise ValueError(f"steps and batch_size must be at least 1, not {self.steps} and {self.batch_size}")
        if not 0 < self.lr <= 10:
            raise ValueError(f"lr must be above 0 and at most 10, not {self.lr}")


class Recording(Source):
    """Crops of one recording, all with the same prompt."""

    fields = frozenset({"text"})
    registered_name = "recording"

    def __init__(self, audio: Excerpt, prompt: str) -> None:
        self.audio, self.prompt = audio, prompt
        self._recordings: dict[tuple[int, int], Tensor] = {}

    def setup(self) -> None:
        """Do nothing."""

    def size(self, split: Split) -> int:
        """One piece in each split."""
        return 1

    def read(
        self, split: Split, index: int, *, seed: int, seconds: float | None, sample_rate: int, channels: int
    ) -> Example:
        """Read a crop at random; see :meth:`~partita.data.base.Source.read`."""
        if (sample_rate, channels) not in self._recordings:
            self._recordings[sample_rate, channels] = self.audio.read(sample_rate, channels)[0]
        whole = self._recordings[sample_rate, channels]
        length = whole.shape[1] if seconds is None else round(seconds * sample_rate)
        start = round(np.random.default_rng(seed).random() * max(0, whole.shape[1] - length))
        crop = whole[:, start : start + length]
        padded = torch.nn.functional.pad(crop, (0, length - crop.shape[1]))
        return Example(padded, crop.shape[1], {"id": "recording", "text": self.prompt})


def invert(
    system: System,
    recording: Any,
    name: str,
    folder: str | Path,
    *,
    prompts: Sequence[str] = (),
    options: Inversion = Inversion(),
) -> dict[str, float]:
    """Learn a pseudo-word for the music of a recording, and save it.

    Afterwards, the system knows it, and prompts can have it: ``a waltz like <name>``.

    Args:
        system: The system, whose stages and conditioners stay as they are.
        recording: A path, samples at the output's sample rate, or a :class:`partita.Excerpt`, in [-1, 1].
        name: What the pseudo-word is called, without the angle brackets.
        folder: The folder to write.
        prompts: What prompts the loss is compared with, such as the caption of the recording.
        options: Options of the training.

    Returns:
        The mean loss of crops of the recording for the pseudo-word (``<name>``), what it started from, and each of the
        ``prompts``.

    Raises:
        PartitaError: The recording cannot be read, or no stage reads prompts.
    """
    key, conditioner = text_conditioner(system)
    stages = [stage for stage, plan in system.plan.stages.items() if key in plan.conditioners]
    if not stages:
        raise PartitaError(f"no stage is given {key}, from which a pseudo-word could learn")
    audio = recording if isinstance(recording, Excerpt) else Excerpt(recording)
    audio.length(system.sample_rate)  # which reports a file that cannot be read
    for part in system.parts.values():
        part.eval().requires_grad_(False)
    vectors = conditioner.word_vectors(options.start)
    if not len(vectors):
        raise PartitaError(f"start has no word that {conditioner.registered_name} reads: {options.start!r:.80}")
    try:
        conditioner.pseudo_words.add(name, vectors.detach())
    except ValueError as error:
        raise PartitaError(str(error)) from None
    learned = conditioner.pseudo_words.vectors[name]
    prompt = f"<{name}>"
    with _as_joint(system, stages, key, conditioner):
        losses = _Losses(system, stages, audio)
        before = {text: losses.probe(text) for text in dict.fromkeys([options.start, *prompts])}
        optimizer = torch.optim.Adam([learned.requires_grad_()], lr=options.lr)
        for step in range(options.steps):
            loss = losses(prompt, options.batch_size, derive_seed(options.seed, "inversion", step) % 2**31)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            progress("inversion", step + 1, options.steps)
        learned.requires_grad_(False)
        found = {prompt: losses.probe(prompt)} | before
    facts = {"learned_from": options.start, "steps": options.steps, "lr": options.lr, "losses": found}
    save_word(Path(folder), name, learned, conditioner, facts)
    return found


class _Losses:
    """The losses of crops of a recording under a prompt, summed over the stages that are given it."""

    def __init__(self, system: System, stages: Sequence[str], audio: Excerpt) -> None:
        self.stages = {name: (system.stages[name], FitData(system, PartKey.of("stages", name))) for name in stages}
        self.source = Recording(audio, "")

    def __call__(self, prompt: str, number: int, seed: int) -> Tensor:
        """The mean loss of so many crops."""
        return torch.stack([self._loss(name, prompt, number, seed) for name in self.stages]).sum()

    @torch.no_grad()
    def probe(self, prompt: str) -> float:
        """The mean loss of crops that are always the same."""
        return statistics.fmean(float(self(prompt, 1, derive_seed(place, "probe") % 2**31)) for place in range(PROBES))

    def _loss(self, name: str, prompt: str, number: int, seed: int) -> Tensor:
        stage, data = self.stages[name]
        self.source.prompt = prompt
        examples = data.examples("train", number, seed, self.source)
        drawn = [examples[i] for i in range(number)]
        for example in drawn:
            example.seed = None  # no word of the prompt is left out
        batch: StageBatch = data.on_after_batch_transfer(
            data.transfer_batch_to_device(data.collate(drawn), stage.device, 0), 0
        )
        conditions = {key: condition for key, (condition, _) in stage.resolve(batch).items()}
        with torch.random.fork_rng([stage.device] if stage.device.type == "cuda" else []):
            torch.manual_seed(seed)
            return stage.loss(batch.target, batch.mask, conditions)["loss"]


@contextmanager
def _as_joint(system: System, stages: Sequence[str], key: str, conditioner: Conditioner) -> Iterator[None]:
    """Let a conditioner be computed with the loss of each stage, so that its gradient is known."""
    added = [system.stages[name].joint for name in stages if key not in system.stages[name].joint]
    for joint in added:
        joint[key] = conditioner
    try:
        yield
    finally:
        for joint in added:
            del joint[key]
