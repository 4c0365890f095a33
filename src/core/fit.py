"""How a part is trained: the ``fit:`` block of a preset, and the optimizers and schedules it names."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch.optim.lr_scheduler import LambdaLR

from .optimizers import MuonWithAdamW, Parameters, make_adam
from .precision import Precision


@dataclass
class Fit:
    """Training options of one part.

    A step is one update of the weights, as Lightning's ``max_steps`` and ``global_step`` count it, whatever the value
    of :attr:`accumulate`. All options and parts that count steps count these: schedules, validations, checkpoints, the
    start of an adversary, and the steps that progress and curves show.

    Args:
        steps: Training steps (updates of the weights).
        batch_size: Examples per batch and process.
        accumulate: Batches whose gradients are averaged for one step. A step sees ``batch_size · accumulate``
            examples per process, with the memory of ``batch_size``.
        crop: Seconds of audio per example; stages use their window instead.
        overlay: Fraction of the training examples in which a clip is laid over another and their captions are joined,
            as in AudioGen (arXiv 2209.15352); for sounds, and for music from separate stems.
        lr: Peak learning rate.
        optimizer: ``adamw``, ``adam``, or ``muon``, which updates the hidden matrices of a stage by Muon and all other
            parameters by AdamW.
        betas: Coefficients of the optimizer's running averages of the gradient and its square.
        eps: Term that the optimizer adds to the denominator for numerical stability.
        weight_decay: Weight decay of the optimizer.
        schedule: Schedule of the learning rate after the warm-up. ``exponential`` multiplies it by the same factor at
            each step; ``inverse-sqrt`` divides it by the square root of the step, and needs a warm-up.
        warmup_steps: Number of steps in which the learning rate rises linearly from zero.
        final_lr: Fraction of the peak at which a cosine, linear or exponential schedule ends; the latter needs one.
        trainable: Names of the parameters that are trained, with the wildcards ``*`` and ``?``:
            ``[output_heads.*, "*.blocks.23.*"]``. The others keep their initial values. ``None`` trains all.
        rates: Factors of the learning rate for some parameters, by names with the same wildcards, of which the first
            that matches counts: ``{"*.blocks.0.*": 0.1}``. Discriminators have the learning rate itself.
        gradient_clip: Largest gradient norm. ``None`` does not clip.
        ema: Decay of the averaged weights that are validated, saved and used. ``None`` does not average.
        ema_every: Steps between two updates of the average.
        precision: Precision of the layers, as in ``L.Trainer``. On a CPU where half precision would be slow, single
            is used unless ``trainer`` sets a precision. Weights, spectra and codebooks are always in single
            precision.
        num_workers: Processes that read data.
        validate_every: Steps between validations. ``None`` validates once, at the end.
        validation_examples: Clips per validation, of all processes together; at least one for each process.
        checkpoint_every: Maximum number of steps between the checkpoints from which a killed run resumes.
        checkpoint_seconds: Maximum time between them in seconds, if a single process trains.
        trainer: Other options of ``L.Trainer``.
    """

    steps: int = 1000
    batch_size: int = 16
    accumulate: int = 1
    crop: float = 1.0
    overlay: float = 0.0
    lr: float = 3e-4
    optimizer: Literal["adamw", "adam", "muon"] = "adamw"
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    schedule: Literal["constant", "cosine", "linear", "exponential", "inverse-sqrt"] = "cosine"
    warmup_steps: int = 0
    final_lr: float = 0.0
    trainable: list[str] | None = None
    rates: dict[str, float] = field(default_factory=dict)
    gradient_clip: float | None = 1.0
    ema: float | None = None
    ema_every: int = 1
    precision: Precision = "32-true"
    num_workers: int = 0
    validate_every: int | None = None
    validation_examples: int = 32
    checkpoint_every: int = 500
    checkpoint_seconds: float = 60.0
    trainer: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "accumulate", "ema_every", "validation_examples", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("crop", "lr"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive, not {getattr(self, name)}")
        for name in ("eps", "weight_decay", "warmup_steps", "num_workers", "checkpoint_seconds"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative, but is {getattr(self, name)}")
        for name in ("betas", "final_lr", "ema", "overlay"):
            value = getattr(self, name)
            values = value if name == "betas" else [value or 0.0]
            if not all(0 <= value <= 1 for value in values) or (name == "betas" and 1 in values):
                raise ValueError(f"{name} must be between 0 and 1, not {getattr(self, name)}")
        if self.schedule == "exponential" and not self.final_lr:
            raise ValueError("final_lr must be positive with schedule exponential, which never reaches 0")
        if self.schedule == "inverse-sqrt" and not self.warmup_steps:
            raise ValueError("warmup_steps must be positive with schedule inverse-sqrt, which falls from there on")
        if self.ema == 1:
            raise ValueError("ema must be below 1: with 1, the average would stay at the initial weights")
        if self.trainable is not None and not self.trainable:
            raise ValueError("trainable is empty: name parameters, or use null to train all")
        for name, rate in self.rates.items():
            if not 0 < rate < math.inf:
                raise ValueError(f"rates must be positive, not {rate} for {name}; fit.trainable freezes parameters")
        for name in ("gradient_clip", "validate_every"):
            if (value := getattr(self, name)) is not None and not value > 0:
                raise ValueError(f"{name} must be positive, or null for none, not {value}")

    @property
    def batches(self) -> int:
        """Number of batches that a process trains on."""
        return self.steps * self.accumulate

    @property
    def examples(self) -> int:
        """Examples that a process sees in one step."""
        return self.batch_size * self.accumulate

    def make_optimizer(
        self, parameters: Parameters, hidden: Collection[torch.nn.Parameter] = ()
    ) -> torch.optim.Optimizer:
        """The optimizer over ``parameters``.

        Args:
            parameters: The parameters to train, or groups of them, such as :meth:`groups`.
            hidden: The matrices between input and output layers, which ``muon`` updates by Muon.
        """
        options = {"lr": self.lr, "betas": tuple(self.betas), "eps": self.eps, "weight_decay": self.weight_decay}
        if self.optimizer == "muon":
            return MuonWithAdamW(parameters, hidden, **options)
        kind = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}[self.optimizer]
        return make_adam(kind, parameters, **options)

    def groups(self, named: Iterable[tuple[str, torch.nn.Parameter]]) -> list[dict[str, Any]]:
        """Groups of parameters for an optimizer, each with its learning rate, by :attr:`rates`.

        Args:
            named: The parameters to train, with their names.
        """
        found: dict[float, list[torch.nn.Parameter]] = {}
        for name, parameter in named:
            pattern = next((pattern for pattern in self.rates if fnmatch.fnmatchcase(name, pattern)), None)
            found.setdefault(1.0 if pattern is None else self.rates[pattern], []).append(parameter)
        return [{"params": members, "lr": self.lr * rate} for rate, members in sorted(found.items())]

    def make_scheduler(self, optimizer: torch.optim.Optimizer) -> LambdaLR:
        """The learning-rate schedule with its warm-up, to be advanced once per step."""
        return LambdaLR(optimizer, self.lr_factor)

    def lr_factor(self, step: int) -> float:
        """Fraction of the peak learning rate at ``step``.

        >>> [Fit(steps=10, warmup_steps=2, schedule="linear").lr_factor(s) for s in (0, 1, 2, 6, 10)]
        [0.5, 1.0, 1.0, 0.5, 0.0]
        >>> [Fit(steps=10, schedule="exponential", final_lr=0.25).lr_factor(s) for s in (0, 5, 10)]
        [1.0, 0.5, 0.25]
        >>> [Fit(warmup_steps=4, schedule="inverse-sqrt").lr_factor(s) for s in (0, 3, 15, 63)]
        [0.25, 1.0, 0.5, 0.25]
        """
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        if self.schedule == "inverse-sqrt":
            return math.sqrt(self.warmup_steps / (step + 1))
        progress = min(1.0, (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps))
        if self.schedule == "exponential":
            return self.final_lr**progress
        falling = {"constant": 1.0, "linear": 1 - progress, "cosine": (1 + math.cos(math.pi * progress)) / 2}
        return falling[self.schedule] * (1 - self.final_lr) + self.final_lr if self.schedule != "constant" else 1.0
