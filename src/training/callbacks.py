"""What happens around a training step: seeds, checkpoints, guards, and things to look at and listen to."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, RichProgressBar
from torch import Tensor

from ..errors import PartitaError
from .loggers import log_clip, shows_clips


class OnSteps(Callback):
    """Is called around steps, which are one batch or, where gradients are accumulated, several."""

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """The first batch of a step begins it."""
        step, before = divmod(batch_idx, pl_module.fit_options.accumulate)
        if not before:
            self.on_step_start(trainer, pl_module, step)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """The last one ends it."""
        done, after = divmod(batch_idx + 1, pl_module.fit_options.accumulate)
        if not after:
            self.on_step_end(trainer, pl_module, done)

    def on_step_start(self, trainer: L.Trainer, pl_module: L.LightningModule, step: int) -> None:
        """Before a step; the first is 0."""

    def on_step_end(self, trainer: L.Trainer, pl_module: L.LightningModule, done: int) -> None:
        """After a step; ``done`` counts it."""


class CountSteps(Callback):
    """Numbers what is logged by steps.

    Lightning counts batches where a part optimizes itself, and one too many after each checkpoint it goes on from.
    """

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Before anything is logged."""
        trainer.fit_loop.epoch_loop._batches_that_stepped = batch_idx // pl_module.fit_options.accumulate


class Reseed(Callback):
    """Makes the randomness of a batch a function of seed and number, so that a run can be taken up anywhere.

    Args:
        seed: Of the run.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Before each batch; processes differ."""
        torch.manual_seed((self.seed + batch_idx * trainer.world_size + trainer.global_rank) % 2**63)


class NaNGuard(Callback):
    """Stops at the first loss that is not a number, and names it.

    Looks at each batch on a CPU; on other devices, where looking waits for the device, now and then.

    Args:
        every: Batches between two looks on other devices.
    """

    def __init__(self, every: int) -> None:
        self.every = every

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Check everything the batch logged."""
        if pl_module.device.type != "cpu" and (batch_idx + 1) % self.every:
            return
        for name, value in trainer.callback_metrics.items():
            if name.startswith("train/") and not math.isfinite(float(value)):
                fit: Any = pl_module.fit_options
                step = batch_idx // fit.accumulate
                raise PartitaError(
                    f"{name.removeprefix('train/')} became {float(value)} at step {step} of "
                    f"{pl_module.registered_name}. Lower fit.lr or fit.gradient_clip, or lengthen fit.warmup_steps, "
                    "and start a new run"
                )


class Throughput(OnSteps):
    """Logs steps and seconds of audio per second.

    Args:
        seconds: Of audio per step and process.
        every: Steps between two logs.
    """

    def __init__(self, seconds: float, every: int) -> None:
        self.seconds = seconds
        self.every = every
        self._since: tuple[int, float] | None = None

    def on_step_end(self, trainer: L.Trainer, pl_module: L.LightningModule, done: int) -> None:
        """At each logged step, over the time since the last one."""
        if done % self.every:
            return
        now = time.perf_counter()
        if self._since is not None:
            rate = (done - self._since[0]) / (now - self._since[1])
            audio = rate * self.seconds * trainer.world_size
            pl_module.log_dict({"speed/steps_per_second": rate, "speed/audio_seconds_per_second": audio})
        self._since = (done, now)


class Stopwatch(OnSteps):
    """Times steps, until the device is done with each.

    Attributes:
        times: When each step ended, in seconds.
    """

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_step_end(self, trainer: L.Trainer, pl_module: L.LightningModule, done: int) -> None:
        """Note the time."""
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize(pl_module.device)
        self.times.append(time.perf_counter())


class Lines(OnSteps):
    """Reports progress as a line now and then, with the time that is left: for logs, and where there is no terminal.

    Args:
        steps: Steps of the whole training.
        logger: Gets the lines.
        seconds: Least time between two lines; in a long training it grows to a hundredth of the time so far.
    """

    def __init__(self, steps: int, logger: logging.Logger, seconds: float = 15.0) -> None:
        self.steps, self.logger, self.seconds = steps, logger, seconds
        self._begun = 0.0
        self._last: tuple[int, float] | None = None

    def on_step_end(self, trainer: L.Trainer, pl_module: L.LightningModule, done: int) -> None:
        """Report when it is time for the next line."""
        now = time.monotonic()
        if self._last is None:
            self._begun, self._last = now, (done, now)
        step, then = self._last
        if now - then >= max(self.seconds, (now - self._begun) / 100) and trainer.is_global_zero:
            loss = trainer.callback_metrics.get("train/loss")
            shown = "" if loss is None else f", loss {float(loss):.3f}"
            speed = (done - step) / (now - then)
            left = f", {duration((self.steps - done) / speed)} left" if speed else ""
            self.logger.info(f"  step {done:,} of {self.steps:,}{shown}, {speed:.2f} steps/s{left}")
            self._last = (done, now)


def duration(seconds: float) -> str:
    """A time span in words, to about two digits.

    >>> [duration(s) for s in (8, 95, 3 * 3600 + 600, 50 * 3600)]
    ['8 s', '1 min 35 s', '3 h 10 min', '2 d 2 h']
    """
    for unit, smaller, length in (("d", "h", 3600), ("h", "min", 60), ("min", "s", 1)):
        ratio = {"d": 24, "h": 60, "min": 60}[unit]
        whole, rest = divmod(round(seconds / length), ratio)
        if whole:
            return f"{whole} {unit} {rest} {smaller}" if rest else f"{whole} {unit}"
    return f"{round(seconds)} s"


class Bar(RichProgressBar):
    """Lightning's progress bar, in steps rather than batches, and without the version number of a logger."""

    @property
    def total_train_batches(self) -> int | float:
        """Steps, which are what its end is."""
        part: Any = self.trainer.lightning_module
        return super().total_train_batches // part.fit_options.accumulate

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Show the steps that are done."""
        done = (batch_idx + 1) // pl_module.fit_options.accumulate
        super().on_train_batch_end(trainer, pl_module, outputs, batch, done - 1)

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        """The metrics to show."""
        return {name: value for name, value in super().get_metrics(trainer, pl_module).items() if name != "v_num"}


class Media(Callback):
    """Logs audio and spectrograms of fixed validation clips at each validation, on the first process.

    Args:
        originals: Makes the clips ``[B, C, T]`` once, before training.
        render: Makes what the part in training turns them into, on the part's device.
        sample_rate: In Hz.
    """

    def __init__(self, originals: Callable[[], Tensor], render: Callable[[], Tensor], sample_rate: int) -> None:
        self.originals, self.render, self.sample_rate = originals, render, sample_rate

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The clips as they are."""
        if trainer.is_global_zero and any(map(shows_clips, trainer.loggers)):
            self._log(trainer, "original", self.originals())

    @torch.no_grad()
    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The clips as the part renders them, with the weights that are validated.

        Averaged weights give way to the others at this hook, but after this callback: those of a part come last.
        """
        if trainer.is_global_zero and any(map(shows_clips, trainer.loggers)):
            self._log(trainer, "rendered", self.render())

    def _log(self, trainer: L.Trainer, tag: str, clips: Tensor) -> None:
        for logger in filter(shows_clips, trainer.loggers):
            for i, clip in enumerate(clips):
                log_clip(logger, f"{tag}/{i}", clip, self.sample_rate, trainer.global_step)
