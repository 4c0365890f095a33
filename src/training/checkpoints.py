"""Checkpoints that an interrupted training continues from: when they are written, and how."""

from __future__ import annotations

import signal
import threading
import time
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import lightning as L
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint

from ..core.part_key import PartKey
from ..errors import PartitaError, Stopped
from ..storage.files import replacing_file
from .callbacks import OnSteps


class KeepCheckpoint(OnSteps, Checkpoint):
    """Keeps one checkpoint to go on from, written before a step begins, when all counters agree and no gradients are
    waiting for more.

    Ctrl-C and SIGTERM write one, too, and then end the training with :class:`~partita.errors.Stopped`. With several
    processes, which may be at different steps by then, only the steps count.

    Args:
        path: Of the checkpoint.
        every: Steps between two.
        seconds: Most seconds between two.
    """

    def __init__(self, path: Path, every: int, seconds: float) -> None:
        self.path, self.every, self.seconds = path, every, seconds
        self._saved = 0.0
        self._stop: int | None = None
        self._handlers: dict[int, Any] = {}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Listen to the signals."""
        self._saved = time.monotonic()
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._handlers[number] = signal.signal(number, self._request)

    def on_step_start(self, trainer: L.Trainer, pl_module: L.LightningModule, step: int) -> None:
        """Every so many steps or seconds, and when asked to stop."""
        alone = trainer.world_size == 1
        late = alone and (self._stop is not None or time.monotonic() - self._saved > self.seconds)
        if step > 0 and (late or step % self.every == 0):
            trainer.save_checkpoint(self.path, weights_only=False)
            self._saved = time.monotonic()
        if self._stop is not None:
            raise Stopped(self._stop)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Give the signals back."""
        while self._handlers:
            signal.signal(*self._handlers.popitem())

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Give the signals back after an error as well."""
        self.on_train_end(trainer, pl_module)

    def _request(self, number: int, frame: Any) -> None:
        if self._stop is not None:  # asked twice: at once
            raise Stopped(number)
        self._stop = number


class AtomicCheckpoints(TorchCheckpointIO):
    """Checkpoints that are either whole or not there, and that are read without unpickling anything but tensors."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write beside the old one, then take its place."""
        with replacing_file(Path(path)) as new, new.open("wb") as file:  # of a path, torch would not say what is wrong
            torch.save(checkpoint, file)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Read tensors and plain values only, once all of them have the checksums that torch wrote with them.

        Raises:
            PartitaError: It is damaged.
        """
        try:
            with ZipFile(path) as archive:
                wrong = archive.testzip()
            if wrong is None:
                return torch.load(path, map_location=map_location, weights_only=True)
        except MemoryError:
            raise
        except Exception as error:  # a damaged file can be anything
            wrong = type(error).__name__
        raise PartitaError(
            f"{path} is damaged ({wrong}): delete it and run the same command again, which trains this part anew; the "
            "parts that are finished are kept"
        )


def checkpoint_path(run: Path, key: PartKey) -> Path:
    """Where a part's unfinished training is kept."""
    return run / "checkpoints" / f"{key.group}-{key.name}.ckpt"
