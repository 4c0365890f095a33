"""Training a system: its parts in order under one run folder, each its own Lightning fit, resumed exactly."""

from __future__ import annotations

import errno
import logging
import re
import shutil
import signal
import statistics
import sys
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from omegaconf import OmegaConf
from torch import Tensor
from torch.utils.data import DataLoader

from .callbacks import Bar, KeepCheckpoint, Lines, Media, NaNGuard, Reseed, Stopwatch, Throughput
from .compose import flat
from .contracts import Condition, StageBatch
from .data.base import Split
from .data.examples import Collate, Examples, Span
from .errors import PartitaError, Stopped
from .files import replacing_file
from .layers.resample import convert
from .loggers import close, make_loggers
from .part import Part
from .precision import feasible
from .recipe import PartPlan, Plan
from .recipe_files import read_yaml
from .reference import Reference
from .run_log import RunLog
from .seeds import derive_seed
from .system import INDEX, System, index_text

VALIDATION_SEED = 1
"""Validation clips are the same whatever the recipe's seed, so that runs can be compared."""


def train(plan: Plan, run: str | Path, *, say: Callable[[str], None] = lambda line: None) -> System:
    """Train every part of a system that has no weights, or go on where a killed run stopped.

    Args:
        plan: A checked recipe.
        run: Folder of the run; made if it is not there.
        say: Gets a line on each thing done.

    Raises:
        PartitaError: The folder holds a run of another recipe, the data is unusable, or training broke down.
    """
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # device lists and tips
    run = Path(run)
    system = System(plan)
    _claim(plan, run)
    say = log = RunLog(run / "logs" / "train.log", say)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # what was skipped is in the report
        system.source.setup()
    for line in system.source.report:
        say(line)
    if (shortage := system.source.shortage("validation")) is not None:
        say(shortage)
    system.check_fields()
    # What learns with a stage is saved before it, and is done when the stage is.
    joint = {f"conditioners/{name}": f"stages/{stage}" for stage, part in system.stages.items() for name in part.joint}
    done = set()
    for folder, part in system.parts.items():  # before any training, which missing weights would waste
        weights = system.part_plan(folder).weights
        if (run / joint.get(folder, folder) / "model.safetensors").is_file():
            part.load_weights(run / folder)
            say(f"{folder}: trained already" if weights is None else f"{folder}: weights kept in the run")
            done.add(folder)
        elif weights is not None or part.weightless:
            if weights is not None:
                part.load_weights(weights)
                say(f"{folder}: weights from {weights}")
            part.save(run / folder)
            done.add(folder)
        else:
            _load_inner(part, system.part_plan(folder))
    for folder, part in system.parts.items():
        if folder not in done and folder not in joint:
            say(f"{folder}: {part.fit_options.steps:,} steps of {part.fit_options.batch_size}")
            _fit(system, folder, run, log)
        part.eval().requires_grad_(False)
    return system


def _load_inner(part: Part, plan: PartPlan) -> None:
    """The pretrained weights of parts inside a part that is going to be trained."""
    for name, inner in plan.parts.items():
        if inner.weights is not None:
            getattr(part, name).load_weights(inner.weights)
        else:
            _load_inner(getattr(part, name), inner)


_WITHOUT_EFFECT = re.compile(
    r"^description$|(^|\.)fit\.(checkpoint_every|checkpoint_seconds|num_workers)$"
    r"|(^|\.)trainer\.(logger\b.*|log_every_n_steps|enable_progress_bar|enable_model_summary)$"
)
"""Keys that change nothing about the weights: a run goes on when they differ."""


def _claim(plan: Plan, run: Path) -> None:
    """Make the folder this recipe's, or see that it is."""
    for stale in run.rglob(".*.part"):  # what a killed process was writing
        stale.unlink() if stale.is_file() else shutil.rmtree(stale)
    index, text = run / INDEX, index_text(plan)
    old = index.read_text(encoding="utf-8") if index.is_file() else None
    if old is None and run.exists() and any(run.iterdir()):
        raise PartitaError(f"{run} is not empty and holds no run: choose another folder with -o")
    begun = any(run.rglob("*.safetensors")) or any(run.rglob("*.ckpt"))
    changed: list[str] = []
    if old is not None and old != text:
        ours, theirs = dict(flat(OmegaConf.to_container(OmegaConf.create(text)))), dict(flat(read_yaml(index)))
        differing = [key for key in sorted(ours | theirs) if ours.get(key) != theirs.get(key)]
        keys = [key for key in differing if not _WITHOUT_EFFECT.search(key)]
        changed = [f"  {key}: {theirs.get(key, 'unset')} → {ours.get(key, 'unset')}" for key in keys]
    if old is not None and begun and changed:
        raise PartitaError(
            f"{run} holds a run of another recipe; choose another folder with -o, or go on with the same recipe. "
            "What differs:\n" + "\n".join(changed[:12])
        )
    if old != text:
        with replacing_file(index) as new:
            new.write_text(text, encoding="utf-8")


class AtomicCheckpoints(TorchCheckpointIO):
    """Checkpoints that are either whole or not there, and that are read without unpickling anything but tensors."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write beside the old one, then take its place."""
        with replacing_file(Path(path)) as new:
            torch.save(checkpoint, new)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Read tensors and plain values only."""
        return torch.load(path, map_location=map_location, weights_only=True)


class FitData(L.LightningDataModule):
    """Data for one part: clips at its rate, and for a stage their target and conditions, made on the device."""

    def __init__(self, system: System, folder: str) -> None:
        super().__init__()
        self.system = system
        self.folder = folder
        self.fit = system.parts[folder].fit_options
        group, name = folder.split("/")
        self.stage = system.plan.stages[name] if group == "stages" else None
        references = [Reference(name)] if self.stage is None else [self.stage.target, *self.stage.references.values()]
        rates = [system.tokenizer_of(reference).representation for reference in references]
        # read once, at the best of the rates that are needed
        self.sample_rate, self.channels = max(r.sample_rate for r in rates), max(r.channels for r in rates)
        self.seconds = self.fit.crop if self.stage is None else self.stage.window
        names = [] if self.stage is None else [n for n in self.stage.given if n not in self.stage.references]
        self.conditioners = {n: system.conditioners[n] for n in names}

    def train_dataloader(self) -> DataLoader:
        """From the first step that is not done yet."""
        assert self.trainer is not None
        fit, trainer = self.fit, self.trainer
        span = Span(
            fit.steps,
            fit.batch_size,
            start=trainer.fit_loop.epoch_loop.batch_progress.current.completed,
            rank=trainer.global_rank,
            world_size=trainer.world_size,
        )
        seed = derive_seed(self.system.plan.seed, self.folder, "data")
        return self._loader(self._examples("train", len(span) * trainer.world_size, seed), span)

    def val_dataloader(self) -> DataLoader:
        """Fixed clips of held-out pieces."""
        assert self.trainer is not None
        examples = self.validation_examples()
        mine = range(self.trainer.global_rank, len(examples), self.trainer.world_size)
        return self._loader(examples, mine)

    def validation_examples(self) -> Examples:
        """The fixed clips."""
        return self._examples("validation", self.fit.validation_examples, VALIDATION_SEED)

    def originals(self, count: int = 2) -> Tensor:
        """The first fixed clips ``[B, C, T]``."""
        return self._shown(count)["audio"]

    @torch.no_grad()
    def render(self, count: int = 2) -> Tensor:
        """What the part in training makes of them: reconstructions, or clips generated from their conditions.

        No clips at all where what it makes cannot be heard.
        """
        part = self.system.parts[self.folder]
        was_training, device = part.training, part.device
        part.eval()
        batch = self.transfer_batch_to_device(self._shown(count), device, 0)
        try:
            if self.stage is None:
                return part.decode(part.encode(batch["audio"]))  # type: ignore[operator]
            staged = self.on_after_batch_transfer(batch, 0)
            pairs, seeds = part.resolve(staged), list(range(count))  # type: ignore[operator]
            representation = part.generate(pairs, staged.target.shape[-1], seeds=seeds)  # type: ignore[operator]
            whole = self._encoded(batch["audio"])[self.stage.target.source]
            made = torch.cat([whole[:, : self.stage.target.start], representation], dim=1)
            return self.system.tokenizer_of(self.stage.target).decode(made)
        except NotImplementedError:
            return torch.empty(0)
        finally:
            part.train(was_training)

    def _shown(self, count: int) -> dict[str, Any]:
        examples = self.validation_examples()
        return Collate(self.conditioners)([examples[i % len(examples)] for i in range(count)])

    @torch.no_grad()
    def on_after_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> Any:
        """For a stage: encode the audio and run the conditioners that are not trained with it."""
        if self.stage is None:
            return batch
        audio, stage = batch["audio"], self.system.stages[self.folder.split("/")[1]]
        encoded = self._encoded(audio)

        def part(reference: Reference) -> tuple[Tensor, Tensor]:
            representation = reference.take(encoded[reference.source])
            frames = self.system.facts(reference).begun_frames(batch["num_samples"], self.sample_rate)
            return representation, torch.arange(representation.shape[-1], device=audio.device) < frames[:, None]

        given: dict[str, Any] = {}
        for name in self.stage.given:
            if name in self.stage.references:
                condition = Condition.of(*part(self.stage.references[name]))
                given[name] = (condition, condition.absent())
            elif name in stage.joint:
                given[name] = batch["prepared"][name]
            else:
                conditioner = self.conditioners[name].to(audio.device).eval()
                condition = conditioner(batch["prepared"][name])
                given[name] = (condition, conditioner.null(condition))
        return StageBatch(*part(self.stage.target), given)

    def _encoded(self, audio: Tensor) -> dict[str, Tensor]:
        """What the stage generates or is given, whole, by source."""
        assert self.stage is not None
        encoded = {}
        for reference in (self.stage.target, *self.stage.references.values()):
            if reference.source not in encoded:
                self.system.tokenizers[reference.tokenizer].to(audio.device).eval()
                tokenizer = self.system.tokenizer_of(reference)
                facts = tokenizer.representation
                converted = convert(audio, self.sample_rate, facts.sample_rate, facts.channels)
                encoded[reference.source] = tokenizer.encode(converted)
        return encoded

    def _examples(self, split: Split, length: int, seed: int) -> Examples:
        return Examples(
            self.system.source,
            split,
            length=length,
            seconds=self.seconds,
            sample_rate=self.sample_rate,
            channels=self.channels,
            seed=seed,
        )

    def _loader(self, examples: Examples, sampler: Any) -> DataLoader:
        workers = self.fit.num_workers
        return DataLoader(
            examples,
            batch_size=self.fit.batch_size,
            sampler=sampler,
            collate_fn=Collate(self.conditioners),
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=torch.cuda.is_available(),
        )


def _fit(system: System, folder: str, run: Path, log: RunLog) -> None:
    """Train one part from its last checkpoint on, and save it with the conditioners that learned with it."""
    part = system.parts[folder]
    part.train().requires_grad_(True)
    data, checkpoint = FitData(system, folder), checkpoint_path(run, folder)
    trainer = make_trainer(system.plan, part, folder, run, data, log)
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message=r".*(many workers|ambiguous collection|ended before the epoch|LeafSpec)"
        )
        try:
            trainer.fit(part, datamodule=data, ckpt_path=checkpoint if checkpoint.is_file() else None)
        except torch.OutOfMemoryError as error:
            raise PartitaError(
                f"{folder}: out of memory at batch size {part.fit_options.batch_size}: lower fit.batch_size or "
                f"fit.crop (a stage's window), or set fit.precision=bf16-mixed ({str(error).splitlines()[0]})"
            ) from None
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            raise PartitaError(
                f"{folder}: the disk of {run} is full; free some space and run the same command again"
            ) from None
        finally:
            close(trainer.loggers)
    if not trainer.state.finished:
        raise Stopped(signal.SIGINT)
    part.cpu()
    if trainer.is_global_zero:
        for name, conditioner in getattr(part, "joint", {}).items():
            conditioner.save(run / "conditioners" / name)
        part.save(run / folder)
        checkpoint.unlink(missing_ok=True)
        with suppress(OSError):  # other parts may have one there
            checkpoint.parent.rmdir()
    trainer.strategy.barrier()


def make_trainer(plan: Plan, part: Part, folder: str, run: Path, data: FitData, log: RunLog) -> L.Trainer:
    """The Lightning trainer of one part: the recipe's ``trainer:`` and the part's ``fit:`` over these defaults."""
    fit = part.fit_options
    seed = derive_seed(plan.seed, folder, "steps")
    options: dict[str, Any] = {
        "log_every_n_steps": min(20, fit.steps),
        "precision": fit.precision,
        "num_sanity_val_steps": 0,
        "enable_model_summary": False,
        "enable_progress_bar": sys.stdout.isatty(),
        **plan.trainer,
        **fit.trainer,
    }
    if "precision" not in plan.trainer.keys() | fit.trainer.keys():
        options["precision"] = feasible(fit.precision, options.get("accelerator", "auto"))
        if options["precision"] != fit.precision:
            log(
                f"  in {options['precision']}: {fit.precision} is slow on this CPU "
                f"(trainer.precision={fit.precision} insists on it)"
            )
    options["logger"] = make_loggers(options.get("logger"), run, folder, dict(flat(plan.values)))
    every = max(1, int(options["log_every_n_steps"]))
    ours: list[L.Callback] = [
        Reseed(seed),
        NaNGuard(every),
        Throughput(fit.batch_size * data.seconds, every),
        Media(data.originals, data.render, data.sample_rate),
        KeepCheckpoint(checkpoint_path(run, folder), fit.checkpoint_every, fit.checkpoint_seconds),
    ]
    ours.append(Lines(fit.steps, log.keep if options["enable_progress_bar"] else log))
    if options["enable_progress_bar"]:
        ours.append(Bar())
    if options["logger"]:
        ours.append(LearningRateMonitor("step"))
    if part.automatic_optimization and fit.gradient_clip is not None:
        options["gradient_clip_val"] = fit.gradient_clip
    try:
        return L.Trainer(
            **options | {"callbacks": [*options.get("callbacks", []), *ours]},
            max_epochs=1,
            default_root_dir=run,
            plugins=[AtomicCheckpoints(), *options.pop("plugins", [])],
            enable_checkpointing=True,
            val_check_interval=min(fit.validate_every or fit.steps, fit.steps),
            use_distributed_sampler=False,
        )
    except (MisconfigurationException, ValueError, TypeError) as error:
        raise PartitaError(f"{folder}: L.Trainer refuses these options: {error}") from None


def seconds_per_step(plan: Plan, folder: str, *, steps: int = 24) -> float:
    """How long a step of a part's training takes here: the median of its first ones, after a third to warm up.

    A part that changes on the way, such as a codec that an adversary joins, may become slower than that. What the part
    is trained on is untrained: that changes nothing about the time.
    """
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    system, watch = System(plan), Stopwatch()
    system.source.setup()
    for name, part in system.parts.items():
        if (weights := system.part_plan(name).weights) is not None:
            part.load_weights(weights)
        if name != folder:
            part.eval().requires_grad_(False)
    part = system.parts[folder]
    trainer = {**part.fit_options.trainer, "logger": False, "limit_val_batches": 0, "callbacks": [watch]}
    part.fit_options = replace(part.fit_options, steps=steps, trainer=trainer)
    with TemporaryDirectory() as run, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        data = FitData(system, folder)
        log = RunLog(Path(run) / "train.log", lambda line: None)
        make_trainer(plan, part, folder, Path(run), data, log).fit(part, datamodule=data)
    return statistics.median(b - a for a, b in pairwise(watch.times[steps // 3 :]))


def checkpoint_path(run: Path, folder: str) -> Path:
    """Where a part's unfinished training is kept."""
    return run / "checkpoints" / f"{folder.replace('/', '-')}.ckpt"
