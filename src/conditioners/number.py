"""Numbers as learned Fourier features."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..core.contracts import Clip, Condition, ConditionSpec
from ..core.registry import register
from .base import Conditioner


class FourierFeatures(nn.Module):
    """A number from 0 to 1 as an embedding, by sines and cosines of learned frequencies (Stable Audio).

    Args:
        frequencies: Number of frequencies.
        dim: Width of the embedding.
    """

    def __init__(self, frequencies: int, dim: int) -> None:
        super().__init__()
        self.frequencies = nn.Parameter(torch.randn(frequencies))
        self.projection = nn.Linear(2 * frequencies + 1, dim)

    def forward(self, numbers: Tensor) -> Tensor:
        """Numbers ``[B]`` to embeddings ``[B, dim]``."""
        x = numbers[:, None]
        angles = 2 * math.pi * x * self.frequencies
        return self.projection(torch.cat([x, angles.sin(), angles.cos()], dim=1))


@register("conditioner", "number")
class Number(Conditioner):
    """An embedding of each number that is known of a clip, such as its tempo, trained together with the stage.

    A number is limited to a range, which becomes 0 to 1, and embedded by learned Fourier features (Stable Audio, arXiv
    2402.04825). The condition has one position for each field, each with weights of its own; it is masked where the
    number is not known.

    Args:
        dim: Width of an embedding.
        frequencies: Number of frequencies of the features.
        low: Lowest number; lower ones count as this one.
        high: Highest number; higher ones count as this one.
        log: Whether ratios of numbers count, as for tempi, instead of differences.
        inputs: Names of the fields of numbers that the conditioner reads.

    Raises:
        ValueError: A value is out of range.
    """

    inputs: tuple[str, ...] = ("tempo",)
    kinds: ClassVar[tuple[str, ...]] = ("number",)
    trained_with_stage: ClassVar[bool] = True

    def __init__(
        self,
        *,
        dim: int = 256,
        frequencies: int = 128,
        low: float = 30.0,
        high: float = 300.0,
        log: bool = False,
        inputs: tuple[str, ...] = ("tempo",),
    ) -> None:
        super().__init__(inputs)
        if min(dim, frequencies) < 1:
            raise ValueError("dim and frequencies must be at least 1")
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise ValueError(f"low must be below high, unlike {low} and {high}")
        if log and low <= 0:
            raise ValueError(f"with log, low must be above 0, not {low}")
        self.dim, self.low, self.high, self.log_scale = dim, low, high, log
        self.features = nn.ModuleDict({name: FourierFeatures(frequencies, dim) for name in self.inputs})

    @property
    def spec(self) -> ConditionSpec:
        """One embedding per field."""
        return ConditionSpec(dim=self.dim)

    def prepare(self, clips: Sequence[Clip]) -> dict[str, Tensor]:
        """``numbers`` ``[B, fields]`` from 0 to 1, and ``mask`` ``[B, fields]`` bool, true where they are known."""
        rows = [[clip.fields.get(name) for name in self.inputs] for clip in clips]
        return {
            "numbers": torch.tensor([[0.0 if x is None else self._place(x) for x in row] for row in rows]),
            "mask": torch.tensor([[x is not None for x in row] for row in rows]),
        }

    def forward(self, prepared: dict[str, Tensor]) -> Condition:
        """Embeddings ``[B, fields, dim]``, zero where masked."""
        numbers, mask = prepared["numbers"], prepared["mask"]
        embedded = [self.features[name](numbers[:, i]) for i, name in enumerate(self.inputs)]
        return Condition(torch.stack(embedded, dim=1) * mask[..., None], mask)

    def _place(self, number: float) -> float:
        """The place of a number in the range, from 0 to 1."""
        limited = min(max(float(number), self.low), self.high)
        if self.log_scale:
            return math.log(limited / self.low) / math.log(self.high / self.low)
        return (limited - self.low) / (self.high - self.low)
