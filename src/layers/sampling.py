"""Drawing codes from logits, with noise that depends on the sample rather than the batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Sampling:
    """Sampling options of codes.

    Args:
        temperature: Divisor of the logits; 0 takes the most likely code.
        top_k: Draw only from this many most likely codes. ``None`` sets no limit.
        top_p: Draw only from the most likely codes that together reach this probability. ``None`` sets no limit.
        guidance: Scale of classifier-free guidance; 1 disables it.
        inner: Conditions of the middle prediction of double guidance, such as ``[style]``; none for plain guidance.
            Samples that have none of them get plain guidance.
        inner_guidance: Scale of double guidance away from the prediction under the ``inner`` conditions alone, towards
            that under all (β of MusicGen-Style, arXiv 2407.12563 §4.2; ``guidance`` is α there).
    """

    temperature: float = 1.0
    top_k: int | None = 250
    top_p: float | None = None
    guidance: float = 3.0
    inner: tuple[str, ...] = ()
    inner_guidance: float = 1.0

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise ValueError(f"temperature must be 0 (the likeliest code) or positive, not {self.temperature}")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k must be at least 1, not {self.top_k}: leave it out for no limit")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be in (0, 1], not {self.top_p}")

    def draw(self, logits: Tensor, noise: Tensor | None = None) -> Tensor:
        """Codes ``[...]`` from logits ``[..., cardinality]``.

        Adding Gumbel noise and taking the largest draws exactly from the distribution. A rounding error in the
        logits changes the draw only if the two best are equal to within that error.

        Args:
            logits: Logits of any float dtype.
            noise: Standard Gumbel noise of the same shape; unused at temperature 0.
        """
        if self.temperature == 0:
            return logits.argmax(-1)
        logits = logits.float() / self.temperature
        if self.top_k is not None and self.top_k < logits.shape[-1]:
            least = logits.topk(self.top_k, dim=-1).values[..., -1:]
            logits = logits.masked_fill(logits < least, -torch.inf)
        if self.top_p is not None and self.top_p < 1:
            ordered, order = logits.softmax(-1).sort(dim=-1, descending=True)
            surplus = ordered.cumsum(-1) - ordered >= self.top_p
            logits = logits.masked_fill(surplus.scatter(-1, order, surplus), -torch.inf)
        return (logits if noise is None else logits + noise).argmax(-1)


class GumbelNoise:
    """Standard Gumbel noise for every step of a generation, with a random number generator per sample.

    The noise of a sample at a step depends only on its seed and the step. The numbers are drawn on the CPU, so that all
    devices get the same, and ahead of time for several steps at once.

    Args:
        seeds: One seed per sample.
        shape: Shape of the noise of one sample at one step.
        device: Device that uses the noise.
    """

    stretch = 64

    def __init__(self, seeds: Sequence[int], shape: tuple[int, ...], device: torch.device | str) -> None:
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self._shape = shape
        self._device = device
        self._drawn = 0
        self._noise = torch.empty(0)

    def at(self, step: int) -> Tensor:
        """Noise ``[B, *shape]`` of a step; steps must be requested in ascending order."""
        while step >= self._drawn:
            draws = [torch.empty(self.stretch, *self._shape).exponential_(generator=g) for g in self._generators]
            # An exponential draw can round to zero, whose logarithm would win over every logit.
            self._noise = -torch.stack(draws, dim=1).clamp_(min=1e-30).log_().to(self._device)
            self._drawn += self.stretch
        return self._noise[step - self._drawn]


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put a module and its submodules into evaluation mode inside the block, and restore their modes afterwards."""
    training = [child for child in module.modules() if child.training]
    module.eval()
    try:
        yield
    finally:
        for child in training:
            child.training = True
