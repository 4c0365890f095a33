"""The training data of a part, as its ``training_input`` declares: audio, prepared clips, or batches of a stage."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ..core.contracts import Condition, Generated, StageBatch
from ..core.part_key import PartKey
from ..core.reference import OutputReference, Reference, unstacked
from ..core.seeds import derive_seed
from ..data.base import Source, Split
from ..data.examples import Collate, ExampleLoader, Examples, StepSampler
from ..recipe.chain import StagePlan
from ..system.generation import decoded
from ..system.mix import mixed
from ..system.system import System
from .batch_encoder import BatchEncoder, batch_audio, with_audio

VALIDATION_SEED = 1
"""Seed of the validation clips, which do not depend on the recipe's seed, so that runs can be compared."""

DEFAULT_FORMAT = (16000, 1)
"""Sample rate and channels of clips for a part that reads no audio."""


class FitData(L.LightningDataModule):
    """The training data of one part, selected by its ``training_input``.

    ``audio`` means batches of audio, ``clips`` the tensors that the part's ``prepare`` returns, and ``stage`` a
    :class:`~partita.core.contracts.StageBatch`, whose target and conditions are computed on the device.

    Args:
        system: The system with the part and the source.
        key: Key of the part.
        source: Source of the examples. ``None`` takes that of the system.
    """

    def __init__(self, system: System, key: PartKey, source: Source | None = None) -> None:
        super().__init__()
        self.system = system
        self.source = source or system.source
        self.key = key
        self.part: Any = system.training_order[key]
        self.fit = self.part.fit_options
        name = key.name
        self.stage = system.plan.stages[name] if self.part.training_input == "stage" else None
        self.plans = {} if self.stage is None else _upstream(system, name)
        self.references = [r for plan in self.plans.values() for r in (*plan.targets, *plan.references.values())]
        self.seconds = self.fit.crop if self.stage is None else self.stage.window
        names = [name for plan in self.plans.values() for name in plan.conditioners]
        self.conditioners: dict[str, Any] = {name: system.conditioners[name] for name in names}
        if self.part.training_input == "clips":
            self.conditioners = {name: self.part}
        formats = [self.part.audio_format, *(conditioner.audio_format for conditioner in self.conditioners.values())]
        for reference in self.references:
            spec = system.tokenizer_of(reference).spec
            formats.append((spec.sample_rate, spec.channels))
        # clips are read once, at the highest sample rate that is needed
        needed = [one for one in formats if one is not None] or [DEFAULT_FORMAT]
        self.sample_rate, self.channels = (max(numbers) for numbers in zip(*needed, strict=True))
        own = system.part_plan(key).reads
        fields = [own, *(system.plan.reads(reference) for reference in self.references)]
        self.collate = Collate(
            self.conditioners,
            self.sample_rate,
            self.seconds,
            reads=list(dict.fromkeys(name for name in fields if name is not None)),
            stored=self._stored_conditions(),
        )
        self.reads = own
        self.batch_encoder = BatchEncoder(system, self.references, self.sample_rate, self.seconds)

    def train_dataloader(self) -> DataLoader:
        """Return the loader of training batches, from the first one that is not completed."""
        assert self.trainer is not None
        fit, trainer = self.fit, self.trainer
        span = StepSampler(
            fit.batches,
            fit.batch_size,
            start=trainer.fit_loop.epoch_loop.batch_progress.current.completed,
            rank=trainer.global_rank,
            world_size=trainer.world_size,
        )
        seed = derive_seed(self.system.plan.seed, self.key, "data")
        examples = self.examples("train", len(span) * trainer.world_size, seed)
        examples.overlay = fit.overlay
        return self._loader(examples, span, fit.batch_size)

    def val_dataloader(self) -> DataLoader:
        """Return the loader of fixed validation clips. Batches are dealt to the processes, at least one to each."""
        assert self.trainer is not None
        rank, processes = self.trainer.global_rank, self.trainer.world_size
        examples = self.validation_examples(at_least=processes)
        size = min(self.fit.batch_size, len(examples) // processes)
        batches = [range(first, min(first + size, len(examples))) for first in range(0, len(examples), size)]
        return self._loader(examples, [i for batch in batches[rank::processes] for i in batch], size)

    def validation_examples(self, at_least: int = 1) -> Examples:
        """Return the fixed validation clips."""
        return self.examples("validation", max(at_least, self.fit.validation_examples), VALIDATION_SEED)

    def originals(self, count: int = 2) -> Tensor:
        """Return the first validation clips ``[B, C, T]``; an empty batch if any of them has no audio."""
        audio, has_audio = batch_audio(self._shown(count), self.reads)
        return audio if all(has_audio) else audio[:0]

    @torch.no_grad()
    def render(self, count: int = 2) -> Tensor:
        """Return the output of the part for the first validation clips: reconstructions, or generated clips.

        The result is empty if the output of the part cannot be decoded to audio.
        """
        part = self.part
        if part.training_input == "clips":
            return torch.empty(0)
        was_training, device = part.training, part.device
        part.eval()
        batch = self.transfer_batch_to_device(self._shown(count), device, 0)
        try:
            if self.stage is None:
                return part.decode(part.encode(with_audio(batch, self.reads)["audio"]))
            staged = self.on_after_batch_transfer(batch, 0)
            pairs, seeds = part.resolve(staged), list(range(count))
            generated = part.generate(pairs, staged.target.shape[-1], seeds=seeds)
            encoded, targets = self.batch_encoder(batch), self.stage.targets
            rows = unstacked(generated.values, [self.system.spec(target) for target in targets])
            clips = []
            for target, own in zip(targets, rows, strict=True):
                values = torch.cat([encoded[target.source][0][:, : target.start], own], dim=1)
                clips.append(decoded(self.system.tokenizer_of(target), Generated(values, generated.lengths)))
            return mixed(clips, [self.system.tokenizer_of(target).spec for target in targets])
        except NotImplementedError:
            return torch.empty(0)
        finally:
            part.train(was_training)

    def _shown(self, count: int) -> dict[str, Any]:
        examples = self.validation_examples()
        return self.collate([examples[i % len(examples)] for i in range(count)])

    @torch.no_grad()
    def on_after_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> Any:
        """Return the input of the part's training step, computed on the device.

        For a stage, this encodes audio unless its representation is stored, and runs the conditioners that are not
        trained with the stage.
        """
        if self.part.training_input == "clips":
            return batch["prepared"][self.key.name]
        if self.stage is None:
            return with_audio(batch, self.reads)
        return self._stage_batch(self.key.name, batch, self.batch_encoder(batch))

    def _stage_batch(self, name: str, batch: dict[str, Any], encoded: dict[str, tuple[Tensor, Tensor]]) -> StageBatch:
        """Return the batch of the stage in training, or of an earlier stage whose outputs it is given."""
        plan, stage = self.plans[name], self.system.stages[name]

        def part(reference: Reference) -> tuple[Tensor, Tensor]:
            whole, present = encoded[reference.source]
            return reference.take(whole), present

        given: dict[str, Any] = {}
        for source in plan.given:
            if source in plan.references:
                condition = Condition.of(*part(plan.references[source]))
                given[source] = (condition, condition.absent())
            elif source in plan.outputs:
                condition = self._output(plan.outputs[source], batch, encoded)
                given[source] = (condition, condition.absent())
            elif source in stage.joint:
                given[source] = batch["prepared"][source]
            else:
                conditioner = self.conditioners[source].to(batch["audio"].device).eval()
                condition = _condition(conditioner, source, batch)
                given[source] = (condition, conditioner.null(condition))
        if len(plan.targets) == 1:  # concatenation would change the memory layout, on which the drawn noise depends
            return StageBatch(*part(plan.target), given)
        targets = [part(target) for target in plan.targets]
        frames = min(target.shape[-1] for target, _ in targets)
        mask = torch.stack([present[:, :frames] for _, present in targets]).all(0)
        return StageBatch(torch.cat([target[..., :frames] for target, _ in targets], 1), mask, given)

    def _output(
        self, wanted: OutputReference, batch: dict[str, Any], encoded: dict[str, tuple[Tensor, Tensor]]
    ) -> Condition:
        """Return a side output of an earlier stage, which runs frozen on its target from the clip."""
        earlier = self.system.stages[wanted.stage].to(batch["audio"].device).eval()
        staged = self._stage_batch(wanted.stage, batch, encoded)
        conditions = {name: condition for name, (condition, _) in earlier.resolve(staged).items()}
        return earlier.compute_outputs(staged.target, staged.mask, conditions)[wanted.output]

    def examples(self, split: Split, length: int, seed: int, source: Source | None = None) -> Examples:
        """Return clips in the format of this part, from ``source`` (after its setup) or the system's source."""
        return Examples(
            source or self.source,
            split,
            length=length,
            seconds=self.seconds,
            sample_rate=self.sample_rate,
            channels=self.channels,
            seed=seed,
            excerpts=any("excerpt" in conditioner.inputs for conditioner in self.conditioners.values()),
        )

    def _stored_conditions(self) -> dict[str, str]:
        """Return the keys of the stored conditions that replace the output of conditioners, by name."""
        if self.stage is None or not self.source.stored_keys:
            return {}
        joint = {name for plan in self.plans for name in self.system.stages[plan].joint}
        keys = {name: one.fingerprint() for name, one in self.conditioners.items() if name not in joint}
        return {name: key for name, key in keys.items() if key in self.source.stored_keys}

    def _loader(self, examples: Examples, sampler: Any, batch_size: int) -> DataLoader:
        workers = self.fit.num_workers
        return ExampleLoader(
            examples,
            batch_size=batch_size,
            sampler=sampler,
            collate_fn=self.collate,
            num_workers=workers,
            persistent_workers=workers > 0,
            prefetch_factor=4 if workers else None,
            pin_memory=torch.cuda.is_available(),
        )


def _condition(conditioner: Any, name: str, batch: dict[str, Any]) -> Condition:
    """Return the condition of a batch: stored ones, and the output of the conditioner for the other examples."""
    stored = batch["conditions"].get(name)
    if stored is None:
        return conditioner(batch["prepared"][name])
    fresh = conditioner(batch["prepared"][name]) if name in batch["prepared"] else None
    rows, computed = [], 0
    for one in stored:
        if one is None:
            assert fresh is not None
            rows.append(Condition(fresh.values[computed : computed + 1], fresh.mask[computed : computed + 1]))
            computed += 1
        else:
            values, mask = one
            device = batch["audio"].device
            values = values.float() if values.is_floating_point() else values.long()
            rows.append(Condition(values.to(device)[None], mask.to(device)[None]))
    longest = max(row.mask.shape[1] for row in rows)
    return Condition.cat([row.lasting(longest) for row in rows])


def _upstream(system: System, name: str) -> dict[str, StagePlan]:
    """Return the plans of a stage and of the stages whose side outputs it needs in training."""
    plan = system.plan.stages[name]
    found = {name: plan}
    for output in plan.outputs.values():
        found |= _upstream(system, output.stage)
    return found
