"""What backbones and denoisers share: how a stage builds the network it runs on."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from ..core.component import Component


@dataclass(frozen=True, kw_only=True)
class NetworkSetting:
    """Facts that only the stage knows when a network creates its weights.

    Attributes:
        cross: Whether there is a sequence for cross-attention. The stage projects it to the network's width.
        checkpointing: Whether to recompute layers in the backward pass, which saves memory.
    """

    cross: bool = False
    checkpointing: bool = False


class StageNetwork(Component):
    """The network of a stage.

    Attributes:
        fusions: The ways in which conditions can enter a stage with this network.
        width: Width of the input; it is known before :meth:`build`.
        checkpointing: Whether the blocks are recomputed in the backward pass.
    """

    fusions: ClassVar[tuple[str, ...]]
    width: int
    checkpointing: bool = False

    def build(self, setting: Any) -> None:
        """Create the weights. The stage calls this once.

        Args:
            setting: A :class:`NetworkSetting`, or what the family makes of it.

        Raises:
            ValueError: The network already belongs to another stage, or lacks the cross-attention that the stage needs.
        """
        self.claim()
        self.checkpointing = bool(setting.checkpointing)
        if setting.cross and "cross" not in self.fusions:
            raise ValueError(f"the {self.family} {self.registered_name} has no cross-attention (cross)")
        self.make_layers(setting)

    @property
    def repeated_blocks(self) -> list[nn.Module]:
        """The members of the network's lists of modules, which it calls one after the other."""
        lists = [module for module in self.modules() if isinstance(module, nn.ModuleList)]
        inner = {id(module) for outer in lists for member in outer for module in member.modules()}
        return [member for outer in lists if id(outer) not in inner for member in outer]

    def compile_steps(self) -> None:
        """Compile what generation repeats, once, in a copy of the network that only generates.

        A network that does not implement this generates without compilation.
        """

    @abstractmethod
    def make_layers(self, setting: Any) -> None:
        """Create the layers and initialize their weights."""
