"""Processes that turn data into noise, and the schedulers of diffusers that reverse them, for each objective.

A network can predict one of three targets, from a noisy ``x`` and the noise level:

=========  ==============================================  ===================  =====================================
objective  noisy                                           target               source
=========  ==============================================  ===================  =====================================
flow       ``(1 − σ) · clean + σ · noise``                 ``noise − clean``    arXiv 2209.03003, 2210.02747
v          ``√ᾱ · clean + √(1 − ᾱ) · noise``               ``√ᾱ noise −``       arXiv 2202.00512
                                                           ``√(1 − ᾱ) clean``
epsilon    the same                                        ``noise``            arXiv 2006.11239
=========  ==============================================  ===================  =====================================

The noise level that a network sees is in [0, 1], from no noise to pure noise: ``σ`` of a flow, and a thousandth of the
discrete time step of the others. It is the same function of the noise in training and in sampling, whatever the
scheduler.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy
import torch
from torch import Tensor

from ..core.processes import per_example

Objective = Literal["flow", "v", "epsilon"]
NoiseSchedule = Literal["squaredcos_cap_v2", "linear", "scaled_linear"]
NoiseLevels = Literal["uniform", "logit_normal"]

SCHEDULERS = {
    "flow": ("euler", "heun", "dpm", "unipc"),
    "v": ("ddim", "ddpm", "euler", "heun", "dpm", "unipc"),
    "epsilon": ("ddim", "ddpm", "euler", "heun", "dpm", "unipc"),
}
"""Names of the available schedulers, by objective."""

BETAS = {"squaredcos_cap_v2": (1e-4, 0.02), "linear": (1e-4, 0.02), "scaled_linear": (0.0015, 0.0195)}
"""First and last beta: DDPM's (arXiv 2006.11239), AudioLDM's (arXiv 2301.12503); the cosine schedule uses neither."""

LOWEST_LOG_SNR = -5.1
"""Half the logarithm of the signal-to-noise ratio at which schedules end, as in DPM-Solver's implementation.

The linear schedule ends there by itself. The last few steps of the cosine schedule (arXiv 2102.09672) have almost no
signal: an error in the prediction of noise is multiplied by up to 20,000, and a second-order solver, whose first step
would cover most of the range, diverges.
"""


@dataclass(frozen=True)
class DiffusionSampling:
    """Sampling options of a diffusion stage.

    Args:
        scheduler: ``euler``, ``heun`` (of second order: it evaluates the network twice per step), ``dpm``
            (DPM-Solver++, arXiv 2211.01095) or ``unipc`` (arXiv 2302.04867); for the objectives v and epsilon also
            ``ddim`` (arXiv 2010.02502) and ``ddpm`` (arXiv 2006.11239), which adds noise at every step.
        steps: Number of steps from noise to the result.
        guidance: Scale of classifier-free guidance; 1 disables it.
    """

    scheduler: str = "euler"
    steps: int = 50
    guidance: float = 3.0

    def __post_init__(self) -> None:
        names = sorted({name for names in SCHEDULERS.values() for name in names})
        if self.scheduler not in names:
            raise ValueError(f"scheduler must be one of {', '.join(names)}, not {self.scheduler!r}")
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, not {self.steps}")


class Noised(NamedTuple):
    """The input and target of a network in training.

    Attributes:
        noisy: Noisy data ``[B, D, S]``.
        noise_level: Noise levels ``[B]`` in [0, 1].
        target: Target of the prediction ``[B, D, S]``.
    """

    noisy: Tensor
    noise_level: Tensor
    target: Tensor


class NoiseProcess:
    """The process from data to noise, for training and sampling.

    Args:
        objective: What the network predicts.
        noise: Noise schedule of the objectives v and epsilon, with at most a thousand steps; see
            :data:`LOWEST_LOG_SNR`.
        noise_levels: Distribution of the noise levels of a flow in training: ``uniform``, or ``logit_normal`` (arXiv
            2403.03206 §3.1), which favors medium levels.

    Raises:
        ValueError: A name is unknown, or ``noise_levels`` is set for an objective other than flow.
    """

    def __init__(
        self,
        objective: Objective = "flow",
        noise: NoiseSchedule = "squaredcos_cap_v2",
        noise_levels: NoiseLevels = "uniform",
    ) -> None:
        for what, value, known in (
            ("objective", objective, SCHEDULERS),
            ("noise", noise, BETAS),
            ("noise_levels", noise_levels, ("uniform", "logit_normal")),
        ):
            if value not in known:
                raise ValueError(f"{what} must be one of {', '.join(known)}, not {value!r}")
        if noise_levels != "uniform" and objective != "flow":
            raise ValueError(
                f"noise_levels: {noise_levels} is for the objective flow; {objective} draws time steps uniformly"
            )
        self.objective = objective
        self.noise = noise
        self.noise_levels = noise_levels
        self.schedulers = SCHEDULERS[objective]

    def check(self, sampling: DiffusionSampling) -> None:
        """Check that this process has the scheduler and enough steps.

        Raises:
            ValueError: It does not.
        """
        if sampling.scheduler not in self.schedulers:
            choices = ", ".join(self.schedulers)
            raise ValueError(f"no scheduler {sampling.scheduler!r} for the objective {self.objective}: use {choices}")
        # a number that is surely small enough needs no schedule, and thus no import of diffusers
        if self.objective != "flow" and sampling.steps > 900 and sampling.steps > len(self.alphas):
            raise ValueError(f"the noise schedule has {len(self.alphas)} steps: take no more, not {sampling.steps}")

    @cached_property
    def betas(self) -> Tensor:
        """Betas ``[N]`` float32 of the schedule up to :data:`LOWEST_LOG_SNR`."""
        from diffusers import DDPMScheduler

        start, end = BETAS[self.noise]
        with torch.device("cpu"):
            whole: Any = DDPMScheduler(beta_schedule=self.noise, beta_start=start, beta_end=end)
        kept: Tensor = whole.alphas_cumprod >= 1 / (1 + math.exp(-2 * LOWEST_LOG_SNR))
        betas: Tensor = whole.betas
        return betas[kept]

    @cached_property
    def alphas(self) -> Tensor:
        """ᾱ ``[N]`` float32, the share of the data in the variance by time step."""
        return (1 - self.betas).cumprod(0)

    def noised(self, clean: Tensor) -> Noised:
        """Add noise of a random level to every sample of ``clean`` ``[B, D, S]``, whose deviation should be about one.

        The levels of a batch are spread evenly over the range, from a random start, which reduces the variance of the
        loss; each level alone has the right distribution (arXiv 2107.00630, appendix I.1).
        """
        noise = per_example(
            # the drawn noise depends on the memory layout
            lambda n: torch.randn_like(clean.new_empty_strided((n, *clean.shape[1:]), clean.stride())),
            len(clean),
            clean.device,
        )
        uniform = per_example(lambda n: _spread(n, clean.device), len(clean), clean.device)
        if self.objective == "flow":
            noise_level = uniform
            if self.noise_levels == "logit_normal":
                noise_level = torch.special.ndtri(uniform.clamp(1e-6, 1 - 1e-6)).sigmoid()
            sigma = noise_level[:, None, None]
            return Noised((1 - sigma) * clean + sigma * noise, noise_level, noise - clean)
        alphas = self.alphas.to(clean.device)
        step = (uniform * len(alphas)).long().clamp(max=len(alphas) - 1)
        signal, sigma = alphas[step].sqrt()[:, None, None], (1 - alphas[step]).sqrt()[:, None, None]
        target = noise if self.objective == "epsilon" else signal * noise - sigma * clean
        return Noised(signal * clean + sigma * noise, step / 1000, target)

    def sampler(self, sampling: DiffusionSampling) -> Sampler:
        """A new sampler.

        Raises:
            ValueError: The scheduler does not exist, or has fewer steps; see :meth:`check`.
        """
        self.check(sampling)
        with torch.device("cpu"):
            return self._flow(sampling) if self.objective == "flow" else self._discrete(sampling)

    def _flow(self, sampling: DiffusionSampling) -> Sampler:
        import diffusers

        options: dict[str, Any] = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
        scheduler: Any
        if sampling.scheduler == "euler":
            scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
            # evenly spaced down to zero; the default sigmas end with a step of a thousandth
            scheduler.set_timesteps(sigmas=numpy.linspace(1, 1 / sampling.steps, sampling.steps))
        else:
            if sampling.scheduler == "heun":
                scheduler = diffusers.FlowMatchHeunDiscreteScheduler()
            elif sampling.scheduler == "dpm":
                scheduler = diffusers.DPMSolverMultistepScheduler(**options)
            else:
                scheduler = diffusers.UniPCMultistepScheduler(**options)
            scheduler.set_timesteps(sampling.steps)
        # some schedulers round their time steps, but none rounds its sigmas
        sigmas = scheduler.sigmas[:-1].clone()
        return Sampler(scheduler, sigmas, 1 - sigmas, sigmas)

    def _discrete(self, sampling: DiffusionSampling) -> Sampler:
        import diffusers

        # "trailing" (arXiv 2305.08891): evenly spaced from the noisiest step. The schedulers' own computation rounds
        # wrongly for about one in ten numbers of steps.
        total, steps = len(self.alphas), sampling.steps
        timesteps = torch.tensor([round(total - total * i / steps) - 1 for i in range(steps)])
        name = sampling.scheduler
        options: dict[str, Any] = {
            "num_train_timesteps": total,
            "trained_betas": self.betas.numpy(),
            "prediction_type": "v_prediction" if self.objective == "v" else "epsilon",
            "timestep_spacing": "trailing",
        }
        alphas = self.alphas[timesteps]
        sigmas = ((1 - alphas) / alphas).sqrt()
        scheduler: Any
        if name == "unipc":
            scheduler = diffusers.UniPCMultistepScheduler(**options)
            scheduler.set_timesteps(steps)
            scheduler.timesteps, scheduler.sigmas = timesteps, torch.cat([sigmas, sigmas.new_zeros(1)])
        else:
            if name == "ddpm":
                scheduler = diffusers.DDPMScheduler(**options, clip_sample=False)
            elif name == "ddim":
                # The solver of first order is DDIM (arXiv 2211.01095 §4). DDIMScheduler takes each step as long as the
                # total divided by the number of steps, rounded down, and so misses the next step, or the end.
                scheduler = diffusers.DPMSolverMultistepScheduler(**options, solver_order=1)
            elif name == "dpm":
                scheduler = diffusers.DPMSolverMultistepScheduler(**options)
            elif name == "euler":
                scheduler = diffusers.EulerDiscreteScheduler(**options)
            else:
                scheduler = diffusers.HeunDiscreteScheduler(**options)
            scheduler.set_timesteps(timesteps=timesteps.tolist())
        timesteps = scheduler.timesteps.long()  # Heun repeats each time step but the first
        signal, noise = self.alphas[timesteps].sqrt(), (1 - self.alphas[timesteps]).sqrt()
        if name in ("euler", "heun"):  # their state is divided by the signal: the data plus growing noise
            signal, noise = torch.ones_like(signal), noise / signal
        return Sampler(scheduler, timesteps / 1000, signal, noise, stochastic=name == "ddpm")


class Sampler:
    """One pass from noise to data.

    Args:
        scheduler: A scheduler of diffusers, with its time steps set.
        noise_levels: ``[N]``, the level a network sees at each of the scheduler's steps.
        signal: ``[N]``, the factor of the data in the scheduler's state before each step.
        noise: ``[N]``, the factor of the noise in that state.
        stochastic: Whether the scheduler adds noise.
    """

    def __init__(
        self, scheduler: Any, noise_levels: Tensor, signal: Tensor, noise: Tensor, *, stochastic: bool = False
    ) -> None:
        self.scheduler = scheduler
        self.noise_levels = noise_levels
        self.signal = signal
        self.noise = noise
        self.stochastic = stochastic
        if hasattr(scheduler, "set_begin_index"):  # instead of searching rounded time steps
            scheduler.set_begin_index(0)

    def run(
        self,
        predict: Callable[[Tensor, Tensor], Tensor],
        noise: Tensor,
        generators: Sequence[torch.Generator],
        *,
        known: Tensor | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Tensor:
        """Run all steps, and return data ``[B, D, S]``.

        Args:
            predict: The network's prediction ``[B, D, S]``, from noisy data and their noise level (a scalar).
            noise: Standard normal noise ``[B, D, S]``.
            generators: Random number generators on the CPU, one per sample, for schedulers that add noise.
            known: Data ``[B, D, P]`` that the result starts with; before each step, it is inserted with that step's
                noise.
            progress: Called with (steps done, total steps).
        """
        options = {"generator": list(generators)} if self.stochastic else {}
        scale = getattr(self.scheduler, "scale_model_input", lambda state, _: state)
        given = 0 if known is None else known.shape[2]
        state = noise * self.noise[0]
        total = len(self.noise_levels)
        for index, timestep in enumerate(self.scheduler.timesteps):
            if known is not None:
                placed = self.signal[index] * known + self.noise[index] * noise[:, :, :given]
                state = torch.cat([placed, state[:, :, given:]], dim=2)
            prediction = predict(scale(state, timestep), self.noise_levels[index].to(state.device))
            state = self.scheduler.step(prediction, timestep, state, return_dict=False, **options)[0]
            if progress is not None:
                progress(index + 1, total)
        return state if known is None else torch.cat([known, state[:, :, given:]], dim=2)


def _spread(number: int, device: torch.device) -> Tensor:
    """Numbers ``[number]`` in [0, 1), spread evenly from a random start."""
    start = torch.rand((), device=device)
    return (start + torch.arange(number, device=device) / number) % 1


def seeded_noise(generators: Sequence[torch.Generator], shape: tuple[int, ...]) -> Tensor:
    """Standard normal noise ``[B, *shape]`` on the CPU, each sample from its own generator."""
    return torch.stack([torch.randn(shape, generator=generator, device="cpu") for generator in generators])
