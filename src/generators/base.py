"""The contract of generators: one stage models ``p(target | given)``."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..core.contracts import (
    Condition,
    ConditionSpec,
    Generated,
    Given,
    RepresentationSpec,
    StageBatch,
)
from ..core.part import Part
from ..core.schema import build, plain
from ..errors import PartitaError
from ..layers.guidance import Term as Term
from ..layers.guidance import classifier_free as classifier_free


@dataclass(frozen=True)
class ConditionDropout:
    """How often a stage does without what it is given in training, which guidance needs. Drawn for each sample.

    Args:
        together: Probability that a sample loses all its conditions.
        alone: By name, probability that a sample loses that one condition.

    Raises:
        ValueError: A number is no probability.
    """

    together: float = 0.0
    alone: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, value in {"together": self.together, **self.alone}.items():
            if not 0 <= value <= 1:
                raise ValueError(f"{name} is a probability, in [0, 1], not {value}")


NO_DROPOUT = ConditionDropout()
DEFAULT_DROPOUT = ConditionDropout(together=0.1)
"""What most stages lose in training: enough for guidance."""


class Generator(Part):
    """One stage. Its first two arguments are facts that the system supplies; the rest is the recipe's.

    Subclasses build their layers from :attr:`target` and :attr:`given`, and implement :meth:`loss` and
    :meth:`generate`. What they are made of can be a slot: an argument annotated with the base class of a component.

    Args:
        target: The representation it generates.
        given: By name, what it is given and how each enters.
        condition_dropout: How often it does without what it is given in training.

    Attributes:
        discrete: Whether it models codes (true) or latents (false).
        fusions: The ways something given can enter; :meth:`default_fusion` chooses where a recipe does not. Those of a
            component with :attr:`fusions` of its own are the ones that both have.
        joint: Conditioners that learn together with this stage, by name; the system puts them here.
        sampling: A dataclass of how it draws where :meth:`generate` is not told.
    """

    discrete: ClassVar[bool]
    fusions: ClassVar[tuple[str, ...]]
    sampling: Any
    training_input = "stage"
    training_only = ("joint.",)

    def __init__(
        self,
        target: RepresentationSpec,
        given: dict[str, Given],
        *,
        condition_dropout: ConditionDropout = NO_DROPOUT,
    ) -> None:
        super().__init__()
        self.target = target
        self.given = dict(given)
        self.condition_dropout = condition_dropout
        self.joint = nn.ModuleDict()
        for name, condition in self.given.items():
            if condition.fusion not in self.fusions:
                raise ValueError(
                    f"{name} cannot enter by {condition.fusion!r} here: choose from {', '.join(self.fusions)}"
                )
        for name in condition_dropout.alone:
            if name not in self.given:
                raise ValueError(
                    f"condition_dropout names {name!r}, which is not given ({', '.join(self.given) or 'nothing is'})"
                )

    def use(self, component: Any) -> None:
        """See that a component can take what the stage is given in the way that it is given.

        Args:
            component: A component with ``fusions`` of its own, such as a backbone.

        Raises:
            ValueError: It cannot.
        """
        for name, condition in self.given.items():
            if condition.fusion not in component.fusions:
                known = ", ".join(fusion for fusion in self.fusions if fusion in component.fusions)
                raise ValueError(
                    f"{name} cannot enter by {condition.fusion!r} with the {component.family} "
                    f"{component.registered_name}: choose from {known}"
                )

    @classmethod
    def default_fusion(cls, spec: ConditionSpec) -> str:
        """How something given enters where a recipe does not say: here, always the first way there is."""
        return cls.fusions[0]

    @abstractmethod
    def loss(self, target: Tensor, mask: Tensor, conditions: dict[str, Condition]) -> dict[str, Tensor]:
        """Named losses; the one called ``loss`` is minimized.

        Args:
            target: Codes ``[B, K, S]`` or latents ``[B, D, S]``.
            mask: ``[B, S]`` bool, false on padding.
            conditions: Of every given name, after dropout.
        """

    @abstractmethod
    def generate(
        self,
        conditions: dict[str, tuple[Condition, Condition]],
        frames: int,
        *,
        seeds: Sequence[int],
        prefix: Tensor | None = None,
        guidance: Sequence[Term] | None = None,
        sampling: Any = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Generated:
        """Codes ``[B, K, frames]`` or latents ``[B, D, frames]``, one sample per seed, and how long each sample is.

        The same seed gives the same sample whatever the batch around it. A stage with :attr:`side_outputs` takes one
        more argument, ``outputs``: the names of those that are wanted.

        Args:
            conditions: Per given name the pair (condition, null), of batch ``len(seeds)``.
            frames: Length including the prefix; the most of a stage that ends by itself.
            seeds: One per sample.
            prefix: A representation ``[B, K or D, P]`` with ``P < frames`` that the result starts with.
            guidance: Terms; ``None`` for the stage's own.
            sampling: How to draw; ``None`` for :attr:`sampling`.
            progress: Called with (steps done, steps in all).
        """

    @property
    def side_outputs(self) -> dict[str, ConditionSpec]:
        """What a later stage can be given of this one besides what it generates, by name.

        Each has a position for every frame of the target.
        """
        return {}

    def compute_outputs(self, target: Tensor, mask: Tensor, conditions: dict[str, Condition]) -> dict[str, Condition]:
        """The :attr:`side_outputs` of a target that is there already, the same as if it had been generated.

        Later stages are trained on them: this stage runs, frozen, on the codes of the clips.

        Args:
            target: Codes ``[B, K, S]`` or latents ``[B, D, S]``.
            mask: ``[B, S]`` bool, false on padding.
            conditions: By given name.
        """
        return {}

    def check_request(
        self, conditions: Mapping[str, tuple[Condition, Condition]], frames: int, batch: int, prefix: Tensor | None
    ) -> None:
        """See that what :meth:`generate` is called with fits together.

        Raises:
            ValueError: It does not.
        """
        if conditions.keys() != self.given.keys():
            raise ValueError(f"conditions for {sorted(conditions)}, but the stage is given {sorted(self.given)}")
        for name, pair in conditions.items():
            if any(len(condition.mask) != batch for condition in pair):
                raise ValueError(f"{name} holds {len(pair[0].mask)} samples for {batch} seeds: give one for each")
        if prefix is not None:
            width = self.target.num_codebooks or self.target.dim
            if prefix.shape[:2] != (batch, width):
                raise ValueError(f"the prefix is {list(prefix.shape)}, not [{batch}, {width}, frames]")
            if prefix.shape[2] >= frames:
                raise ValueError(f"the prefix has {prefix.shape[2]} of {frames} frames: nothing is left to generate")

    def changed_sampling(self, changes: Mapping[str, Any]) -> Any:
        """:attr:`sampling` with some values changed.

        Raises:
            PartitaError: It has no such value, or refuses one.
        """
        try:
            return build(type(self.sampling), plain(self.sampling) | dict(changes))
        except ValueError as error:
            raise PartitaError(str(error).removeprefix(": ")) from None

    def resolve(self, batch: StageBatch) -> dict[str, tuple[Condition, Condition]]:
        """The pairs (condition, null) of a batch, running the conditioners that learn with this stage."""
        pairs = {}
        for name in self.given:
            fusion = batch.given[name]
            if isinstance(fusion, tuple):
                pairs[name] = fusion
            else:
                conditioner = self.joint[name]
                condition = conditioner(fusion)
                pairs[name] = (condition, conditioner.null(condition))  # type: ignore[operator]
        return pairs

    def drop(self, pairs: dict[str, tuple[Condition, Condition]]) -> dict[str, Condition]:
        """Null conditions at random, per sample: each alone, and all of them together."""
        kept = {}
        keep_all: Tensor | None = None
        for name, (condition, null) in pairs.items():
            uniform = torch.rand(2, condition.mask.shape[0], device=condition.mask.device)
            if keep_all is None:
                keep_all = uniform[0] >= self.condition_dropout.together
            keep = keep_all & (uniform[1] >= self.condition_dropout.alone.get(name, 0.0))
            kept[name] = condition.where(keep, null)
        return kept

    def training_step(self, batch: StageBatch, batch_idx: int) -> Tensor:
        """One step of training."""
        losses = self.loss(batch.target, batch.mask, self.drop(self.resolve(batch)))
        self._log("train", {name: value.detach() for name, value in losses.items()}, len(batch.target))
        return losses["loss"]

    def validation_step(self, batch: StageBatch, batch_idx: int) -> None:
        """The losses under all conditions; what is random about them is the same every time."""
        conditions = {name: condition for name, (condition, _) in self.resolve(batch).items()}
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(batch_idx * self.trainer.world_size + self.trainer.global_rank)  # dealt in turn
            losses = self.loss(batch.target, batch.mask, conditions)
        self._log("val", losses, len(batch.target))

    def _log(self, split: str, losses: dict[str, Tensor], batch_size: int) -> None:
        for name, value in losses.items():
            self.log(f"{split}/{name}", value, prog_bar=name == "loss", batch_size=batch_size)

    def configure_optimizers(self) -> Any:
        """Optimizer and schedule of the fit options, over everything that learns here."""
        optimizer = self.fit_options.make_optimizer(p for p in self.parameters() if p.requires_grad)
        scheduler = self.fit_options.make_scheduler(optimizer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
