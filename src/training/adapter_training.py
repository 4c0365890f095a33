"""Training the adapter of a stage, which itself stays as it is."""

from __future__ import annotations

from pathlib import Path

import torch

from ..core.part_key import PartKey
from ..core.seeds import derive_seed
from ..errors import PartitaError
from ..generators.adapters.base import Weighted, adapter_state, detach, merge
from ..generators.base import Generator
from ..layers.standardize import Standardize
from ..storage.files import kind
from ..system.system import System


def belonging(system: System, key: PartKey) -> dict[str, str]:
    """Return what the adapter of a stage belongs to, as :func:`partita.system.adapters.save_adapter` takes it."""
    base = str(system.plan.values["finetune"])
    path = str(Path(base).resolve()) if kind(Path(base)) else base
    return {"base": path, "stage": key.name, "fingerprint": system.stages[key.name].weights_fingerprint()}


def check_weights(system: System, key: PartKey) -> None:
    """Check that the weights of a stage can be changed by its adapter.

    Raises:
        PartitaError: They cannot.
    """
    try:
        system.adapters[key.name].check_weights(system.stages[key.name])
    except ValueError as error:
        raise PartitaError(f"{key}: {error}") from None


def with_adapter(system: System, key: PartKey) -> Generator:
    """Return a stage ready for the training of its adapter, which is drawn from the seed of the recipe."""
    stage = system.stages[key.name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(system.plan.seed, key, "adapter"))
        system.adapters[key.name].attach(stage.train())
    for layer in stage.modules():
        if isinstance(layer, Standardize):  # of a stage that was trained for a few steps only
            layer.settle()
    stage.strict_loading = False  # checkpoints hold what is trained
    return stage


def merge_adapter(system: System, key: PartKey) -> None:
    """Merge the adapter that was trained into its stage."""
    stage = system.stages[key.name]
    state = adapter_state(stage)
    detach(stage)
    merge(stage, [Weighted(system.adapters[key.name], state, 1.0)])
    stage.strict_loading = True
