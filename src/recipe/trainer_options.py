"""Options of ``L.Trainer`` that a recipe can set, and the reasons why it cannot set the others."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from lightning import Trainer
from lightning.pytorch.accelerators import AcceleratorRegistry
from lightning.pytorch.strategies import StrategyRegistry

from ..core.precision import Precision
from ..core.registry import did_you_mean
from ..core.schema import Mistake, build, check
from .logger_options import check_loggers

SHARDED = "fsdp2"
"""Strategy that divides the weights of stages among the processes."""

MOST_DEVICES = 1024
"""Maximum number of devices of one machine; a larger number is a typing error."""


@dataclass
class TrainerOptions:
    """Options of ``L.Trainer``: for all parts under ``trainer``, or for one part under its ``fit.trainer``.

    Args:
        accelerator: ``auto``, ``cpu``, ``gpu``, or another accelerator of Lightning.
        strategy: How processes train together: ``auto``, ``ddp``, ``fsdp2``, which divides the weights of stages among
            the processes, or another strategy of Lightning.
        devices: ``auto``, the number of devices (-1 for all), or a list of their indices.
        num_nodes: Number of machines that train together.
        precision: Numerical precision. ``None`` uses ``fit.precision`` as far as the machine supports it.
        logger: Experiment trackers: a name, a list of names, or a mapping from names to options (``csv``,
            ``tensorboard``, ``wandb``, ``mlflow``, ``trackio``). False disables logging.
        num_sanity_val_steps: Number of validation batches that run before training; -1 runs all.
        log_every_n_steps: Number of steps between two logged values.
        enable_progress_bar: Whether to show a progress bar; otherwise, progress is printed line by line.
        enable_model_summary: Whether Lightning prints a summary of the layers.
        deterministic: Whether to use only deterministic algorithms. ``warn`` warns about operations that have none.
        benchmark: Whether cuDNN searches for the fastest algorithms.
        profiler: Lightning profiler, which reports the duration of each action after training.
        detect_anomaly: Whether to locate the operation that produces a NaN gradient.
        sync_batchnorm: Whether batch normalization uses statistics over all processes.
    """

    accelerator: str = "auto"
    strategy: str = "auto"
    devices: Any = "auto"
    num_nodes: int = 1
    precision: Precision | None = None
    logger: Any = None
    num_sanity_val_steps: int = 0
    log_every_n_steps: int = 20
    enable_progress_bar: bool | None = None
    enable_model_summary: bool = False
    deterministic: Any = None
    benchmark: bool | None = None
    profiler: Literal["simple", "advanced", "pytorch"] | None = None
    detect_anomaly: bool = False
    sync_batchnorm: bool = False

    def __post_init__(self) -> None:
        accelerators = ["auto", "gpu", *AcceleratorRegistry.available_accelerators()]
        if self.accelerator not in accelerators:
            raise ValueError(
                f"there is no accelerator {self.accelerator!r}{did_you_mean(self.accelerator, accelerators)}"
            )
        strategies = ["auto", SHARDED, *StrategyRegistry.available_strategies()]
        if self.strategy not in strategies:
            raise ValueError(f"there is no strategy {self.strategy!r}{did_you_mean(self.strategy, strategies)}")
        if self.strategy.startswith("fsdp") and self.strategy != SHARDED:
            raise ValueError(f"strategy {self.strategy!r} is the first version of FSDP: use {SHARDED!r}")
        if any(kind in self.strategy for kind in ("notebook", "fork", "spawn")):
            raise ValueError(
                f"strategy {self.strategy!r} trains in copies of this process, which do not return what they "
                f"learned: use {'_'.join(w for w in self.strategy.split('_') if w not in _COPYING_STRATEGIES)!r}"
            )
        _check_devices(self.devices)
        if wrong := check_loggers(self.logger):
            raise ValueError("; ".join(wrong))
        if self.num_nodes < 1:
            raise ValueError(f"num_nodes must be at least 1, not {self.num_nodes}")
        if self.num_sanity_val_steps < -1:
            raise ValueError(f"num_sanity_val_steps must be -1 or more, not {self.num_sanity_val_steps}")
        if self.log_every_n_steps < 1:
            raise ValueError(f"log_every_n_steps must be at least 1, not {self.log_every_n_steps} (see logger: false)")
        if self.deterministic not in (None, True, False, "warn"):
            raise ValueError(f"deterministic must be true, false or warn, not {self.deterministic!r}")


_COPYING_STRATEGIES = ("notebook", "fork", "spawn")

NOT_IN_RECIPES = {
    "max_steps": "the fit block decides this: set fit.steps",
    "max_epochs": "the fit block decides this: set fit.steps",
    "min_steps": "a part takes exactly fit.steps steps: set those",
    "min_epochs": "a part takes exactly fit.steps steps: set those",
    "max_time": "a part is finished after fit.steps steps: to pause it, stop the process (Ctrl-C, SIGTERM, "
    "or the time limit of a scheduler), and run the same command again",
    "fast_dev_run": "this would leave the part untrained: to try a recipe, set fit.steps to a small number and use "
    "another run folder",
    "overfit_batches": "this would train on a few batches of the data: use data with few pieces instead",
    "limit_train_batches": "the fit block decides this: set fit.steps",
    "limit_val_batches": "the fit block decides this: set fit.validation_examples",
    "limit_test_batches": "training tests nothing: see partita evaluate",
    "limit_predict_batches": "training predicts nothing: see partita generate",
    "val_check_interval": "the fit block decides this: set fit.validate_every",
    "check_val_every_n_epoch": "the fit block decides this: set fit.validate_every",
    "accumulate_grad_batches": "the fit block decides this: set fit.accumulate",
    "gradient_clip_val": "the fit block decides this: set fit.gradient_clip",
    "gradient_clip_algorithm": "gradients are clipped by their norm: set fit.gradient_clip",
    "enable_checkpointing": "a run keeps one checkpoint to resume from: set fit.checkpoint_every",
    "default_root_dir": "the run folder decides this: set -o",
    "callbacks": "these are Python objects, which a recipe cannot hold: use L.Trainer on the part in your own script",
    "plugins": "these are Python objects, which a recipe cannot hold: use L.Trainer on the part in your own script",
    "inference_mode": "validations use the weights that training continues with, so this cannot be changed",
    "use_distributed_sampler": "the examples are divided among the processes automatically",
    "barebones": "this would leave out checkpoints, curves and progress: see logger and enable_progress_bar",
    "reload_dataloaders_every_n_epochs": "a part is trained in one epoch of fit.steps steps",
    "enable_autolog_hparams": "the recipe of a run is always in its folder",
    "model_registry": "a system is published with partita push",
}
"""Arguments of ``L.Trainer`` that a recipe cannot set, each with what to do instead."""


def check_trainer(values: Any, key: str) -> list[Mistake]:
    """Return every mistake in a recipe's ``trainer`` block.

    Args:
        values: The block.
        key: Dotted key of the block, for error messages.
    """
    if not isinstance(values, Mapping):
        return [] if values is None else [Mistake(key, f"expected a mapping, got {values!r}")]
    ours = TrainerOptions.__dataclass_fields__
    theirs = [name for name in inspect.signature(Trainer.__init__).parameters if name != "self"]
    mistakes = []
    for name in values:
        if name not in ours:
            unknown = "L.Trainer takes no such argument" if name not in theirs else "a recipe cannot set this"
            hint = "" if name in theirs else did_you_mean(name, list(ours))
            mistakes.append(Mistake(f"{key}.{name}", NOT_IN_RECIPES.get(name, unknown), hint))
    for name in (
        values.keys() & ours.keys()
    ):  # checked one at a time, so that an invalid value does not hide the next one
        mistakes += [
            Mistake(f"{key}.{name}", m.message.removeprefix(f"{name} "), m.suggestion)
            for m in check(TrainerOptions, {name: values[name]}, key=key)
        ]
    return mistakes


def trainer_options(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a checked block, with each value converted to its type."""
    built = build(TrainerOptions, values)
    return {name: getattr(built, name) for name in values}


def _check_devices(devices: Any) -> None:
    match devices:
        case "auto" | -1 | "-1":
            return
        case bool():
            pass
        case int() if 1 <= devices <= MOST_DEVICES:
            return
        case str() if all(number.strip().isdecimal() and len(number) < 8 for number in devices.split(",")):
            if "," in devices or 1 <= int(devices) <= MOST_DEVICES:
                return
        case list() if devices and all(type(n) is int and 0 <= n < MOST_DEVICES for n in devices):
            if len(set(devices)) == len(devices):
                return
    raise ValueError(
        f"devices must be auto, a number (1 to {MOST_DEVICES:,}, or -1 for all), or a list of indices, not {devices!r}"
    )
