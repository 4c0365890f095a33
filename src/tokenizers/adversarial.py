"""Adversarial training: the one loop for codecs and all other parts that generate audio."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from ..core.part import Part
from ..layers.codec_losses import (
    DISCRIMINATOR,
    GENERATOR,
    AdversarialKind,
    Balancer,
    MultiScaleSpectralLoss,
    SpectralDistance,
    feature_matching,
)
from .discriminators.base import Discriminator


@dataclass(frozen=True)
class Losses:
    """Weights of the losses.

    The defaults are SoundStream's (2107.03312 §III-E), which gives none for the commitment; EnCodec's is 1.

    Args:
        spectral: Weight of the spectral distance.
        waveform: Weight of the mean absolute difference of samples.
        adversarial: Weight of the adversarial loss; 0 uses no discriminator.
        adversarial_kind: ``hinge``, the mean over discriminators, as in SoundStream and EnCodec; ``hinge-linear``, the
            same without a bound for the part's own loss, as in audiocraft; or ``least-squares``, the sum over
            discriminators, as in DAC.
        feature_matching: Weight of the difference between the discriminator's features.
        bottleneck: Weight of the bottleneck's losses, such as a quantizer's commitment or a divergence.
        relative_features: Whether features are compared relative to their magnitude, as EnCodec does.
        summed_features: Whether the difference is the sum over layers and discriminators instead of their mean, as DAC
            has it.
        balanced: Whether weights are shares of the gradient rather than factors (EnCodec's balancer); the losses of
            the bottleneck are always factors.
    """

    spectral: float = 1.0
    waveform: float = 0.0
    adversarial: float = 1.0
    adversarial_kind: AdversarialKind = "hinge"
    feature_matching: float = 100.0
    bottleneck: float = 1.0
    relative_features: bool = False
    summed_features: bool = False
    balanced: bool = False

    def __post_init__(self) -> None:
        if self.adversarial_kind not in GENERATOR:
            raise ValueError(
                f"adversarial_kind must be hinge, hinge-linear or least-squares, not {self.adversarial_kind!r}"
            )
        weights = {name: value for name, value in vars(self).items() if name != "adversarial_kind"}
        negative = [name for name, weight in weights.items() if weight < 0]
        if negative:
            raise ValueError(f"weights must not be negative: {', '.join(negative)}")
        if self.spectral == self.waveform == 0:
            raise ValueError("spectral or waveform must be positive: without either nothing is reconstructed")


class Reconstruction(NamedTuple):
    """The input and output of a training step.

    Args:
        target: Recordings ``[B, C, T]``.
        estimate: What the part reconstructs, of the same shape, with a gradient.
        losses: Other losses by name, such as those of a bottleneck; ``losses.bottleneck`` weighs their sum.
    """

    target: Tensor
    estimate: Tensor
    losses: dict[str, Tensor]


class AdversarialPart(Part):
    """Base of parts that learn to generate audio that a discriminator cannot tell from recordings.

    Subclasses implement :meth:`reconstruct`: a codec encodes and decodes, a vocoder turns features into audio.

    A step updates the part and, once ``adversarial_start`` steps have passed, the discriminator, each with the mean
    gradient of as many batches as ``fit.accumulate`` says. Only the part's updates count in the trainer's
    ``global_step``. With several processes an ``L.Trainer`` of your own needs the strategy
    ``ddp_find_unused_parameters_true``, as neither update touches all parameters.

    Args:
        sample_rate: Sample rate of the generated audio, in Hz.
        channels: Channels of the generated audio.
        losses: Weights of the losses.
        spectral: The spectral distance.
        discriminator: The adversary, not built yet. ``None`` trains without one.
        adversarial_start: Step at which the discriminator starts to contribute.

    Raises:
        ValueError: The adversarial loss has a weight, but there is no discriminator.
    """

    training_only = ("discriminator.", "balancer.", "step")
    step: Tensor

    def __init__(
        self,
        *,
        sample_rate: int,
        channels: int,
        losses: Losses,
        spectral: SpectralDistance,
        discriminator: Discriminator | None,
        adversarial_start: int,
    ) -> None:
        super().__init__()
        if losses.adversarial and discriminator is None:
            raise ValueError(
                f"losses.adversarial is {losses.adversarial:g}, but there is no discriminator: name one, or set "
                "losses.adversarial to 0"
            )
        self.automatic_optimization = False
        self.losses, self.adversarial_start = losses, adversarial_start
        self.spectral_loss = MultiScaleSpectralLoss(spectral, sample_rate)
        self.discriminator = discriminator if losses.adversarial else None
        if self.discriminator is not None:
            self.discriminator.build(sample_rate, channels)
        weighed = ("spectral", "waveform", "adversarial", "feature_matching")
        self.weights = {name: getattr(losses, name) for name in weighed if getattr(losses, name)}
        self.balancer = Balancer(self.weights) if losses.balanced else None
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    def doubt(self) -> str | None:
        """A warning that the discriminator has no effect if the training ends before it starts."""
        steps = self.fit_options.steps
        if self.discriminator is None or steps > self.adversarial_start:
            return None
        return (
            f"the discriminator has no effect, as it starts only after adversarial_start ({self.adversarial_start:,}) "
            f"steps: raise fit.steps ({steps:,}), or lower adversarial_start"
        )

    @abstractmethod
    def reconstruct(self, batch: dict[str, Tensor]) -> Reconstruction:
        """The part's reconstruction of a batch in training, with its target."""

    def train_only(self, patterns: Sequence[str] | None) -> None:
        """Train only the parameters that match the patterns, and always the discriminator, which starts at random.

        Raises:
            ValueError: A pattern matches no parameter, or all of them only match the discriminator.
        """
        super().train_only(patterns)
        if self.discriminator is not None:
            self.discriminator.requires_grad_(False)
            if not any(parameter.requires_grad for parameter in self.parameters()):
                raise ValueError(
                    "a discriminator learns from a codec in training: name parameters of the codec as well"
                )
            self.discriminator.requires_grad_(True)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Learn from a batch. At the last batch of a step, update the weights."""
        accumulate = self.fit_options.accumulate
        ends_step = (batch_idx + 1) % accumulate == 0
        optimizers, schedulers = _as_list(self.optimizers()), _as_list(self.lr_schedulers())
        judge = self.discriminator if self.discriminator is not None and self.step >= self.adversarial_start else None
        target, estimate, others = self.reconstruct(batch)
        # Neither update changes the other's weights, so one judgment of the recording serves both.
        real = judge(target) if judge else []
        with optimizers[0].toggle_model(sync_grad=ends_step):
            losses = {"spectral": self.spectral_loss(estimate, target), "waveform": (estimate - target).abs().mean()}
            if judge:
                fake = judge(estimate)
                losses["adversarial"] = GENERATOR[self.losses.adversarial_kind](fake)
                losses["feature_matching"] = feature_matching(
                    real, fake, relative=self.losses.relative_features, summed=self.losses.summed_features
                )
            total = self._weighted(losses, estimate)
            if others:
                total = total + self.losses.bottleneck * torch.stack(list(others.values())).sum()
            self.manual_backward(total / accumulate)
        if judge:
            with optimizers[1].toggle_model(sync_grad=ends_step):
                losses["discriminator"] = DISCRIMINATOR[self.losses.adversarial_kind](real, judge(estimate.detach()))
                self.manual_backward(losses["discriminator"] / accumulate)
        if not ends_step:
            return
        self._update(optimizers[: 2 if judge else 1])
        for optimizer, scheduler in zip(optimizers[: 2 if judge else 1], schedulers, strict=False):
            optimizer.zero_grad()
            scheduler.step()
        self.step += 1
        self.log("train/loss", total.detach(), prog_bar=True)
        values = {f"train/{name}": value.detach() for name, value in (others | losses).items()}
        self.log_dict(values, sync_dist=True)

    def configure_optimizers(self) -> tuple[list[torch.optim.Optimizer], list[LambdaLR]]:
        """One optimizer for the part and one for the discriminator, on the same schedule."""
        adversary = [] if self.discriminator is None else list(self.discriminator.parameters())
        others = {id(p) for p in adversary}
        own = self.fit_options.make_optimizer(
            self.fit_options.groups((n, p) for n, p in self.named_parameters() if id(p) not in others)
        )
        optimizers, schedulers = [own], [self.fit_options.make_scheduler(own)]
        if adversary:
            optimizer = self.fit_options.make_optimizer(adversary)
            optimizers.append(optimizer)
            start, factor = self.adversarial_start, self.fit_options.lr_factor
            schedulers.append(LambdaLR(optimizer, lambda step: factor(start + step)))
        return optimizers, schedulers

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        """Clip the gradients, which have already been unscaled in half precision."""
        self.clip_gradients(optimizer, gradient_clip_val=self.fit_options.gradient_clip, gradient_clip_algorithm="norm")

    def _weighted(self, losses: dict[str, Tensor], estimate: Tensor) -> Tensor:
        if self.balancer is not None:
            # This is a sum over examples, but processes and batches of a step are averaged.
            return self.balancer(losses, estimate) * self.trainer.world_size * self.fit_options.accumulate
        return torch.stack([weight * losses[name] for name, weight in self.weights.items() if name in losses]).sum()

    def _update(self, optimizers: list[Any]) -> None:
        """One step of each optimizer. The trainer counts only the first."""
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        scale = scaler.get_scale() if scaler else 1.0
        optimizers[0].step()
        for optimizer in optimizers[1:]:
            if scaler and (changed := scaler.get_scale() / scale) != 1:  # unknown to the other optimizers
                for parameter in (p for group in optimizer.param_groups for p in group["params"] if p.grad is not None):
                    parameter.grad *= changed
            self.trainer.strategy.optimizer_step(optimizer.optimizer, lambda: None)


def _as_list(one_or_more: Any) -> list[Any]:
    return one_or_more if isinstance(one_or_more, list) else [one_or_more]
