"""Averaged weights: an exponential moving average of the parameters, which is validated, saved and used."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor


class AverageWeights(Callback):
    """Averages the trained parameters on their device, without ever waiting for it.

    The average takes the place of the parameters in validations and at the end of training. Frozen parameters and
    buffers (codebooks, counters) are not averaged. In a checkpoint, ``state_dict`` holds the average and
    ``current_model_state`` the weights that training continues with, as those of Lightning's ``WeightAveraging``.

    Args:
        decay: Decay of the average at each update.
        every: Number of steps between two updates. The first one, after the first step, takes over the parameters.
    """

    def __init__(self, decay: float, every: int) -> None:
        self.decay, self.every = decay, every
        self.average: dict[str, Tensor] | None = None
        self._updated = 0

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Update the average if the batch ended a step that is due."""
        step = trainer.global_step
        if step <= self._updated or (step - 1) % self.every:
            return
        self._updated = step
        current = {name: parameter.detach() for name, parameter in self._trained(pl_module).items()}
        if self.average is None:
            self.average = {name: value.clone() for name, value in current.items()}
            return
        average = self._on_device(pl_module)
        if pl_module.device.type == "cpu":  # rounds as Lightning's average does
            for name, value in current.items():
                average[name].mul_(self.decay).add_(value * (1 - self.decay))
        else:
            torch._foreach_lerp_(list(average.values()), [current[name] for name in average], 1 - self.decay)

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Validate the average."""
        self._swap(pl_module)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Continue with the weights of training."""
        self._swap(pl_module)

    @torch.no_grad()
    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Replace the weights by their average."""
        if self.average is not None:
            average = self._on_device(pl_module)
            for name, parameter in self._trained(pl_module).items():
                parameter.data.copy_(average[name])

    def state_dict(self) -> dict[str, Any]:
        """The step of the last update."""
        return {"latest_update_step": self._updated}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the step of the last update."""
        self._updated = state_dict["latest_update_step"]

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Store the average beside the weights of training."""
        if self.average is not None:
            checkpoint["current_model_state"] = checkpoint["state_dict"]
            checkpoint["state_dict"] = checkpoint["state_dict"] | self.average

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Restore the average and the weights of training."""
        if "current_model_state" in checkpoint:
            names = self._trained(pl_module)
            self.average = {name: checkpoint["state_dict"][name].clone() for name in names}
            pl_module.load_state_dict(checkpoint["current_model_state"], strict=pl_module.strict_loading)

    def _trained(self, part: L.LightningModule) -> dict[str, Tensor]:
        return {name: parameter for name, parameter in part.named_parameters() if parameter.requires_grad}

    def _on_device(self, part: L.LightningModule) -> dict[str, Tensor]:
        """The average on the device of the parameters, to which a loaded one moves once."""
        assert self.average is not None
        self.average = {name: value.to(part.device) for name, value in self.average.items()}
        return self.average

    @torch.no_grad()
    def _swap(self, part: L.LightningModule) -> None:
        if self.average is None:
            return
        average = self._on_device(part)
        for name, parameter in self._trained(part).items():
            before = parameter.detach().clone()
            parameter.data.copy_(average[name])
            average[name].copy_(before)
