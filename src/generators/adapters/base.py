"""The contract of adapters: small trained changes of the linear layers of a stage that stays as it is."""

from __future__ import annotations

import fnmatch
import re
import warnings
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from ...core.configured import Configured
from ...core.registry import did_you_mean
from ...errors import PartitaError
from ..base import Generator

if TYPE_CHECKING:
    from peft import PeftConfig

TRAINED = "trained"
"""Name that peft has for the adapter in training."""

PREFIX = "base_model.model."
"""What peft writes before the names of layers in the files of adapters."""


class Adapter(Configured):
    """A change of linear layers with few parameters. The layers, their files and their merging are peft's.

    Args:
        layers: Names of the linear layers that it changes, with the wildcards ``*`` and ``?``. ``None`` takes those of
            the blocks of the stage's network: attention and feed-forward.
    """

    family: ClassVar[str] = "adapter"

    def __init__(self, *, layers: tuple[str, ...] | None = None) -> None:
        if layers is not None and not layers:
            raise ValueError("layers is empty: name layers, or use null for those of the blocks")
        self.layers = layers

    @abstractmethod
    def peft_config(self, layers: list[str]) -> PeftConfig:
        """The configuration in terms of peft, for linear layers of these names."""

    def layers_of(self, stage: Generator) -> list[str]:
        """The names of the linear layers of a stage that the adapter changes.

        Raises:
            ValueError: There are none, or a pattern matches none.
        """
        linear = linear_layers(stage)
        if self.layers is None:
            inside = {id(layer) for block in stage.repeated_blocks for layer in block.modules()}
            found = [name for name, layer in linear.items() if id(layer) in inside]
            if not found:
                raise ValueError("the blocks of this stage have no linear layers: name others in layers")
            return found
        for pattern in self.layers:
            if not fnmatch.filter(linear, pattern):
                groups = dict.fromkeys(re.sub(r"[.]\d+(?=[.])", ".*", name) for name in linear)
                raise ValueError(f"no linear layer is called {pattern!r}{did_you_mean(pattern, groups)}")
        return [name for name in linear if any(fnmatch.fnmatchcase(name, pattern) for pattern in self.layers)]

    def check_weights(self, stage: Generator) -> None:
        """Check that the weights of a stage can be changed in this way.

        Raises:
            ValueError: They cannot.
        """

    def attach(self, stage: Generator) -> None:
        """Add the adapter to the layers of a stage, and freeze everything else. Its initial change is zero.

        Raises:
            PartitaError: peft is not installed.
            ValueError: The stage has no such layers.
        """
        _inject(stage, self.peft_config(self.layers_of(stage)), TRAINED)


class Weighted(NamedTuple):
    """A trained adapter that is merged into a stage.

    Args:
        adapter: The adapter.
        state: Its tensors, as :func:`adapter_state` returns them.
        weight: How much of its change is added: 1 is all of it.
    """

    adapter: Adapter
    state: dict[str, Tensor]
    weight: float


def linear_layers(stage: Generator) -> dict[str, nn.Linear]:
    """The linear layers of a stage by name, without those of conditioners that are trained with it."""
    return {
        name: layer
        for name, layer in stage.named_modules()
        if isinstance(layer, nn.Linear) and not name.startswith(stage.training_only)
    }


def adapter_state(stage: Generator, name: str = TRAINED) -> dict[str, Tensor]:
    """The tensors of an adapter of a stage, under the names that peft has for them in files."""
    from peft.utils import get_peft_model_state_dict

    state = get_peft_model_state_dict(stage, adapter_name=name, save_embedding_layers=False)
    return {f"{PREFIX}{key}": value.detach().contiguous() for key, value in state.items()}


@torch.no_grad()
def merge(stage: Generator, adapters: Sequence[Weighted]) -> None:
    """Add the changes of trained adapters to the weights of a stage, which then is as any other.

    The change of each is that of the stage's own weights, so that their order does not matter, and it is multiplied by
    the weight, also that of an adapter whose effect does not grow in proportion (DoRA). Those of weight 0 change
    nothing, to the last bit.
    """
    chosen = {str(number): one for number, one in enumerate(adapters) if one.weight}
    if not chosen:
        return
    check_installed()
    from peft.utils import set_peft_model_state_dict

    configs = {name: one.adapter.peft_config(one.adapter.layers_of(stage)) for name, one in chosen.items()}
    for name, one in chosen.items():
        _inject(stage, configs[name], name)
        set_peft_model_state_dict(stage, one.state, name)
    for layer in _adapted(stage):
        weight = layer.get_base_layer().weight
        before, change = weight.clone(), torch.zeros_like(weight)
        for name, one in chosen.items():
            layer.merge(adapter_names=[name])
            change += one.weight * (weight - before)
            weight.copy_(before)
            layer.merged_adapters.clear()
        weight.copy_(before + change)
    detach(stage)


def detach(stage: Generator) -> None:
    """Remove all adapters from a stage, whose own weights stay as they are."""
    for name, layer in [(name, layer) for name, layer in stage.named_modules() if _is_adapted(layer)]:
        stage.set_submodule(name, layer.get_base_layer())
    del stage.peft_config


def _inject(stage: Generator, config: PeftConfig, name: str) -> None:
    """Add an adapter of a name to the layers of a stage, and freeze everything else."""
    check_installed()
    from peft import inject_adapter_in_model

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Already found a `peft_config`")
        inject_adapter_in_model(config, stage, name)


def check_installed() -> None:
    """Check that peft, which applies adapters, is installed.

    Raises:
        PartitaError: It is not.
    """
    try:
        import peft  # noqa: F401
    except ImportError as error:
        raise PartitaError(f"adapters need peft: pip install 'partita[adapters]' ({error})") from None


def _adapted(stage: Generator) -> Iterator[Any]:
    return (layer for layer in stage.modules() if _is_adapted(layer))


def _is_adapted(layer: nn.Module) -> bool:
    from peft.tuners.tuners_utils import BaseTunerLayer

    return isinstance(layer, BaseTunerLayer)
