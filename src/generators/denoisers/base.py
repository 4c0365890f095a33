"""The contract of denoisers: networks that a diffusion stage asks what is noise."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ...core.component import Component


@dataclass(frozen=True)
class DenoiserSetting:
    """What only the stage knows when a denoiser makes its weights.

    Attributes:
        outputs: Channels that it predicts.
        cross: Whether something is attended to. Its width is the denoiser's own, because the stage projects it.
        checkpointing: Whether to recompute layers in the backward pass, which saves memory.
    """

    outputs: int
    cross: bool = False
    checkpointing: bool = False


@dataclass(frozen=True)
class DenoiserContext:
    """What a denoiser is told of a batch besides its noisy frames and their level of noise.

    Attributes:
        mask: ``[B, S]`` bool, true where a frame holds something, false on padding. ``None`` where nothing pads. What
            is predicted where the mask is true must not depend on padding.
        cross: ``[B, L, width]``, what is attended to; ``None`` without it.
        cross_mask: ``[B, L]`` bool, true where it holds something; ``None`` where all of it counts.
        pooled: ``[B, width]``, one vector for the whole, which belongs with the level of noise; ``None`` without it.
    """

    mask: Tensor | None = None
    cross: Tensor | None = None
    cross_mask: Tensor | None = None
    pooled: Tensor | None = None


class Denoiser(Component):
    """A network that sees all frames at once at a level of noise, and predicts what the stage's objective asks for.

    The stage projects noisy frames to :attr:`width`, adds what is aligned in time, and hands the sum over. A denoiser
    is a transformer, a U-Net, a convolutional network, or anything else with these properties:

    - :attr:`width` is known before :meth:`build`.
    - Any number of frames is taken, from one on. A network that works at lower rates pads inside, and cuts off again.
    - A sample does not depend on the batch around it, nor on padding.

    Subclasses implement :meth:`make_layers` and :meth:`forward`.

    Attributes:
        fusions: The ways in which something can be given to a stage on this denoiser. ``concat`` needs nothing of it;
            ``cross`` hands it a sequence to attend to, ``modulate`` a vector.
        width: Width of the frames that come in.
    """

    family: ClassVar[str] = "denoiser"
    fusions: ClassVar[tuple[str, ...]] = ("cross", "concat", "modulate")
    width: int

    def build(self, setting: DenoiserSetting) -> None:
        """Make the weights; the stage calls this once.

        Raises:
            ValueError: It is in another stage already, or is to attend to something and cannot.
        """
        self.claim()
        if setting.cross and "cross" not in self.fusions:
            raise ValueError(f"the denoiser {self.registered_name} cannot attend to anything (cross)")
        self.make_layers(setting)

    @abstractmethod
    def make_layers(self, setting: DenoiserSetting) -> None:
        """Make the layers and draw their weights."""

    @abstractmethod
    def forward(self, x: Tensor, noise_level: Tensor, context: DenoiserContext) -> Tensor:
        """The prediction ``[B, S, outputs]``.

        Args:
            x: Noisy frames ``[B, S, width]``.
            noise_level: ``[B]``, in [0, 1].
            context: What else belongs to the batch.
        """
