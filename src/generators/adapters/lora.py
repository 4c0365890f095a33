"""Low-rank adapters (LoRA, arXiv 2106.09685; DoRA, arXiv 2402.09353)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from ...core.registry import register
from ..base import Generator
from .base import Adapter, linear_layers

if TYPE_CHECKING:
    from peft import LoraConfig


@register("adapter", "lora")
class LoRA(Adapter):
    """Adds to each layer the product of two small matrices (LoRA, arXiv 2106.09685).

    Args:
        rank: Rank of the change: width between the two matrices.
        alpha: The change is multiplied by ``alpha / rank``.
        dropout: Dropout of the input of the change, in training.
        layers: Names of the linear layers that it changes, with the wildcards ``*`` and ``?``. ``None`` takes those of
            the blocks of the stage's network: attention and feed-forward.

    Raises:
        ValueError: A number is out of range.
    """

    decomposed: ClassVar[bool] = False

    def __init__(
        self, *, rank: int = 8, alpha: float = 16.0, dropout: float = 0.0, layers: tuple[str, ...] | None = None
    ) -> None:
        super().__init__(layers=layers)
        if rank < 1:
            raise ValueError(f"rank must be at least 1, not {rank}")
        if not alpha > 0:
            raise ValueError(f"alpha must be positive, not {alpha}")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), not {dropout}")
        self.rank, self.alpha, self.dropout = rank, alpha, dropout

    def layers_of(self, stage: Generator) -> list[str]:
        """The names of the linear layers of a stage that the adapter changes.

        Raises:
            ValueError: There are none, a pattern matches none, or no change of any of them has such a rank.
        """
        names, linear = super().layers_of(stage), linear_layers(stage)
        most = max(min(linear[name].weight.shape) for name in names)
        if self.rank > most:
            raise ValueError(f"rank {self.rank:,} is more than a change of these layers can have, {most:,}")
        return names

    def peft_config(self, layers: list[str]) -> LoraConfig:
        """The configuration in terms of peft."""
        from peft import LoraConfig

        alpha = int(self.alpha) if float(self.alpha).is_integer() else self.alpha
        return LoraConfig(
            r=self.rank,
            lora_alpha=alpha,  # type: ignore[arg-type]
            lora_dropout=self.dropout,
            use_dora=self.decomposed,
            target_modules=layers,
        )


@register("adapter", "dora")
class DoRA(LoRA):
    """LoRA for the directions of a layer's weights, with their magnitudes learned apart (DoRA, arXiv 2402.09353).

    Args:
        rank: Rank of the change: width between the two matrices.
        alpha: The change of the directions is multiplied by ``alpha / rank``.
        dropout: Dropout of the input of the change, in training.
        layers: Names of the linear layers that it changes, with the wildcards ``*`` and ``?``. ``None`` takes those of
            the blocks of the stage's network: attention and feed-forward.
    """

    decomposed: ClassVar[bool] = True

    def check_weights(self, stage: Generator) -> None:
        """Check that every row of the weights has a direction.

        Raises:
            ValueError: A row is zero.
        """
        linear = linear_layers(stage)
        if empty := [name for name in self.layers_of(stage) if not linear[name].weight.any(1).all()]:
            raise ValueError(
                f"{len(empty)} layers have rows of zeros, which have no direction ({empty[0]}): take lora instead of "
                "dora, or name other layers in adapter.layers"
            )
