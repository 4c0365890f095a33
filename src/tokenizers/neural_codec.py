"""What neural codecs share: an encoder, a residual quantizer, a decoder, and adversarial training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from ..core.contracts import RepresentationSpec
from ..layers.codec_losses import (
    Balancer,
    MultiScaleSpectralLoss,
    SpectralDistance,
    discriminator_hinge,
    feature_matching,
    generator_hinge,
)
from ..layers.convolution import pad_to_multiple
from ..layers.discriminators import Discriminators, DiscriminatorSet
from ..layers.residual_quantizer import Quantizer, ResidualQuantizer
from ..metrics.codec import CodebookUsage, MelDistance
from .base import Tokenizer


@dataclass(frozen=True)
class Losses:
    """Weights of what a codec is trained to minimize.

    The defaults are SoundStream's (2107.03312 §III-E), which gives none for the commitment; EnCodec's is 1.

    Args:
        spectral: Of the spectral distance.
        waveform: Of the mean absolute difference of samples.
        adversarial: Of the discriminators' verdict; at 0 there are no discriminators.
        feature_matching: Of the difference between the discriminators' features.
        commitment: Of the distance of latents to the codebook entries.
        relative_features: Whether features are compared relative to their magnitude, as EnCodec does.
        balanced: Whether weights are shares of the gradient rather than factors (EnCodec's balancer); the commitment
            stays a plain term.
    """

    spectral: float = 1.0
    waveform: float = 0.0
    adversarial: float = 1.0
    feature_matching: float = 100.0
    commitment: float = 1.0
    relative_features: bool = False
    balanced: bool = False

    def __post_init__(self) -> None:
        negative = [name for name, weight in vars(self).items() if weight < 0]
        if negative:
            raise ValueError(f"weights must not be negative: {', '.join(negative)}")
        if self.spectral == self.waveform == 0:
            raise ValueError("spectral or waveform must be positive: without either nothing is reconstructed")


QUANTIZER, LOSSES, SPECTRAL, DISCRIMINATORS = Quantizer(), Losses(), SpectralDistance(), Discriminators()
"""What a codec has where its recipe says nothing."""


class NeuralCodec(Tokenizer):
    """Base of codecs that are trained here. Subclasses build :attr:`encoder` and :attr:`decoder`.

    A step updates the codec and, once ``adversarial_start`` steps have passed, the discriminators, each with the mean
    gradient of as many batches as ``fit.accumulate`` says; codebooks follow every batch. Only the codec's updates count
    in the trainer's ``global_step``. With several processes an ``L.Trainer`` of your own needs the strategy
    ``ddp_find_unused_parameters_true``, as neither update touches all parameters.

    Args:
        sample_rate: Of the audio, in Hz.
        channels: Of the audio.
        hop: Samples per frame.
        dim: Width of the latents.
        num_codebooks: Codebooks in use; all of the quantizer's where none is given.
        quantizer: Codebooks and how they learn.
        losses: Weights of the losses.
        spectral: The spectral distance.
        discriminators: The adversaries.
        adversarial_start: Step at which they enter.

    Attributes:
        encoder: Module from audio ``[B, C, S · hop]`` to latents ``[B, D, S]``.
        decoder: Module from latents ``[B, D, S]`` to audio ``[B, C, S · hop]``.
    """

    training_only = ("discriminators.", "balancer.", "step")
    encoder: nn.Module
    decoder: nn.Module
    step: Tensor

    def __init__(
        self,
        *,
        sample_rate: int,
        channels: int,
        hop: int,
        dim: int,
        num_codebooks: int | None,
        quantizer: Quantizer,
        losses: Losses,
        spectral: SpectralDistance,
        discriminators: Discriminators,
        adversarial_start: int,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.sample_rate, self.channels, self.hop = sample_rate, channels, hop
        self.losses, self.adversarial_start = losses, adversarial_start
        self.latent_dim = dim
        self.quantizer = ResidualQuantizer(quantizer, dim)
        self.num_codebooks = quantizer.num_codebooks
        if num_codebooks is not None:
            self.set_num_codebooks(num_codebooks)
        self.spectral_loss = MultiScaleSpectralLoss(spectral, sample_rate)
        self.discriminators = DiscriminatorSet(discriminators) if losses.adversarial else None
        weighed = ("spectral", "waveform", "adversarial", "feature_matching")
        self.weights = {name: getattr(losses, name) for name in weighed if getattr(losses, name)}
        self.balancer = Balancer(self.weights) if losses.balanced else None
        self.mel_distance = MelDistance(sample_rate)
        self.usage = CodebookUsage(quantizer.num_codebooks, quantizer.cardinality)
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    @property
    def spec(self) -> RepresentationSpec:
        """Codes, at the number of codebooks in use."""
        return RepresentationSpec(
            sample_rate=self.sample_rate,
            channels=self.channels,
            frame_rate=self.sample_rate / self.hop,
            num_codebooks=self.num_codebooks,
            cardinality=self.quantizer.config.cardinality,
        )

    def set_num_codebooks(self, num_codebooks: int) -> None:
        """Use only the first ``num_codebooks`` codebooks from now on; training goes on using all.

        Raises:
            ValueError: There are fewer.
        """
        if not 1 <= num_codebooks <= self.quantizer.config.num_codebooks:
            raise ValueError(f"num_codebooks must be 1 to {self.quantizer.config.num_codebooks}, not {num_codebooks}")
        self.num_codebooks = num_codebooks

    @torch.no_grad()
    def encode(self, audio: Tensor) -> Tensor:
        """Audio ``[B, C, T]`` to codes ``[B, K, ceil(T / hop)]``."""
        return self.quantizer.encode(self.encode_latents(audio), self.num_codebooks)

    def decode(self, representation: Tensor) -> Tensor:
        """Codes ``[B, K, S]``, of the codebooks in use or fewer, to audio ``[B, C, S · hop]``."""
        return self.decode_latents(self.quantizer.decode(representation))

    @torch.no_grad()
    def encode_latents(self, audio: Tensor) -> Tensor:
        """Audio ``[B, C, T]`` to latents ``[B, D, ceil(T / hop)]``."""
        return self.encoder(pad_to_multiple(audio, self.hop))

    def decode_latents(self, latents: Tensor) -> Tensor:
        """Latents ``[B, D, S]`` to audio ``[B, C, S · hop]``."""
        return self.decoder(latents)

    def doubt(self) -> str | None:
        """That the codebooks learn nothing, where the training ends within the quantizer's warm-up."""
        steps, warmup = self.fit_options.steps, self.quantizer.config.warmup_steps
        if steps > warmup:
            return None
        return (
            f"the codebooks stay random, as they learn only after quantizer.warmup_steps ({warmup:,}): raise fit.steps "
            f"({steps:,}), or lower quantizer.warmup_steps"
        )

    def forward(self, audio: Tensor) -> tuple[Tensor, Tensor]:
        """Audio ``[B, C, T]`` to its reconstruction, of the same shape, and the commitment loss.

        In training, latents pass unquantized until the quantizer's warm-up is over.
        """
        latents = self.encoder(pad_to_multiple(audio, self.hop))
        commitment = latents.new_zeros(())
        warming_up = self.training and self.step < self.quantizer.config.warmup_steps and not self.quantizer.started
        if not warming_up:
            latents, _, commitment = self.quantizer(latents)
        return self.decoder(latents)[..., : audio.shape[-1]].float(), commitment

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Learn from ``batch["audio"]`` ``[B, C, T]``, and at the last batch of a step, update the weights."""
        audio, accumulate = batch["audio"], self.fit_options.accumulate
        ends_step = (batch_idx + 1) % accumulate == 0
        optimizers, schedulers = _as_list(self.optimizers()), _as_list(self.lr_schedulers())
        judge = self.discriminators if self.discriminators is not None and self.step >= self.adversarial_start else None
        # Neither update changes the other's weights, so one verdict on the recording serves both.
        real = judge(audio) if judge else []
        with optimizers[0].toggle_model(sync_grad=ends_step):
            estimate, commitment = self(audio)
            losses = {"spectral": self.spectral_loss(estimate, audio), "waveform": (estimate - audio).abs().mean()}
            if judge:
                fake = judge(estimate)
                losses["adversarial"] = generator_hinge(fake)
                losses["feature_matching"] = feature_matching(real, fake, relative=self.losses.relative_features)
            total = self._weighted(losses, estimate) + self.losses.commitment * commitment
            self.manual_backward(total / accumulate)
        if judge:
            with optimizers[1].toggle_model(sync_grad=ends_step):
                losses["discriminator"] = discriminator_hinge(real, judge(estimate.detach()))
                self.manual_backward(losses["discriminator"] / accumulate)
        if not ends_step:
            return
        self._update(optimizers[: 2 if judge else 1])
        for optimizer, scheduler in zip(optimizers[: 2 if judge else 1], schedulers, strict=False):
            optimizer.zero_grad()
            scheduler.step()
        self.step += 1
        self.log("train/loss", total.detach(), prog_bar=True)
        self.log_dict(
            {f"train/{name}": value.detach() for name, value in ({"commitment": commitment} | losses).items()}
        )

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Reconstruct ``batch["audio"]`` ``[B, C, T]`` from its codes."""
        audio = batch["audio"]
        codes = self.encode(audio)
        estimate = self.decode(codes)[..., : audio.shape[-1]].float()
        self.mel_distance.update(estimate, audio)
        self.usage.update(codes)
        self.log("val/mel_distance", self.mel_distance, prog_bar=True, batch_size=len(audio))
        self.log("val/spectral", self.spectral_loss(estimate, audio), batch_size=len(audio))

    def on_validation_epoch_end(self) -> None:
        """Log how the codebooks in use are used."""
        for name, values in self.usage.compute().items():
            self.log_dict(
                {f"val/{name}_{k}": value for k, value in enumerate(values.reshape(-1)[: self.num_codebooks])}
            )
        self.usage.reset()

    def configure_optimizers(self) -> tuple[list[torch.optim.Optimizer], list[LambdaLR]]:
        """One optimizer for the codec and one for the discriminators, on the same schedule."""
        adversary = [] if self.discriminators is None else list(self.discriminators.parameters())
        others = {id(p) for p in adversary}
        codec = self.fit_options.make_optimizer(p for p in self.parameters() if id(p) not in others)
        optimizers, schedulers = [codec], [self.fit_options.make_scheduler(codec)]
        if adversary:
            optimizer = self.fit_options.make_optimizer(adversary)
            optimizers.append(optimizer)
            start, factor = self.adversarial_start, self.fit_options.lr_factor
            schedulers.append(LambdaLR(optimizer, lambda step: factor(start + step)))
        return optimizers, schedulers

    def _weighted(self, losses: dict[str, Tensor], estimate: Tensor) -> Tensor:
        if self.balancer is not None:
            # A sum over examples, where what processes and batches of a step find is averaged.
            return self.balancer(losses, estimate) * self.trainer.world_size * self.fit_options.accumulate
        return torch.stack([weight * losses[name] for name, weight in self.weights.items() if name in losses]).sum()

    def _update(self, optimizers: list[Any]) -> None:
        """One step of each; the trainer counts the first alone."""
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        scale = scaler.get_scale() if scaler else 1.0
        optimizers[0].step()
        for optimizer in optimizers[1:]:
            if scaler and (changed := scaler.get_scale() / scale) != 1:  # after the first, which these do not know of
                for parameter in (p for group in optimizer.param_groups for p in group["params"] if p.grad is not None):
                    parameter.grad *= changed
            self.trainer.strategy.optimizer_step(optimizer.optimizer, lambda: None)

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        """Clip the gradients, which in half precision have been scaled back by now."""
        self.clip_gradients(optimizer, gradient_clip_val=self.fit_options.gradient_clip, gradient_clip_algorithm="norm")


def _as_list(one_or_more: Any) -> list[Any]:
    return one_or_more if isinstance(one_or_more, list) else [one_or_more]
