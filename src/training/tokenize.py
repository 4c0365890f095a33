"""Storing the tokens of all data as shards, on which stages are trained without reading or encoding audio."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path

from ..core.console import logged, out, showing_progress
from ..core.devices import find_device
from ..core.logs import shared_logger
from ..errors import PartitaError
from ..recipe.plan import Plan, load_recipe
from ..recipe.token_options import TokenOptions
from ..storage.files import kind
from ..storage.object_store import store_for
from ..system.assembly import INDEX
from ..system.saved import check_index
from ..system.system import System
from .token_store import Workforce, store_tokens

log = shared_logger(__name__)


def tokenize(
    recipe: str | Path | Plan,
    output: str | Path,
    overrides: Sequence[str] = (),
    *,
    options: TokenOptions | None = None,
    workers: int = 0,
    device: str = "auto",
    node: tuple[int, int] | None = None,
    progress: bool = True,
) -> None:
    """Store the tokens that the stages of a recipe need. Call it again to resume, or to repair a damaged folder.

    Args:
        recipe: The folder of a run, whose trained parts are used; or a recipe in which all tokenizers and conditioners
            have weights.
        output: Folder of the shards, or a URL of object storage that litdata can write to (``s3://…``).
        overrides: Changes to the recipe, such as ``"data={name: folder, path: /music}"``.
        options: What is stored of each piece. ``None`` takes the options of the recipe, or the defaults.
        workers: Number of processes that read and decode audio. 0 reads it in this process.
        device: Device that encodes the audio; ``auto`` uses a GPU if there is one.
        node: Number of this node, from 0, and number of nodes that share the work. ``None`` reads them from the
            environment of Slurm or torchrun, if they are set. All nodes need the same ``output``.
        progress: Whether to show progress.

    Raises:
        PartitaError: A part has no weights, the data is unusable, or the folder holds other tokens.
    """
    with logged(out) if progress else nullcontext(), showing_progress(progress):
        system = load_parts(recipe, overrides)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # skipped files are in the report
            system.source.setup()
        for line in system.source.report:
            log.info(line)
        options = options or system.plan.tokens or TokenOptions()
        rank, nodes = node or node_of(os.environ)
        store_tokens(system, store_for(output), options, Workforce(workers, find_device(device), rank, nodes))


def load_parts(recipe: str | Path | Plan, overrides: Sequence[str] = ()) -> System:
    """Return a system whose tokenizers and frozen conditioners have their weights.

    Raises:
        PartitaError: A part has no weights.
    """
    run = None
    if isinstance(recipe, Plan):
        plan = recipe
    elif kind(recipe) == "folder":
        run = Path(recipe)
        if kind(run / INDEX) != "file":
            raise PartitaError(f"{run} is not a run: it contains no {INDEX}")
        check_index(run / INDEX)
        plan = load_recipe(run / INDEX, overrides)
    else:
        plan = load_recipe(recipe, overrides)
    system = System(plan)
    joint = {name for stage in system.stages.values() for name in stage.joint}
    lacking = []
    for key, part in system.parts.items():
        if key.group == "stages" or (key.group == "conditioners" and key.name in joint):
            continue
        weights = system.part_plan(key).weights
        if run is not None and (run / key / "model.safetensors").is_file():
            part.load_weights(run / key)
        elif weights is not None:
            part.load_weights(weights)
        elif not part.weightless:
            lacking.append(key)
        part.eval().requires_grad_(False)
    if lacking:
        first = lacking[0]
        raise PartitaError(
            f"{' and '.join(lacking)} {'has' if len(lacking) == 1 else 'have'} no weights, so there are no tokens to "
            f"store: train first and give the folder of the run (`partita tokenize RUN`), or set "
            f"{first.group}.{first.name}.weights"
        )
    return system


def node_of(environment: Mapping[str, str]) -> tuple[int, int]:
    """Return the number of this node and the number of nodes, as torchrun, Slurm or submitit set them.

    >>> node_of({"SLURM_PROCID": "3", "SLURM_NTASKS": "8"}), node_of({})
    ((3, 8), (0, 1))
    """
    for rank, size in (("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_NTASKS"), ("NODE_RANK", "NUM_NODES")):
        if environment.get(rank, "").isdecimal() and environment.get(size, "").isdecimal():
            return int(environment[rank]), int(environment[size])
    return 0, 1
