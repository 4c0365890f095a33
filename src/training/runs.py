"""Training as people ask for it: from the name of a recipe to a trained system and its report."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_only

from ..core.console import out
from ..data.dataset import fields_of, supplying
from ..recipe.plan import Plan
from ..system.system import System
from .report import write_report
from .training import train as train_parts


def train(
    recipe: str | Path | Plan,
    run: str | Path | None = None,
    overrides: Sequence[str] = (),
    *,
    data: Any = None,
    report: bool = True,
    progress: bool = True,
    say: Callable[[str], None] | None = None,
) -> System:
    """Train every untrained part of a system, in order, and write a report. Run it again to resume.

    Args:
        recipe: Name of a packaged recipe, the path of a YAML file, or what ``partita.load_recipe`` returns.
        run: Folder of the run; ``runs/RECIPE`` where none is given.
        overrides: Changes to the recipe, such as ``"stages.acoustic.generator.fit.steps=500"``.
        data: A torch ``Dataset`` to train on in place of the recipe's data, or a mapping from ``train``, ``validation``
            and ``test`` to one: see :class:`~partita.data.dataset.DatasetSource` for its items.
        report: Whether to write ``report.html`` at the end.
        progress: Whether to print what is done.
        say: Gets the lines in place of the terminal.

    Raises:
        PartitaError: There is a mistake in the recipe, the run or the data.
    """
    if data is not None:
        fields = json.dumps(fields_of(data))
        overrides = [*overrides, f"data={{name: dataset, fields: {fields}}}"]
    plan = _plan(recipe, overrides)
    folder = Path(run) if run is not None else Path("runs") / _title(recipe, "run")
    tell = rank_zero_only(say or (out.print if progress else _nothing))
    with supplying(data) if data is not None else nullcontext():
        system = train_parts(plan, folder, say=tell)
    if getattr(rank_zero_only, "rank", 0) == 0:
        if report:
            tell(f"report: {write_report(system, folder, title=_title(recipe, folder.name))}")
        tell(f"trained: {folder}")
    return system


def _plan(recipe: str | Path | Plan, overrides: Sequence[str]) -> Plan:
    """The plan, once everything has been looked for that can be wrong with it."""
    if isinstance(recipe, Plan):
        return System.checked(recipe.values, overrides).plan if overrides else recipe
    return System.checked(recipe, overrides).plan


def _title(recipe: str | Path | Plan, otherwise: str) -> str:
    return otherwise if isinstance(recipe, Plan) else Path(recipe).stem


def _nothing(line: str) -> None:
    """Say nothing."""
