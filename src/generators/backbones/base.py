"""The contract of backbones: causal networks that an autoregressive stage runs on."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from torch import Tensor

from ..network import StageNetwork


@dataclass(frozen=True)
class SequenceContext:
    """The context of a sequence besides its embeddings, for all positions that the sequence will ever have.

    Attributes:
        positions: ``[B or 1, N]``, the position number of each place: an integer, or a fraction in a prefix that is
            aligned in time. Padding of a prefix is not counted. ``N`` is the maximum length of the sequence.
        mask: ``[B, N]`` bool, true on real places, false on padding of a prefix. ``None`` means no padding. The
            result must not depend on padding.
        cross: ``[B, L, width]``, the sequence for cross-attention; ``None`` without one.
        cross_mask: ``[B, L]`` bool, true on real places of ``cross``; ``None`` if all are.
        added: ``[B, N, width]``, what the stage has added to the embeddings, zero in a prefix; ``None`` if nothing, or
            if the backbone does not :attr:`~Backbone.adds_again`.
    """

    positions: Tensor
    mask: Tensor | None = None
    cross: Tensor | None = None
    cross_mask: Tensor | None = None
    added: Tensor | None = None


class State(Protocol):
    """The state of a backbone between generation steps: keys and values, or a recurrent state."""

    @property
    def length(self) -> int:
        """Number of places that have been processed."""


class Backbone(StageNetwork):
    """A causal network over embeddings: the output at a place depends only on this place and those before it.

    The stage embeds codes and conditions, and predicts codes from the result. A backbone is a transformer, a recurrent
    network, a state-space model, or anything else with these properties:

    - :attr:`width` is known before :meth:`build`.
    - :meth:`forward` gives the same results for a whole sequence at once and for its places in pieces with a state.
    - A sample does not depend on the batch around it, nor on padding of a prefix.

    Subclasses implement :meth:`make_layers`, :meth:`new_state` and :meth:`forward`.

    Attributes:
        fusions: The ways in which conditions can enter a stage with this backbone. The stage implements ``prepend`` and
            ``add`` itself; ``cross`` passes a sequence for cross-attention to the backbone.
        width: Width of the input and the output.
        adds_again: Whether it adds the conditions that are added frame by frame again, further inside.
    """

    family: ClassVar[str] = "backbone"
    fusions: ClassVar[tuple[str, ...]] = ("cross", "prepend", "add")
    adds_again: bool = False

    @abstractmethod
    def new_state(self, context: SequenceContext) -> Any:
        """A :class:`State` before the first place of a sequence."""

    @abstractmethod
    def forward(self, x: Tensor, context: SequenceContext, state: Any = None) -> Tensor:
        """The hidden states ``[B, N, width]`` of places of a sequence.

        Args:
            x: Embeddings ``[B, N, width]``: the first ``N`` places of the sequence, or with a state the next ``N``.
            context: The context of the sequence.
            state: A state from :meth:`new_state` with the same context; the places of ``x`` are added to it.
        """
