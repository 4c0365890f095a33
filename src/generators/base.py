"""The contract of generators: one stage models ``p(target | given)``."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
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
from ..core.optimizers import hidden_matrices
from ..core.part import OUTLINED, Part
from ..core.processes import per_example
from ..core.schema import build, plain
from ..errors import PartitaError
from ..layers.guidance import Term as Term
from ..layers.guidance import classifier_free as classifier_free
from .network import StageNetwork


@dataclass(frozen=True)
class ConditionDropout:
    """How often a stage loses conditions in training, which guidance needs. Conditions are dropped for each sample.

    Args:
        together: Probability that a sample loses all its conditions.
        alone: Probability that a sample loses a single condition, by its name.

    Raises:
        ValueError: A number is not a probability.
    """

    together: float = 0.0
    alone: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, value in {"together": self.together, **self.alone}.items():
            if not 0 <= value <= 1:
                raise ValueError(f"{name} must be a probability in [0, 1], not {value}")


NO_DROPOUT = ConditionDropout()
DEFAULT_DROPOUT = ConditionDropout(together=0.1)
"""Default dropout of conditions, which is enough for guidance."""


@dataclass(frozen=True)
class Delivery:
    """Delivery of frames while a stage generates them.

    Args:
        receive: Function that gets all frames up to the newest complete one, and their lengths: less than the number of
            frames for samples that have ended. It is not called for the last frames, which the stage returns.
        every: Number of new frames per call.
    """

    receive: Callable[[Generated], None]
    every: int


class Generator(Part):
    """One stage. The system supplies its first two arguments; the recipe sets the others.

    Subclasses build their layers from :attr:`target` and :attr:`given`, and implement :meth:`loss` and
    :meth:`generate`. An argument annotated with the base class of a component makes a part of the stage exchangeable.

    Args:
        target: Spec of the representation that the stage generates.
        given: The conditions of the stage by name, each with its spec and fusion.
        condition_dropout: How often the stage loses conditions in training.

    Attributes:
        discrete: Whether the stage models codes (true) or latents (false).
        stepwise: Whether the stage generates place by place, so that a step has one row per sample.
        fusions: The ways in which a condition can enter; :meth:`default_fusion` chooses one if the recipe does not. If
            a component has :attr:`fusions` of its own, only those that both have are possible.
        delivers: Whether :meth:`generate` takes another argument, ``delivery``: a :class:`Delivery` or ``None``.
        plain_prefix: Whether conditions that are prepended have the length of a whole window, also for shorter clips.
        joint: Conditioners that learn together with this stage, by name; the system sets them.
        outer_layers: Prefixes of the layers that read inputs or compute outputs, which Muon leaves to AdamW.
        sampling: A dataclass of default sampling options for :meth:`generate`.
    """

    discrete: ClassVar[bool]
    stepwise: ClassVar[bool] = False
    fusions: ClassVar[tuple[str, ...]]
    delivers: ClassVar[bool] = False
    plain_prefix: bool = False
    sampling: Any
    training_input = "stage"
    training_only = ("joint.",)
    outer_layers: ClassVar[tuple[str, ...]] = ("joint.", "conditioning.")

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
            for fusion in condition.fusions:
                if fusion not in self.fusions:
                    known = ", ".join(self.fusions)
                    raise ValueError(f"{name} cannot enter by {fusion!r} here: choose from {known}")
        for name in condition_dropout.alone:
            if name not in self.given:
                raise ValueError(
                    f"condition_dropout names {name!r}, which is not given ({', '.join(self.given) or 'nothing is'})"
                )

    def use(self, component: Any) -> None:
        """Check that a component supports the fusions of the stage's conditions.

        Args:
            component: A component with ``fusions`` of its own, such as a backbone.

        Raises:
            ValueError: It does not support one.
        """
        for name, condition in self.given.items():
            for fusion in condition.fusions:
                if fusion not in component.fusions:
                    known = ", ".join(fusion for fusion in self.fusions if fusion in component.fusions)
                    raise ValueError(
                        f"{name} cannot enter by {fusion!r} with the {component.family} "
                        f"{component.registered_name}: choose from {known}"
                    )

    @property
    def networks(self) -> Sequence[StageNetwork]:
        """The networks of the stage."""
        return [network for network in self.children() if isinstance(network, StageNetwork)]

    @property
    def repeated_blocks(self) -> list[nn.Module]:
        """The blocks of the networks of the stage."""
        return [block for network in self.networks for block in network.repeated_blocks]

    def compile_steps(self) -> None:
        """Compile what generation repeats in all networks, once, in a copy of the stage that only generates."""
        for network in self.networks:
            network.compile_steps()

    @property
    def recomputes(self) -> bool:
        """Whether one of the networks does."""
        return any(network.checkpointing for network in self.networks)

    @property
    def hidden_matrices(self) -> list[nn.Parameter]:
        """The weights of linear layers that are no :attr:`outer_layers`."""
        return hidden_matrices(self, self.outer_layers)

    def outline_step(self, examples: int, seconds: float) -> Callable[[], Tensor]:
        """The loss of a batch under all conditions; those without a frame rate have :data:`OUTLINED` tokens."""
        target = self.target
        frames = target.frames(seconds)

        def loss() -> Tensor:
            shape = (examples, target.num_codebooks or target.dim or 1, frames)
            values = torch.zeros(shape, dtype=torch.long if target.discrete else torch.float32)
            conditions = {}
            for name, given in self.given.items():
                spec = given.spec
                outlined = OUTLINED // (spec.num_codebooks or 1)
                length = max(1, outlined if spec.frame_rate is None else round(spec.frame_rate * seconds))
                mask = torch.ones(examples, length, dtype=torch.bool)
                if spec.dim is None:
                    codes = torch.zeros(examples, spec.num_codebooks or 1, length, dtype=torch.long)
                    conditions[name] = Condition(codes, mask)
                else:
                    conditions[name] = Condition(torch.zeros(examples, length, spec.dim), mask)
            return self.loss(values, torch.ones(examples, frames, dtype=torch.bool), conditions)["loss"]

        return loss

    @classmethod
    def default_fusion(cls, spec: ConditionSpec) -> str:
        """The fusion of a condition for which the recipe sets none: by default, the first of :attr:`fusions`."""
        return cls.fusions[0]

    @abstractmethod
    def loss(self, target: Tensor, mask: Tensor, conditions: dict[str, Condition]) -> dict[str, Tensor]:
        """Named losses; the one called ``loss`` is minimized.

        Args:
            target: Codes ``[B, K, S]`` or latents ``[B, D, S]``.
            mask: ``[B, S]`` bool, false on padding.
            conditions: The conditions of all given names, after dropout.
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
        """Codes ``[B, K, frames]`` or latents ``[B, D, frames]``, one sample per seed, with the length of each.

        The same seed gives the same sample in any batch. A stage with :attr:`side_outputs` takes another argument,
        ``outputs``: the names of the requested side outputs.

        Args:
            conditions: The pair (condition, null) of each given name, with batch size ``len(seeds)``.
            frames: Length including the prefix; the maximum length for a stage that ends by itself.
            seeds: One seed per sample.
            prefix: A representation ``[B, K or D, P]`` with ``P < frames`` that the result starts with.
            guidance: Guidance terms; ``None`` takes the stage's own.
            sampling: Sampling options; ``None`` takes :attr:`sampling`.
            progress: Called with (steps done, total steps).
        """

    @property
    def side_outputs(self) -> dict[str, ConditionSpec]:
        """Specs of the outputs, besides the generated representation, that a later stage can be given, by name.

        Each has a position for every frame of the target.
        """
        return {}

    def compute_outputs(self, target: Tensor, mask: Tensor, conditions: dict[str, Condition]) -> dict[str, Condition]:
        """The :attr:`side_outputs` of an existing target, the same as if it had been generated.

        Later stages are trained on them: this stage runs, frozen, on the codes of the clips.

        Args:
            target: Codes ``[B, K, S]`` or latents ``[B, D, S]``.
            mask: ``[B, S]`` bool, false on padding.
            conditions: Conditions by given name.
        """
        return {}

    def check_request(
        self, conditions: Mapping[str, tuple[Condition, Condition]], frames: int, batch: int, prefix: Tensor | None
    ) -> None:
        """Check that the arguments of :meth:`generate` fit together.

        Raises:
            ValueError: They do not fit.
        """
        if conditions.keys() != self.given.keys():
            raise ValueError(f"conditions for {sorted(conditions)}, but the stage is given {sorted(self.given)}")
        for name, pair in conditions.items():
            if any(len(condition.mask) != batch for condition in pair):
                raise ValueError(f"{name} has {len(pair[0].mask)} samples for {batch} seeds: give one for each")
        if prefix is not None:
            width = self.target.num_codebooks or self.target.dim
            if prefix.shape[:2] != (batch, width):
                raise ValueError(f"the prefix is {list(prefix.shape)}, not [{batch}, {width}, frames]")
            if prefix.shape[2] >= frames:
                raise ValueError(f"the prefix has {prefix.shape[2]} of {frames} frames: nothing is left to generate")

    def changed_sampling(self, changes: Mapping[str, Any]) -> Any:
        """:attr:`sampling` with changed values.

        Raises:
            PartitaError: An option does not exist, or a value is invalid.
        """
        try:
            return self.checked_sampling(build(type(self.sampling), plain(self.sampling) | dict(changes)))
        except ValueError as error:
            raise PartitaError(str(error).removeprefix(": ")) from None

    def checked_sampling(self, sampling: Any) -> Any:
        """Sampling options, if all conditions that they name are given.

        Raises:
            ValueError: One is not given.
        """
        if unknown := [name for name in getattr(sampling, "inner", ()) if name not in self.given]:
            raise ValueError(
                f"inner names {', '.join(unknown)}, but the stage is given {', '.join(self.given) or 'nothing'}"
            )
        return sampling

    def resolve(self, batch: StageBatch) -> dict[str, tuple[Condition, Condition]]:
        """The pairs (condition, null) of a batch. Conditioners that learn with this stage run here."""
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
        """Replace conditions of random samples by the null condition: each on its own, and all together."""
        kept = {}
        keep_all: Tensor | None = None
        for name, (condition, null) in pairs.items():
            device = condition.mask.device
            uniform = per_example(partial(_two, device), len(condition.mask), device, 1)
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
        """Log the losses under all conditions, with the same random numbers in every validation.

        Batches count by their frames that are no padding, so that the mean hardly depends on their size.
        """
        conditions = {name: condition for name, (condition, _) in self.resolve(batch).items()}
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(batch_idx * self.trainer.world_size + self.trainer.global_rank)  # a seed per batch of all
            losses = self.loss(batch.target, batch.mask, conditions)
        self._log("val", losses, max(1, int(batch.mask.sum())))

    def _log(self, split: str, losses: dict[str, Tensor], weight: int) -> None:
        for name, value in losses.items():
            self.log(f"{split}/{name}", value, prog_bar=name == "loss", batch_size=weight)


def _two(device: torch.device, examples: int) -> Tensor:
    """Two uniform random numbers for each example, ``[2, examples]``."""
    return torch.rand(2, examples, device=device)
