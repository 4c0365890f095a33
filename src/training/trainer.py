"""The Lightning trainer of a part."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from ..core.logs import shared_logger
from ..core.part import Part
from ..core.part_key import PartKey
from ..core.precision import feasible
from ..core.seeds import derive_seed
from ..errors import PartitaError
from ..recipe.plan import Plan
from ..recipe.slots import flatten
from ..recipe.trainer_options import SHARDED, trainer_options
from .callbacks import ClipLogger, CountSteps, NaNGuard, ProgressLines, Reseed, StepProgressBar, Throughput
from .checkpoints import AtomicCheckpoints, KeepCheckpoint, OnlyTrained, checkpoint_path
from .fit_data import FitData
from .loggers import make_loggers
from .run_log import FILE_ONLY
from .sharded import FullySharded

log = shared_logger(__name__)


def make_trainer(plan: Plan, part: Part, key: PartKey, run: Path, data: FitData, **changes: Any) -> L.Trainer:
    """Return the Lightning trainer of a part, with the options of the recipe's ``trainer:`` and the part's ``fit:``.

    Args:
        plan: The recipe.
        part: The part to train.
        key: Key of the part.
        run: The run folder.
        data: Training data of the part.
        changes: Arguments of ``L.Trainer`` that override all options. Its callbacks run first.

    Raises:
        PartitaError: Lightning does not accept the options on this machine.
    """
    fit, given = part.fit_options, plan.trainer | part.fit_options.trainer
    seed = derive_seed(plan.seed, key, "steps")
    options: dict[str, Any] = {
        "log_every_n_steps": min(20, fit.steps),
        "precision": fit.precision,
        "num_sanity_val_steps": 0,
        "enable_model_summary": False,
        "enable_progress_bar": sys.stdout.isatty(),
        **trainer_options({name: value for name, value in given.items() if value is not None}),
        **changes,
    }
    if given.get("precision") is None:
        options["precision"] = feasible(fit.precision, options.get("accelerator", "auto"))
        if options["precision"] != fit.precision:
            log.info(
                f"  using {options['precision']}: {fit.precision} is slow on this CPU "
                f"(trainer.precision={fit.precision} forces it)"
            )
    options["logger"] = make_loggers(options.get("logger"), run, key, dict(flatten(plan.values)))
    every = options["log_every_n_steps"]
    callbacks: list[L.Callback] = [
        CountSteps(),
        Reseed(seed),
        NaNGuard(every),
        Throughput(fit.examples * data.seconds, every),
        ClipLogger(data.originals, data.render, data.sample_rate),
        KeepCheckpoint(checkpoint_path(run, key), fit.checkpoint_every, fit.checkpoint_seconds),
    ]
    if not part.strict_loading:
        callbacks.append(OnlyTrained())
    callbacks.append(ProgressLines(fit.steps, FILE_ONLY if options["enable_progress_bar"] else log))
    if options["enable_progress_bar"]:
        callbacks.append(StepProgressBar())
    if options["logger"]:
        callbacks.append(LearningRateMonitor("step"))
    if part.automatic_optimization:  # parts with manual optimization do this themselves
        options |= {"gradient_clip_val": fit.gradient_clip, "accumulate_grad_batches": fit.accumulate}
    options |= {
        "callbacks": [*options.get("callbacks", []), *callbacks],
        "max_epochs": 1,
        "default_root_dir": run,
        "plugins": [AtomicCheckpoints()],
        "enable_checkpointing": True,
        "val_check_interval": min(fit.validate_every or fit.steps, fit.steps) * fit.accumulate,
        "use_distributed_sampler": False,
    }
    if options.get("strategy") == SHARDED:
        options["strategy"] = _sharded(part, key, options)
    if isinstance(options.get("strategy"), FullySharded):  # its weights are not in one place when clips are rendered
        options["callbacks"] = [one for one in options["callbacks"] if not isinstance(one, ClipLogger)]
    try:
        trainer = L.Trainer(**options)
        if trainer.world_size > 1 and options.get("strategy") in (None, *_PLAIN):
            # Each of the two updates of a codec leaves the parameters of the other unused. Gradients that are views of
            # the buckets in which they are sent take no memory of their own.
            unused = not part.automatic_optimization
            strategy = DDPStrategy(find_unused_parameters=unused, gradient_as_bucket_view=True)
            trainer = L.Trainer(**options | {"strategy": strategy})
    except (MisconfigurationException, ImportError, RuntimeError, ValueError, TypeError) as error:
        raise PartitaError(f"{key}: L.Trainer refuses these options: {error}") from None
    return trainer


LARGEST_PORT = 65535

_PLAIN = ("auto", "ddp")


def _sharded(part: Part, key: PartKey, options: dict[str, Any]) -> FullySharded | str:
    """Return the strategy that trains a stage in shares. All other parts are small and trained by DDP.

    Raises:
        PartitaError: The precision needs a scaler of gradients, which shares do not have.
    """
    if part.training_input != "stage" or not part.automatic_optimization:
        return "ddp"
    if options["precision"] == "16-mixed":
        raise PartitaError(
            f"{key}: {SHARDED} cannot train in 16-mixed: set fit.precision (or trainer.precision) to bf16-mixed"
        )
    return FullySharded()


def check_nodes(trainer: L.Trainer) -> None:
    """Check that a training can connect its processes, and log the address if they are on several machines.

    Raises:
        PartitaError: The environment does not define the address, or a wrong one.
    """
    port = os.environ.get("MASTER_PORT", "1")
    if trainer.world_size > 1 and not (port.isdecimal() and 1 <= int(port[:6]) <= LARGEST_PORT):
        raise PartitaError(
            f"the environment variable MASTER_PORT is {port!r}: set it to a free port (1 to {LARGEST_PORT:,}) of the "
            "first machine, or unset it if there is only one"
        )
    if trainer.num_nodes == 1:
        return
    environment: Any = getattr(trainer.strategy, "cluster_environment", None)
    lacking = [name for name in ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK") if name not in os.environ]
    if type(environment) is LightningEnvironment and lacking:
        raise PartitaError(
            f"trainer.num_nodes={trainer.num_nodes}: the machines do not know how to connect. Start the same command "
            f"on each of them with torchrun or, under Slurm, with srun, or set {', '.join(lacking)} on each (address "
            "and a free port of the first machine, and the number of this one, from 0)"
        )
    if environment is not None:
        log.info(
            f"  waiting for all {trainer.num_nodes} machines to connect at {environment.main_address}:"
            f"{environment.main_port}; this is number {environment.node_rank()}"
        )
