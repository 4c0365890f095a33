"""Training from the name of a recipe to a trained system and its report."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_only

from ..core.console import logged, out
from ..core.logs import shared_logger
from ..data.dataset import dataset_fields, supply_dataset
from ..recipe.plan import Plan
from ..system.system import System
from .report import write_report
from .run_log import quiet
from .training import train as train_parts

log = shared_logger(__name__)


def train(
    recipe: str | Path | Plan,
    run: str | Path | None = None,
    overrides: Sequence[str] = (),
    *,
    data: Any = None,
    report: bool = True,
    progress: bool = True,
) -> System:
    """Train every untrained part of a system, in order, and write a report. Call it again to resume.

    Args:
        recipe: Name of a packaged recipe, the path of a YAML file, or what ``partita.load_recipe`` returns.
        run: Folder of the run. ``None`` uses ``runs/RECIPE``.
        overrides: Changes to the recipe, such as ``"stages.acoustic.generator.fit.steps=500"``.
        data: A torch ``Dataset`` that replaces the data of the recipe, or a mapping from ``train``, ``validation`` and
            ``test`` to data sets. :class:`~partita.data.dataset.DatasetSource` describes the items.
        report: Whether to write ``report.html`` at the end.
        progress: Whether to print progress. It is logged (``partita.training``, INFO) in any case.

    Raises:
        PartitaError: The recipe, the run folder or the data is invalid.
    """
    if data is not None:
        fields = json.dumps(dataset_fields(data))
        overrides = [*overrides, f"data={{name: dataset, fields: {fields}}}"]
    plan = _plan(recipe, overrides)
    folder = Path(run) if run is not None else Path("runs") / _title(recipe, "run")
    with logged(out) if progress else nullcontext():
        with supply_dataset(data) if data is not None else nullcontext():
            system = train_parts(plan, folder)
        if getattr(rank_zero_only, "rank", 0) == 0:
            if report:
                with quiet():  # the report itself lists what is not measured
                    page = write_report(system, folder, title=_title(recipe, folder.name))
                log.info("report: %s", page)
            log.info("trained: %s", folder)
    return system


def _plan(recipe: str | Path | Plan, overrides: Sequence[str]) -> Plan:
    """Return the plan of a recipe after checking it."""
    if isinstance(recipe, Plan):
        return System.checked(recipe.values, overrides).plan if overrides else recipe
    return System.checked(recipe, overrides).plan


def _title(recipe: str | Path | Plan, otherwise: str) -> str:
    return otherwise if isinstance(recipe, Plan) else Path(recipe).stem
