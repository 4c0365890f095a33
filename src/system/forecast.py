"""The table of what training a system will take, which `partita check` prints."""

from __future__ import annotations

from typing import Any

import torch
from rich.console import Group
from rich.text import Text

from ..core.console import columns
from ..core.devices import find_device
from ..core.hardware import HARDWARE, Hardware, measured
from ..core.part_key import PartKey
from ..core.progress import duration
from ..core.registry import did_you_mean
from ..errors import PartitaError
from ..generators.adapters.base import detach
from .assembly import Assembly
from .estimate import Step, estimate


def forecast(
    system: Assembly, *, devices: int | None = None, strategy: str | None = None, hardware: str | None = None
) -> Group:
    """Return a table of memory, operations, seconds per step and duration of the training of each part.

    Args:
        system: The system, also on the meta device.
        devices: Number of devices that train together. ``None`` takes those of the recipe, or one.
        strategy: ``ddp`` or ``fsdp2``. ``None`` takes that of the recipe.
        hardware: One of :data:`~partita.core.hardware.HARDWARE`, or ``cpu`` for this processor. ``None`` is ``cpu`` on
            a machine without a GPU, and otherwise its GPU.

    Raises:
        PartitaError: The hardware is unknown.
    """
    where, lines, most = find_hardware(hardware), [], 1
    trainings: list[tuple[int, float]] = []  # devices and seconds of each
    table = columns(
        "part",
        "trained",
        "memory",
        "activations",
        "operations",
        "step",
        "steps",
        "training",
        right=("trained", "memory", "activations", "operations", "step", "steps", "training"),
    )
    for key, part in system.training_order.items():
        adapter = system.adapter_of(key)
        pretrained = system.part_plan(key).weights is not None and adapter is None
        if pretrained or part.weightless or getattr(part, "trained_with_stage", False):
            continue
        fit, trainer = part.fit_options, system.plan.trainer | part.fit_options.trainer
        count = devices or _devices(trainer)
        most = max(most, count)
        seconds = system.plan.stages[key.name].window if key.group == "stages" else fit.crop
        if adapter is not None:
            adapter.attach(system.stages[key.name])
        step = estimate(part, seconds)
        if adapter is not None:
            detach(system.stages[key.name])
        if step is None:
            table.add_row(key, f"{part.num_own_parameters:,}", "not estimated", "", "", "", f"{fit.steps:,}", "")
            continue
        sharded = (strategy or trainer.get("strategy")) == "fsdp2" and key.group == "stages"  # others train by DDP
        memory, each = step.memory(count, sharded=sharded), step.seconds(where, count, sharded=sharded)
        table.add_row(
            key,
            f"{step.trained:,}",
            _bytes(memory),
            _bytes(step.activations),
            f"{_rounded(step.operations / 1e12)} T",
            _seconds(each),
            f"{fit.steps:,}",
            duration(each * fit.steps) + price(where, count, each * fit.steps),
        )
        trainings.append((count, each * fit.steps))
        if count > 1:
            each_device = f"{fit.batch_size:,}" + (f" × {fit.accumulate}" if fit.accumulate > 1 else "")
            total = fit.batch_size * fit.accumulate * count
            lines.append(f"a step of {key} has {total:,} examples: {each_device} on each of {count:,} devices")
        if where.memory is not None and memory > where.memory:
            lines.append(f"{key} does not fit: {advice(key, step, where, count, sharded)}")
        if sharded and trainer.get("precision", fit.precision) == "16-mixed":
            lines.append(f"{key} cannot be trained by fsdp2 in 16-mixed: set fit.precision=bf16-mixed")
    if len(trainings) > 1:
        whole = price(where, 1, sum(number * seconds for number, seconds in trainings))
        lines.append(f"{len(trainings)} parts take {duration(sum(seconds for _, seconds in trainings))}{whole}")
    shares = f"{_rounded(where.half * where.share / 1e12)} trillion operations per second in bfloat16 on each device"
    if most > 1:
        lines.append("every device has fit.batch_size examples: lower it to keep the number of examples of a step")
    stored = "without reading and encoding audio for stages (memory per device)"
    notes = [f"estimated for {where.name}, at {shares}, {stored}", *lines]
    return Group(table, *(Text(f"training: {line}") for line in notes))


def find_hardware(name: str | None) -> Hardware:
    """Return the hardware of a name; see :func:`forecast`.

    Raises:
        PartitaError: It is unknown.
    """
    if name is None:
        device = find_device("auto")
        found = torch.cuda.get_device_name().lower() if device.type == "cuda" else "cpu"
        name = next((one for one in HARDWARE if one in found), "cpu")
    if name == "cpu":
        return measured()
    if name not in HARDWARE:
        raise PartitaError(f"there are no figures for the hardware {name!r}{did_you_mean(name, [*HARDWARE, 'cpu'])}")
    return HARDWARE[name]


def price(hardware: Hardware, devices: int, seconds: float) -> str:
    """Return the price of a training, as a note after its duration; empty without a price."""
    dollars = hardware.dollars * devices * seconds / 3600
    return f", ${dollars:,.0f}" if dollars else ""


def advice(key: PartKey, step: Step, hardware: Hardware, devices: int, sharded: bool) -> str:
    """Return what to change so that a training step of a part fits into the memory. Only stages can be sharded."""
    options = key.replace("/", ".") + (".generator" if key.group == "stages" else "")
    smaller = f"lower {options}.fit.batch_size and raise {options}.fit.accumulate"
    if key.group != "stages":
        return smaller
    most = hardware.memory or 0.0
    changes = []
    if not sharded and devices > 1 and step.memory(devices, sharded=True) <= most:
        changes.append("set trainer.strategy=fsdp2")
    if not step.recomputed:
        changes.append(f"set {options}.checkpointing=true")
    if step.activations > most / 4:
        changes.append(smaller)
    return " or ".join(changes or ["train on more devices with trainer.strategy=fsdp2"])


def _devices(trainer: dict[str, Any]) -> int:
    given = trainer.get("devices")
    if isinstance(given, str):  # as a number, or as indices
        numbers = [number for number in given.split(",") if number.strip()]
        given = numbers if "," in given else int(given) if given.strip().isdecimal() else None
    each = given if isinstance(given, int) and given > 0 else len(given) if isinstance(given, list) else 1
    return each * int(trainer.get("num_nodes") or 1)


def _bytes(number: float) -> str:
    return f"{_rounded(number / 1e9)} GB" if number >= 1e8 else f"{_rounded(number / 1e6)} MB"


def _seconds(seconds: float) -> str:
    return f"{_rounded(seconds)} s" if seconds >= 1 else f"{_rounded(seconds * 1000)} ms"


def _rounded(number: float) -> str:
    """Format a number with three significant digits, or as a whole number if it has more."""
    return f"{number:,.0f}" if number >= 1000 else f"{number:.3g}"
