"""The overview of a system that `partita check` prints."""

from __future__ import annotations

from typing import Any, NamedTuple

from rich.console import Group
from rich.text import Text

from ..core.console import columns, written
from ..core.part_key import PartKey
from ..data.overview import provenance, supplies
from .assembly import Assembly


class PartSummary(NamedTuple):
    """A row of the overview: key, registered name, parameter count, specification and training of a part."""

    key: PartKey
    name: str
    parameters: int
    spec: str
    training: str


def summary(system: Assembly) -> list[PartSummary]:
    """Return a summary of each part, also of those inside others that are trained on their own."""
    lines = []
    for key, part in system.training_order.items():
        weights, fit = system.part_plan(key).weights, part.fit_options
        training = f"{fit.steps:,} steps of {fit.examples}" if weights is None else f"none: {weights}"
        if (adapter := system.adapter_of(key)) is not None:
            training = f"{fit.steps:,} steps of {fit.examples} of its adapter {adapter.registered_name}"
        elif part.weightless:
            training = "nothing to learn"
        elif weights is None and getattr(part, "trained_with_stage", False):
            training = "with its stage"
        lines.append(PartSummary(key, part.registered_name, part.num_parameters, _output(system, key, part), training))
    return lines


def _output(system: Assembly, key: PartKey, part: Any) -> str:
    """Return what a part makes, and of what."""
    if key.group != "stages":
        return f"{', '.join(part.inputs)} → {part.spec}" if part.family == "conditioner" else str(part.spec)
    stage = system.plan.stages[key.name]
    given = ", ".join(f"{name} ({one.fusion})" for name, one in part.given.items())
    return f"{stage.named_targets} given {given or 'nothing'}, {stage.window:g} s"


def overview(system: Assembly) -> Group:
    """Return a table of all parts, followed by lines about the data."""
    table = columns("part", "kind", "parameters", "output", "training", right=("parameters",))
    for row in summary(system):
        table.add_row(row.key, row.name, f"{row.parameters:,}", row.spec, row.training)
    lines = [f"data: {line}" for line in (*supplies(system.source), *provenance(system.source))]
    if (tokens := system.plan.tokens) is not None:
        count = "4 readings (random data) or 1" if tokens.versions is None else f"{tokens.versions:,} readings"
        lines.append(f"tokens: stored before the stages are trained, {count} of each training piece")
    return Group(table, *(Text(line) for line in lines))


def summary_text(system: Assembly) -> str:
    """Return the overview as plain text."""
    return written(overview(system))
