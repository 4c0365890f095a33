"""Training the parts of a system in order in one run folder, each with its own Lightning fit, resumable exactly."""

from __future__ import annotations

import logging
import re
import shutil
import signal
import statistics
import warnings
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.distributed
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from omegaconf import OmegaConf

from ..core.devices import find_device
from ..core.logs import shared_logger
from ..core.part import Part
from ..core.part_key import PartKey
from ..core.processes import connection_lost
from ..data.base import Source
from ..data.overview import check_training_pieces, overview, training_gaps
from ..data.shards import Shards
from ..errors import PartitaError, Stopped
from ..recipe.chain import PartPlan
from ..recipe.plan import Plan
from ..recipe.recipe_files import read_yaml
from ..recipe.slots import flatten
from ..storage.files import recover, replacing_file, saying_when_full
from ..storage.object_store import store_for
from ..storage.saved_format import ADAPTERS, check_format
from ..system.adapters import apply_adapters, save_adapter
from ..system.assembly import INDEX, index_yaml
from ..system.saved import check_saved_part
from ..system.starting_points import load_init
from ..system.system import System
from .adapter_training import belonging, check_weights, merge_adapter, with_adapter
from .callbacks import StepTimer
from .checkpoints import checkpoint_path
from .fit_data import FitData
from .loggers import close_loggers
from .run_lock import exclusive_training, is_first_process
from .run_log import log_to_file, quiet
from .sharded import FullySharded, whole_state
from .token_plan import stored_needs
from .token_store import Workforce, check_storable, store_tokens, wait_for_tokens
from .trained_on import check_trained_on, record_trained_on
from .trainer import check_nodes, make_trainer

log = shared_logger(__name__)


TOKENS = "tokens"
"""Folder of a run for the shards of its tokens."""


def train(plan: Plan, run: str | Path, only: PartKey | None = None, tokens: Path | None = None) -> System:
    """Train every part of a system that has no weights, or resume an interrupted run.

    A part inside another one is trained before it, and stays in a folder of its own in the run. Each action is logged
    (``partita.training``, INFO), also to ``logs/train.log`` of the run.

    Args:
        plan: A checked recipe.
        run: Folder of the run, created if missing.
        only: Key of the single part to train, which may be inside another one. What it depends on must be in the run or
            have weights. ``None`` trains all parts.
        tokens: Folder of stored tokens to train stages on, whatever the recipe stores. ``None`` trains them on the
            tokens that the run stores if the recipe says so, and otherwise on the data.

    Raises:
        PartitaError: The folder holds a run of another recipe, another process is training there, the data is unusable,
            or the training failed.
    """
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # device lists and tips
    run, system = Path(run), System(plan)
    found = [path.name for path in run.iterdir() if not path.name.startswith(".")] if run.exists() else []
    if is_first_process() and found and INDEX not in found:
        raise PartitaError(f"{run} is not empty and is not a run: choose another folder with -o")
    with exclusive_training(run):
        if is_first_process():
            _claim(plan, run)
        connected = torch.distributed.is_initialized()
        with log_to_file(run / "logs" / "train.log"):
            _train_parts(system, run, only, tokens)
        # What follows, such as the report, is up to the first process: metrics would wait for the others, which end.
        if torch.distributed.is_initialized() and not connected:
            torch.distributed.destroy_process_group()
    return system


def _train_parts(system: System, run: Path, only: PartKey | None, tokens: Path | None) -> None:
    """Train the untrained parts, or one of them, in a run folder that belongs to this recipe."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # skipped files are in the report
        system.source.setup()
    for line in (*(f"data: {line}" for line in overview(system.source)), *system.source.report):
        log.info(line)
    check_training_pieces(system.source)
    if (shortage := system.source.fallback_warning("validation")) is not None:
        log.info(shortage)
    system.check_fields()
    for line in training_gaps(system.source, system.reads):
        log.info(line)
    # Conditioners that are trained with a stage are saved before it, and finished when the stage is.
    joint = {
        PartKey.of("conditioners", name): PartKey.of("stages", stage)
        for stage, part in system.stages.items()
        for name in part.joint
    }
    if not system.source.carries_audio:
        _check_trainable_without_audio(system, run, joint)
    # before parts are trained for which no tokens could be stored
    if system.plan.tokens is not None and tokens is None:
        check_storable(system, system.plan.tokens)
    done: set[PartKey] = set()
    adapted: list[PartKey] = []
    for key, part in system.training_order.items():  # first, so that missing weights do not waste any training
        weights, adapter = system.part_plan(key).weights, system.adapter_of(key)
        if any((run / joint.get(outer, outer) / "model.safetensors").is_file() for outer in key.around):
            done.add(key)  # it is saved with the part around it
        elif (run / joint.get(key, key) / "model.safetensors").is_file():
            _load_finished(part, run / key)
            log.info(f"{key}: trained already" if weights is None else f"{key}: weights kept in the run")
            done.add(key)
        elif weights is not None or part.weightless:
            if weights is not None:
                part.load_weights(weights)
                log.info(f"{key}: weights from {weights}")
            if adapter is not None and not (run / ADAPTERS / key.name).is_dir():
                continue
            if adapter is not None:
                log.info(f"{key}: adapter trained already")
                adapted.append(key)
            elif is_first_process() and not system.adapters:  # which are saved without the parts around them
                part.save(run / key)
            done.add(key)
        else:
            _load_inner(part, system.part_plan(key))
            if (start := system.part_plan(key).init) is not None:
                load_init(part, key, start)
                log.info(f"{key}: starts from {start}")
    for key in system.parts if not system.source.carries_audio else ():
        wrong = system.source.unsuitable(stored_needs(system, key)) if key.group == "stages" else None
        if wrong is not None and key not in done:
            raise PartitaError(f"{key}: {wrong}")
    if adapted:
        apply_adapters(system, {run: 1.0})
    source = None
    for key, part in system.training_order.items():
        if key not in done and key not in joint and only in (None, key):
            if key.group == "stages":
                source = source or _stage_source(system, run, tokens)
                if source is not system.source and (wrong := source.unsuitable(stored_needs(system, key))) is not None:
                    raise PartitaError(f"{key}: {wrong}")
            since = ", resuming from the last checkpoint" if checkpoint_path(run, key).exists() else ""
            adapter = system.adapter_of(key)
            what = "" if adapter is None else f" of the adapter {adapter.registered_name}"
            log.info(f"{key}: {part.fit_options.steps:,} steps of {part.fit_options.examples}{what}{since}")
            if (doubt := part.doubt()) is not None:
                log.info(f"{key}: {doubt}")
            _fit(system, key, run, source)
        elif key in done and key.group == "stages" and not system.adapters:
            check_trained_on(system, key, run)
        system.training_order[key].eval().requires_grad_(False)


def _check_trainable_without_audio(system: System, run: Path, joint: Mapping[PartKey, PartKey]) -> None:
    """Check that only stages, and conditioners that learn with them, are trained on stored tokens."""
    for key, part in system.parts.items():
        has_weights = system.part_plan(key).weights is not None or (run / key / "model.safetensors").is_file()
        if key.group != "stages" and key not in joint and not (has_weights or part.weightless):
            raise PartitaError(
                f"{key} has no weights, and stored tokens have no audio to train it on: set {key.group}.{key.name}."
                "weights to the part that made the tokens, such as RUN/" + key
            )
        if key.group == "stages" and part.fit_options.overlay:
            raise PartitaError(
                f"{key} lays clips over each other (fit.overlay), and stored tokens have no audio: name data with "
                "audio, or set fit.overlay to 0"
            )


def _load_finished(part: Part, folder: Path) -> None:
    """Load the weights of a finished part of the run."""
    try:
        check_saved_part(folder.parent, folder.name)
        part.load_weights(folder)
    except PartitaError as error:
        raise PartitaError(f"{error}. Delete {folder} and run the same command again to retrain it") from None


def _load_inner(part: Part, plan: PartPlan) -> None:
    """Load the pretrained weights of the inner parts of a part to train."""
    for name, inner in plan.parts.items():
        if inner.weights is not None:
            getattr(part, name).load_weights(inner.weights)
        else:
            _load_inner(getattr(part, name), inner)


_WITHOUT_EFFECT = re.compile(
    r"^description$|(^|\.)fit\.(checkpoint_every|checkpoint_seconds|num_workers)$"
    r"|(^|\.)trainer\.(logger\b.*|log_every_n_steps|enable_progress_bar|enable_model_summary|profiler)$"
)
"""Keys without an effect on the weights, which may change when a run is resumed."""


def _claim(plan: Plan, run: Path) -> None:
    """Write the recipe into the run folder, or check that the run has the same recipe."""
    recover(run)
    index, text = run / INDEX, index_yaml(plan)
    try:
        old = index.read_text(encoding="utf-8") if index.is_file() else None
    except UnicodeDecodeError as error:
        raise PartitaError(f"{index} is not a text in UTF-8: restore it, or choose another folder ({error})") from None
    begun = any(run.rglob("*.safetensors")) or any(run.rglob("*.ckpt"))
    if old is not None and begun:
        check_format(read_yaml(index).get("format"), run)
    changed: list[str] = []
    if old is not None and old != text:
        ours, theirs = dict(flatten(OmegaConf.to_container(OmegaConf.create(text)))), dict(flatten(read_yaml(index)))
        differing = [key for key in sorted(ours | theirs) if ours.get(key) != theirs.get(key)]
        keys = [key for key in differing if not _WITHOUT_EFFECT.search(key)]
        changed = [f"  {key}: {theirs.get(key, 'unset')} → {ours.get(key, 'unset')}" for key in keys]
    if old is not None and begun and changed:
        raise PartitaError(
            f"{run} holds a run of another recipe: choose another folder with -o, or use the same recipe. "
            "Differences:\n" + "\n".join(changed[:12])
        )
    if old != text:
        with replacing_file(index) as new:
            new.write_text(text, encoding="utf-8")


def _stage_source(system: System, run: Path, tokens: Path | None) -> Source:
    """Return the source of the examples of stages: stored tokens, which the run may store first, or the system's."""
    if tokens is None and system.plan.tokens is None:
        return system.source
    folder = tokens or run / TOKENS
    if tokens is None and is_first_process():
        assert system.plan.tokens is not None
        device = find_device("cpu" if system.plan.trainer.get("accelerator") == "cpu" else "auto")
        workers = max(stage.fit_options.num_workers for stage in system.stages.values())
        work = Workforce(workers, device)
        store_tokens(system, store_for(folder), system.plan.tokens, work, verify=False)
        for part in system.parts.values():
            part.cpu()
    elif tokens is None:
        wait_for_tokens(folder)
    source = Shards(str(folder))
    source.setup()
    return source


def _fit(system: System, key: PartKey, run: Path, source: Source | None = None) -> None:
    """Train one part from its last checkpoint, and save it with the conditioners that were trained with it."""
    adapter = system.adapter_of(key)
    belongs = {} if adapter is None else belonging(system, key)  # to the weights before anything is attached
    part = _thawed(system, key)
    data, checkpoint = FitData(system, key, source), checkpoint_path(run, key)
    trainer = make_trainer(system.plan, part, key, run, data)
    check_nodes(trainer)
    with saying_when_full(run), warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message=r".*(many workers|ambiguous collection|ended before the epoch|LeafSpec|in eval mode)"
        )
        try:
            trainer.fit(part, datamodule=data, ckpt_path=checkpoint if checkpoint.exists() else None)
        except torch.OutOfMemoryError as error:
            raise PartitaError(
                f"{key}: out of memory at batch size {part.fit_options.batch_size}: lower fit.batch_size (and raise "
                "fit.accumulate) or fit.crop (a stage's window), or set fit.precision=bf16-mixed "
                f"({str(error).splitlines()[0]})"
            ) from None
        except MisconfigurationException as error:
            raise PartitaError(f"{key}: L.Trainer refuses these options: {error}") from None
        except RuntimeError as error:
            if not connection_lost(error):
                raise
            if trainer.strategy.launcher is not None:  # those that are not connected yet would wait for minutes
                trainer.strategy.launcher.kill(signal.SIGKILL)
            raise PartitaError(
                f"{key}: the processes of the training did not connect, or lost their connection: check whether one "
                f"of them ended, and run the same command again ({str(error).splitlines()[0]})"
            ) from None
        finally:
            close_loggers(trainer.loggers)
    if not trainer.state.finished:
        raise Stopped(signal.SIGINT)
    done = trainer.fit_loop.epoch_loop.batch_progress.total.completed // part.fit_options.accumulate
    if done < part.fit_options.steps:
        raise PartitaError(
            f"{key}: the training ended after {done:,} of {part.fit_options.steps:,} steps, so the weights are not "
            "final: find the cause (perhaps an environment variable PL_TRAINER_…), and run the same command again"
        )
    if isinstance(trainer.strategy, FullySharded):
        part = _unsharded(system, key)
    part.cpu()
    if trainer.is_global_zero:
        if adapter is None:
            _save_trained(system, key, run)
        else:
            save_adapter(system.stages[key.name], adapter, run / ADAPTERS / key.name, belongs)
        if checkpoint.is_dir():
            shutil.rmtree(checkpoint)
        checkpoint.unlink(missing_ok=True)
        with suppress(OSError):  # other parts may have checkpoints there
            checkpoint.parent.rmdir()
    trainer.strategy.barrier()
    if adapter is not None:
        merge_adapter(system, key)


def _save_trained(system: System, key: PartKey, run: Path) -> None:
    """Save a trained part, with the conditioners that were trained with it."""
    part = system.training_order[key]
    for name, conditioner in getattr(part, "joint", {}).items():
        conditioner.save(run / PartKey.of("conditioners", name))
    part.save(run / key)
    if key.group == "stages":
        record_trained_on(system, key, run)


def _thawed(system: System, key: PartKey) -> Part:
    """Return a part ready to be trained: what is inside it, and inside conditioners trained with it, stays frozen.

    ``fit.trainable`` can name parameters of inner parts all the same.
    """
    part = system.training_order[key]
    if system.adapter_of(key) is not None:
        check_weights(system, key)
        return with_adapter(system, key)
    part.train().train_only(part.fit_options.trainable)
    joint = [PartKey.of("conditioners", name) for name in getattr(part, "joint", {})]
    for outer in (key, *joint) if part.fit_options.trainable is None else ():
        for name in system.part_plan(outer).parts:
            inner = getattr(system.training_order[outer], name, None)
            if isinstance(inner, Part):
                inner.eval().requires_grad_(False)
    return part


def _unsharded(system: System, key: PartKey) -> Part:
    """Replace a stage that was trained in shares by an ordinary one with its weights, and return it."""
    state, fresh = whole_state(system.parts[key]), System(system.plan)
    part = with_adapter(fresh, key) if key.name in fresh.adapters else fresh.stages[key.name]
    part.load_state_dict(state, assign=True)
    system.stages[key.name] = part
    system.conditioners |= {name: fresh.conditioners[name] for name in part.joint}
    return part


def seconds_per_step(plan: Plan, key: PartKey, *, steps: int = 24) -> float:
    """Measure the time of a training step of a part on this machine.

    It is the median over the first ``steps`` steps without their first third. Later steps may be slower, for example
    when the discriminators of a codec start. The other parts are untrained, which does not affect the time.
    """
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    system, watch = System(plan), StepTimer()
    system.source.setup()
    check_training_pieces(system.source)
    for name, part in system.parts.items():
        if (weights := system.part_plan(name).weights) is not None:
            part.load_weights(weights)
        part.eval().requires_grad_(False)
    part = _thawed(system, key)
    part.fit_options = replace(part.fit_options, steps=steps)
    with TemporaryDirectory() as run, warnings.catch_warnings(), quiet():
        warnings.simplefilter("ignore", UserWarning)
        data = FitData(system, key)
        options: dict[str, Any] = {"logger": False, "limit_val_batches": 0, "callbacks": [watch]}
        trainer = make_trainer(plan, part, key, Path(run), data, **options)
        trainer.fit(part, datamodule=data)
    return statistics.median(b - a for a, b in pairwise(watch.times[steps // 3 :]))
