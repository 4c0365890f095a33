"""The contract of denoisers: the networks with which diffusion stages remove noise."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from ...layers.compiled import compile_blocks
from ..network import NetworkSetting, StageNetwork


@dataclass(frozen=True, kw_only=True)
class DenoiserSetting(NetworkSetting):
    """Facts that only the stage knows when a denoiser creates its weights.

    Attributes:
        outputs: Number of channels that the denoiser predicts.
    """

    outputs: int


@dataclass(frozen=True)
class DenoiserContext:
    """The context of a batch besides its noisy frames and their noise level.

    Attributes:
        mask: ``[B, S]`` bool, true on real frames, false on padding. ``None`` means no padding. Predictions of real
            frames must not depend on padding.
        cross: ``[B, L, width]``, the sequence for cross-attention; ``None`` without one.
        cross_mask: ``[B, L]`` bool, true on real places of ``cross``; ``None`` if all are.
        pooled: ``[B, width]``, one vector per sample, to be added to the embedding of the noise level; ``None``
            without one.
        prepared: Results of :meth:`Denoiser.prepare`; ``None`` without them.
    """

    mask: Tensor | None = None
    cross: Tensor | None = None
    cross_mask: Tensor | None = None
    pooled: Tensor | None = None
    prepared: Any = None


class Denoiser(StageNetwork):
    """A network that sees all frames at one noise level, and predicts the target of the stage's objective.

    The stage projects noisy frames to :attr:`width` and adds conditions that are aligned in time. A denoiser is a
    transformer, a U-Net, a convolutional network, or anything else with these properties:

    - :attr:`width` is known before :meth:`build`.
    - It accepts any positive number of frames. A network with lower internal rates pads them, and crops the result.
    - A sample does not depend on the batch around it, nor on padding.

    Subclasses implement :meth:`make_layers` and :meth:`forward`.

    Attributes:
        fusions: The ways in which conditions can enter a stage with this denoiser. The stage implements ``concat``
            itself; ``cross`` passes a sequence for cross-attention to the denoiser, ``modulate`` a vector.
        width: Width of the input frames.
    """

    family: ClassVar[str] = "denoiser"
    fusions: ClassVar[tuple[str, ...]] = ("cross", "concat", "modulate")

    def compile_steps(self) -> None:
        """Compile the :attr:`repeated_blocks`."""
        compile_blocks(self.repeated_blocks)

    def prepare(self, context: DenoiserContext, frames: int) -> DenoiserContext:
        """Return the context with what all steps of a generation share, which sets :attr:`DenoiserContext.prepared`.

        Args:
            context: The context of the batch.
            frames: Number of frames ``S``.
        """
        return context

    @abstractmethod
    def forward(self, x: Tensor, noise_level: Tensor, context: DenoiserContext) -> Tensor:
        """The prediction ``[B, S, outputs]``.

        Args:
            x: Noisy frames ``[B, S, width]``.
            noise_level: Noise levels ``[B]``, in [0, 1].
            context: The context of the batch.
        """
