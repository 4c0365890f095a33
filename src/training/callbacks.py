"""Lightning callbacks around training steps: seeding, NaN checks, throughput, progress and logged clips."""

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

from ..core.processes import end_batch, seed_batch
from ..core.progress import duration
from ..errors import PartitaError
from .loggers import log_clip, supports_clips


class StepCallback(Callback):
    """Base class of callbacks that run around steps. A step has several batches if gradients are accumulated."""

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Call :meth:`on_step_start` at the first batch of a step."""
        step, before = divmod(batch_idx, pl_module.fit_options.accumulate)
        if not before:
            self.on_step_start(trainer, pl_module, step)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Call :meth:`on_step_end` at the last batch of a step."""
        done, after = divmod(batch_idx + 1, pl_module.fit_options.accumulate)
        if not after:
            self.on_step_end(trainer, pl_module, done)

    def on_step_start(self, trainer: L.Trainer, pl_module: L.LightningModule, step: int) -> None:
        """Run before step number ``step``, from 0."""

    def on_step_end(self, trainer: L.Trainer, pl_module: L.LightningModule, done: int) -> None:
        """Run after a step. ``done`` is the number of completed steps."""


class CountSteps(Callback):
    """Makes loggers count training steps.

    Lightning counts batches under manual optimization, and is off by one after each resumed checkpoint.
    """

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Set the counter before anything is logged."""
        trainer.fit_loop.epoch_loop._batches_that_stepped = batch_idx // pl_module.fit_options.accumulate


class Reseed(Callback):
    """Makes the random numbers of a batch depend only on the seed and the batch, so that a run can be resumed exactly.

    Args:
        seed: Seed of the training.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Seed torch before each batch."""
        seed_batch(self.seed, batch_idx)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """End the batch, because processes validate on different numbers of examples."""
        end_batch()


class NaNGuard(Callback):
    """Stops at the first training metric that is not finite, with an error that names it.

    It checks every batch on a CPU. On other devices, a check waits for the device and is therefore less frequent.

    Args:
        every: Number of batches between two checks on other devices.
    """

    def __init__(self, every: int) -> None:
        self.every = every

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Check all training metrics of the batch."""
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


class Throughput(StepCallback):
    """Logs the throughput, in steps and in seconds of audio per second.

    Args:
        seconds: Seconds of audio per step and process.
        every: Number of steps between two logs.
    """

    def __init__(self, seconds: float, every: int) -> None:
        self.seconds = seconds
        self.every = every
        self._since: tuple[int, float] | None = None

    def on_step_end(self, trainer: L.Trainer, pl_module: L.LightningModule, done: int) -> None:
        """Log the throughput since the last log."""
        if done % self.every:
            return
        now = time.perf_counter()
        if self._since is not None:
            rate = (done - self._since[0]) / (now - self._since[1])
            audio = rate * self.seconds * trainer.world_size
            pl_module.log_dict({"speed/steps_per_second": rate, "speed/audio_seconds_per_second": audio})
        self._since = (done, now)


class StepTimer(StepCallback):
    """Records the end of each step, after the device has finished it.

    Attributes:
        times: End of each step, in seconds of a monotonic clock.
    """

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_step_end(self, trainer: L.Trainer, pl_module: L.LightningModule, done: int) -> None:
        """Record the time."""
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize(pl_module.device)
        self.times.append(time.perf_counter())


class ProgressLines(StepCallback):
    """Logs progress and the remaining time as a line at intervals, for log files and without a terminal.

    Args:
        steps: Number of steps of the whole training.
        logger: Logger of the lines.
        seconds: Minimum time between two lines. In a long training, it grows to 1 % of the elapsed time.
    """

    def __init__(self, steps: int, logger: logging.Logger, seconds: float = 15.0) -> None:
        self.steps, self.logger, self.seconds = steps, logger, seconds
        self._begun = 0.0
        self._last: tuple[int, float] | None = None

    def on_step_end(self, trainer: L.Trainer, pl_module: L.LightningModule, done: int) -> None:
        """Log a line if the interval has passed."""
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


class StepProgressBar(RichProgressBar):
    """Lightning's progress bar, counting steps instead of batches, and without the logger's version number."""

    @property
    def total_train_batches(self) -> int | float:
        """Total number of steps."""
        part: Any = self.trainer.lightning_module
        return super().total_train_batches // part.fit_options.accumulate

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Update the bar to the number of completed steps."""
        done = (batch_idx + 1) // pl_module.fit_options.accumulate
        super().on_train_batch_end(trainer, pl_module, outputs, batch, done - 1)

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        """Return the metrics to show."""
        return {name: value for name, value in super().get_metrics(trainer, pl_module).items() if name != "v_num"}


class ClipLogger(Callback):
    """Logs audio and spectrograms of fixed validation clips at each validation, on the first process.

    Args:
        originals: Returns the original clips ``[B, C, T]``; called once, before training.
        render: Returns the output of the part for these clips; called at each validation.
        sample_rate: Sample rate of the clips, in Hz.
    """

    def __init__(self, originals: Callable[[], Tensor], render: Callable[[], Tensor], sample_rate: int) -> None:
        self.originals, self.render, self.sample_rate = originals, render, sample_rate

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log the original clips."""
        if trainer.is_global_zero and any(map(supports_clips, trainer.loggers)):
            self._log(trainer, "original", self.originals())

    @torch.no_grad()
    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log the clips as the part renders them, with the validated weights.

        The callback that restores the training weights after averaging runs later in this hook.
        """
        if trainer.is_global_zero and any(map(supports_clips, trainer.loggers)):
            self._log(trainer, "rendered", self.render())

    def _log(self, trainer: L.Trainer, tag: str, clips: Tensor) -> None:
        for logger in filter(supports_clips, trainer.loggers):
            for i, clip in enumerate(clips):
                log_clip(logger, f"{tag}/{i}", clip, self.sample_rate, trainer.global_step)
