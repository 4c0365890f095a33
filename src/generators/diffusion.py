"""A stage that generates latents from noise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..core.contracts import Condition, ConditionSpec, Generated, Given, RepresentationSpec
from ..core.processes import mean_of_all, per_example
from ..core.registry import register
from ..errors import PartitaError
from ..layers.conditioning import Conditioning, Context, Interpolation
from ..layers.guidance import Term, checked_terms, classifier_free, combine, conditions_of
from ..layers.noise_process import DiffusionSampling, NoiseLevels, NoiseProcess, NoiseSchedule, Objective, seeded_noise
from ..layers.sampling import evaluating
from ..layers.standardize import Standardize
from ..layers.transformer_blocks import scaled_normal_
from .base import DEFAULT_DROPOUT, ConditionDropout, Generator
from .denoisers.base import Denoiser, DenoiserContext, DenoiserSetting
from .denoisers.dit import DiT

DEFAULT_SAMPLING = DiffusionSampling()


@register("generator", "diffusion")
class Diffusion(Generator):
    """A network that turns noise into latents step by step, by flow matching or diffusion.

    Conditions enter by cross-attention (``cross``), added to the input frame by frame (``concat``), or as a scale and
    shift of every layer's input (``modulate``). Latents are standardized per channel by statistics of the first
    training batches.

    In some training examples, the beginning of a clip is shown without noise, so that the stage learns to continue a
    prefix.

    Args:
        target: Spec of the representation that the stage generates; must be continuous.
        given: The conditions of the stage by name, each with its spec and fusion.
        denoiser: The network; ``None`` takes a diffusion transformer with its defaults.
        interpolation: Interpolation of aligned conditions to the target's frame rate: ``linear`` or ``nearest``.
        objective: What the network predicts: ``flow``, the velocity from data to noise, or ``v`` or ``epsilon`` of
            diffusion.
        noise: Noise schedule for ``v`` and ``epsilon``: ``squaredcos_cap_v2``, ``linear`` or ``scaled_linear``.
        noise_levels: Distribution of noise levels in training with ``flow``: ``uniform`` or ``logit_normal``.
        continuation: Probability that the beginning of a clip, of random length, is shown without noise in training.
        sampling: Default sampling options.
        checkpointing: Whether to recompute the denoiser's layers in the backward pass, which saves memory.
        condition_dropout: How often the stage loses conditions in training.

    Raises:
        ValueError: The target is not continuous, the objective has no such scheduler, or a value is out of range.
    """

    discrete: ClassVar[bool] = False
    outer_layers: ClassVar[tuple[str, ...]] = (
        *Generator.outer_layers,
        "input.",
        *(f"denoiser.layers.{name}." for name in ("level", "modulation", "last_modulation", "output")),
    )
    fusions: ClassVar[tuple[str, ...]] = ("cross", "concat", "modulate")

    def __init__(
        self,
        target: RepresentationSpec,
        given: dict[str, Given],
        *,
        denoiser: Denoiser | None = None,
        interpolation: Interpolation = "linear",
        objective: Objective = "flow",
        noise: NoiseSchedule = "squaredcos_cap_v2",
        noise_levels: NoiseLevels = "uniform",
        continuation: float = 0.3,
        sampling: DiffusionSampling = DEFAULT_SAMPLING,
        checkpointing: bool = False,
        condition_dropout: ConditionDropout = DEFAULT_DROPOUT,
    ) -> None:
        super().__init__(target, given, condition_dropout=condition_dropout)
        if target.dim is None:
            raise ValueError(
                f"a diffusion stage generates latents, but its target has none ({target}): "
                "use a continuous tokenizer, or a stage for codes"
            )
        if not 0 <= continuation <= 1:
            raise ValueError(f"continuation must be a probability, not {continuation}")
        self.dim = target.dim
        self.continuation = continuation
        self.noise_process = NoiseProcess(objective, noise, noise_levels)
        self.noise_process.check(sampling)
        self.sampling = sampling

        denoiser = denoiser or DiT()
        self.use(denoiser)
        width = denoiser.width
        self.standardize = Standardize(target.dim)
        self.conditioning = Conditioning(self.given, width, target.frame_rate, interpolation)
        self.input = nn.Linear(target.dim if continuation == 0 else 2 * target.dim + 1, width)
        cross = any("cross" in g.fusions for g in self.given.values())
        denoiser.build(DenoiserSetting(outputs=target.dim, cross=cross, checkpointing=checkpointing))
        self.denoiser = denoiser
        scaled_normal_(self.input.weight, target.dim)

    @classmethod
    def default_fusion(cls, spec: ConditionSpec) -> str:
        """``concat`` for conditions that are aligned in time, ``cross`` for all others."""
        return "cross" if spec.frame_rate is None else "concat"

    def predict(
        self,
        noisy: Tensor,
        noise_level: Tensor,
        context: Context,
        *,
        clean: Tensor | None = None,
        known: Tensor | None = None,
        mask: Tensor | None = None,
        inputs: DenoiserContext | None = None,
    ) -> Tensor:
        """The prediction of the objective for standardized latents, ``[B, D, S]`` float32.

        Args:
            noisy: Noisy latents ``[B, D, S]``.
            noise_level: Noise levels ``[B]``, in [0, 1].
            context: Context of this stage's ``conditioning``.
            clean: Clean latents ``[B, D, S]``, shown where ``known``; unused in a stage not trained to continue.
            known: ``[B, S]`` bool, true on known frames; ``None`` if there are none.
            mask: ``[B, S]`` bool, false on padding; ``None`` means no padding.
            inputs: Context of the denoiser, prepared for several steps; ``None`` takes that of ``context``.
        """
        features = noisy
        if self.continuation:
            if clean is None or known is None:
                shown = torch.cat([torch.zeros_like(noisy), torch.zeros_like(noisy[:, :1])], dim=1)
            else:
                shown = torch.cat([clean * known[:, None], known[:, None].to(clean.dtype)], dim=1)
            features = torch.cat([noisy, shown], dim=1)
        x = self.input(features.mT.to(self.input.weight.dtype))
        if context.added is not None:
            x = x + context.added
        if inputs is None:
            inputs = DenoiserContext(mask, context.cross, context.cross_mask, context.pooled)
        return self.denoiser(x, noise_level, inputs).mT.float()

    def loss(self, target: Tensor, mask: Tensor, conditions: dict[str, Condition]) -> dict[str, Tensor]:
        """Mean squared error of standardized predictions over the frames that are neither padding nor known."""
        target = target.float()
        if self.training:
            self.standardize.observe(target, mask)
        clean = self.standardize(target)
        known = self._beginnings(mask)
        noisy, noise_level, wanted = self.noise_process.noised(clean)
        context = self.conditioning(conditions, target.shape[2])
        prediction = self.predict(noisy, noise_level, context, clean=clean, known=known, mask=mask)
        counts = mask & ~known
        errors = (prediction - wanted).square().mean(1) * counts
        number = mean_of_all(counts.sum()) if self.training else counts.sum()
        return {"loss": errors.sum() / number.clamp(min=1)}

    def _beginnings(self, mask: Tensor) -> Tensor:
        """``[B, S]`` bool, true on the random beginnings that are shown. At least one frame remains to learn from."""
        if not self.training or not self.continuation:
            return torch.zeros_like(mask)
        drawn = per_example(lambda n: torch.rand(2, n, device=mask.device), len(mask), mask.device, 1)
        shown, length = drawn
        frames = torch.where(shown < self.continuation, (length * mask.sum(1)).long(), 0)
        return mask & (torch.arange(mask.shape[1], device=mask.device) < frames[:, None])

    @torch.no_grad()
    def generate(
        self,
        conditions: dict[str, tuple[Condition, Condition]],
        frames: int,
        *,
        seeds: Sequence[int],
        prefix: Tensor | None = None,
        guidance: Sequence[Term] | None = None,
        sampling: DiffusionSampling | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Generated:
        """Latents ``[B, D, frames]`` float32, one sample per seed; the same seed gives the same sample in any batch.

        Args:
            conditions: The pair (condition, null) of each given name, with batch size ``len(seeds)``.
            frames: Length including the prefix.
            seeds: One seed per sample.
            prefix: Latents ``[B, D, P]`` with ``P < frames`` that the result starts with.
            guidance: Guidance terms; ``None`` takes classifier-free guidance at the scale of ``sampling``.
            sampling: Sampling options; ``None`` takes the stage's own.
            progress: Called with (steps done, total steps).

        Raises:
            ValueError: Batches, names or lengths do not fit together.
            PartitaError: The objective has no such scheduler, or fewer steps.
        """
        sampling = sampling or self.sampling
        terms = checked_terms(classifier_free(sampling.guidance) if guidance is None else guidance, list(self.given))
        self.check_request(conditions, frames, len(seeds), prefix)
        try:
            sampler = self.noise_process.sampler(sampling)
        except ValueError as error:
            raise PartitaError(str(error)) from None
        device = self.input.weight.device
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        noise = seeded_noise(generators, (self.dim, frames)).to(device)
        clean = known = start = None
        if prefix is not None:
            prefix = prefix.to(device, torch.float32)
            start = self.standardize(prefix)
            clean = nn.functional.pad(start, (0, frames - prefix.shape[2])).repeat(len(terms), 1, 1)
            known = (torch.arange(frames, device=device) < prefix.shape[2]).expand(len(clean), -1)
        with evaluating(self), torch.autocast(device.type, enabled=False):
            context = self.conditioning(conditions_of(terms, conditions), frames)
            inputs = DenoiserContext(None, context.cross, context.cross_mask, context.pooled)
            inputs = self.denoiser.prepare(inputs, frames)

            def predict(noisy: Tensor, noise_level: Tensor) -> Tensor:
                copies = noisy.repeat(len(terms), 1, 1)
                level = noise_level.expand(len(copies))
                predictions = self.predict(copies, level, context, clean=clean, known=known, inputs=inputs)
                return combine(predictions, terms)

            latents = self.standardize.inverse(sampler.run(predict, noise, generators, known=start, progress=progress))
        if prefix is not None:
            latents = torch.cat([prefix, latents[:, :, prefix.shape[2] :]], dim=2)
        return Generated(latents)
