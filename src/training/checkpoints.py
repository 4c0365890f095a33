"""Checkpoints from which an interrupted training resumes."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import lightning as L
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import Callback, Checkpoint
from torch.distributed.checkpoint.api import CheckpointException

from ..core.part_key import PartKey
from ..core.processes import connection_lost
from ..errors import PartitaError, Stopped
from ..storage.files import replacing_file
from .callbacks import StepCallback


class KeepCheckpoint(StepCallback, Checkpoint):
    """Keeps the latest checkpoint, written before a step, when all counters agree and no gradients are accumulated.

    Ctrl-C and SIGTERM write a checkpoint, too, and then end the training with :class:`~partita.errors.Stopped`. With
    several processes, only ``every`` triggers checkpoints, because processes may receive signals at different steps.

    Args:
        path: Path of the checkpoint.
        every: Number of steps between two checkpoints.
        seconds: Maximum number of seconds between two checkpoints.
    """

    def __init__(self, path: Path, every: int, seconds: float) -> None:
        self.path, self.every, self.seconds = path, every, seconds
        self._saved = 0.0
        self._stop: int | None = None
        self._handlers: dict[int, Any] = {}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Install the signal handlers."""
        self._saved = time.monotonic()
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._handlers[number] = signal.signal(number, self._request)

    def on_step_start(self, trainer: L.Trainer, pl_module: L.LightningModule, step: int) -> None:
        """Write a checkpoint if one is due or a signal was received, and stop after a signal."""
        alone = trainer.world_size == 1
        late = alone and (self._stop is not None or time.monotonic() - self._saved > self.seconds)
        if step > 0 and (late or step % self.every == 0):
            trainer.save_checkpoint(self.path, weights_only=False)
            self._saved = time.monotonic()
        if self._stop is not None:
            raise Stopped(self._stop)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Restore the previous signal handlers."""
        while self._handlers:
            signal.signal(*self._handlers.popitem())

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Restore the previous signal handlers after an error."""
        self.on_train_end(trainer, pl_module)

    def _request(self, number: int, frame: Any) -> None:
        if self._stop is not None:  # a second signal stops at once
            raise Stopped(number)
        self._stop = number


class OnlyTrained(Callback):
    """Leaves frozen parameters out of checkpoints: those of a stage whose adapter is trained are saved elsewhere."""

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Remove the parameters that are not trained."""
        frozen = {name for name, parameter in pl_module.named_parameters() if not parameter.requires_grad}
        for state in ("state_dict", "current_model_state"):
            if state in checkpoint:
                checkpoint[state] = {name: value for name, value in checkpoint[state].items() if name not in frozen}


class AtomicCheckpoints(TorchCheckpointIO):
    """Writes checkpoints atomically, and reads them without unpickling anything but tensors and plain values."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write a new file, then replace the old one."""
        with replacing_file(Path(path)) as new, new.open("wb") as file:  # given a path, torch hides causes of errors
            torch.save(checkpoint, file)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Read tensors and plain values after verifying their checksums.

        Raises:
            PartitaError: The checkpoint is damaged.
        """
        with saying_when_damaged(Path(path)):
            return read_values(Path(path), map_location)


def read_values(path: Path, map_location: Any = None) -> dict[str, Any]:
    """Read the tensors and plain values of a file that torch wrote, after verifying their checksums."""
    with ZipFile(path) as archive:
        if (wrong := archive.testzip()) is not None:
            raise Damaged(wrong)
    return torch.load(path, map_location=map_location, weights_only=True)


class Damaged(Exception):
    """What is wrong with a checkpoint."""


@contextmanager
def saying_when_damaged(path: Path) -> Iterator[None]:
    """Turn the errors of reading a checkpoint into one message.

    Raises:
        PartitaError: The checkpoint is damaged.
    """
    try:
        yield
    except (Exception, CheckpointException) as told:  # a damaged file can cause any error
        error = first_failure(told) if isinstance(told, CheckpointException) else told
        if isinstance(error, MemoryError) or connection_lost(error):
            raise error from None
        wrong = str(error) if isinstance(error, Damaged) else type(error).__name__
        raise PartitaError(
            f"{path} is damaged ({wrong}): delete it and run the same command again, which retrains this part "
            "and keeps the finished ones"
        ) from None


def first_failure(error: CheckpointException) -> BaseException:
    """Return one of the errors that processes had with a checkpoint: each process gets those of all."""
    return next(iter(error.failures.values()))[0]


def checkpoint_path(run: Path, key: PartKey) -> Path:
    """Return the path of the checkpoint of a part in training."""
    return run / "checkpoints" / f"{key.group}-{key.name}.ckpt"
