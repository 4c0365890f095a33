"""The contract of backbones: causal networks that an autoregressive stage runs on."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from torch import Tensor

from ...core.component import Component


@dataclass(frozen=True)
class BackboneSetting:
    """What only the stage knows when a backbone makes its weights.

    Attributes:
        cross: Whether something is attended to. Its width is the backbone's own, because the stage projects it.
        checkpointing: Whether to recompute layers in the backward pass, which saves memory.
    """

    cross: bool = False
    checkpointing: bool = False


@dataclass(frozen=True)
class SequenceContext:
    """What belongs to a sequence besides its embeddings, for all places that it will ever have.

    Attributes:
        positions: ``[B or 1, N]``, the position of each place as a number; whole, or a fraction in a prefix that is
            aligned in time. Places that pad a prefix are not counted. ``N`` is the most places that the sequence has.
        mask: ``[B, N]`` bool, true where a place holds something, false where it pads a prefix. ``None`` where nothing
            pads. The result must not depend on places that pad.
        cross: ``[B, L, width]``, what is attended to; ``None`` without it.
        cross_mask: ``[B, L]`` bool, true where it holds something; ``None`` where all of it counts.
    """

    positions: Tensor
    mask: Tensor | None = None
    cross: Tensor | None = None
    cross_mask: Tensor | None = None


class State(Protocol):
    """What a backbone keeps between the steps of a generation: keys and values, or a recurrent state."""

    @property
    def length(self) -> int:
        """Places that went in so far."""


class Backbone(Component):
    """A causal network over embeddings: what it makes of a place depends on this place and those before it alone.

    The stage embeds codes and conditions, and predicts codes from the result. A backbone is a transformer, a recurrent
    network, a state-space model, or anything else with these properties:

    - :attr:`width` is known before :meth:`build`.
    - :meth:`forward` gives the same results for a whole sequence at once and for its places bit by bit with a state.
    - A sample does not depend on the batch around it, nor on places that only pad a prefix.

    Subclasses implement :meth:`make_layers`, :meth:`new_state` and :meth:`forward`.

    Attributes:
        fusions: The ways in which something can be given to a stage on this backbone. ``prepend`` and ``add`` need
            nothing of it; ``cross`` hands it a sequence to attend to.
        width: Width of the sequence, in and out.
    """

    family: ClassVar[str] = "backbone"
    fusions: ClassVar[tuple[str, ...]] = ("cross", "prepend", "add")
    width: int

    def build(self, setting: BackboneSetting) -> None:
        """Make the weights; the stage calls this once.

        Raises:
            ValueError: It is in another stage already, or is to attend to something and cannot.
        """
        self.claim()
        if setting.cross and "cross" not in self.fusions:
            raise ValueError(f"the backbone {self.registered_name} cannot attend to anything (cross)")
        self.make_layers(setting)

    @abstractmethod
    def make_layers(self, setting: BackboneSetting) -> None:
        """Make the layers and draw their weights."""

    @abstractmethod
    def new_state(self, context: SequenceContext) -> Any:
        """A :class:`State` before the first place of a sequence."""

    @abstractmethod
    def forward(self, x: Tensor, context: SequenceContext, state: Any = None) -> Tensor:
        """What it makes of places of a sequence, ``[B, N, width]``.

        Args:
            x: Embeddings ``[B, N, width]``: the first ``N`` places of the sequence, or with a state the next ``N``.
            context: What else belongs to the sequence.
            state: From :meth:`new_state` with the same context; the places of ``x`` are added to it.
        """
