"""Training losses of codecs: spectral distances, adversarial losses, and the balance between them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from ..core.processes import mean_of_all
from .mel import Definition, MelSpectrum, log_magnitude, log_power

Judgment = tuple[Tensor, list[Tensor]]
"""What a discriminator returns: its scores of any shape, and its hidden features."""


@dataclass(frozen=True)
class SpectralDistance:
    """A distance between mel spectra at several window lengths.

    The default is SoundStream's (2107.03312 §III-E), with norms over the bands of a frame, summed over window lengths.
    There is one difference: the paper sums over frames, but this takes their mean, as the paper's adversarial and
    feature losses are means over time. A sum grows with the length of the crop: at one second of 24 kHz, its gradient
    is about 160 times as strong, with the same adversarial weights.

    Args:
        windows: Lengths of the windows in samples; the hop is a quarter of each.
        bands: Mel bands; short windows have fewer, five per 32 samples, so that none is empty, except with the spectra
            of audiocraft.
        f_min: Lower edge of the lowest band, in Hz.
        magnitude: Weight of the absolute difference of magnitudes.
        log: Weight of the distance between logarithms.
        log_power: Order of the norm of a frame's difference of logarithms: 1 for absolute values, 2 for the root of
            squares.
        root: Whether squares are summed under a root. Without it, they are summed themselves (EnCodec's code).
        scaled: Whether the logarithms of a window of ``s`` samples are weighted by ``sqrt(s / 2)``.
        reduction: ``sum`` over bands and window lengths, or their ``mean``, which is hundreds of times smaller, or the
            ``sum-of-means``: the mean over bands, summed over window lengths.
        decimal: Whether logarithms are decimal instead of natural.
        spectrum: Definition of the mel spectra: ``unit`` has a window of unit energy, bands of height one on the HTK
            scale, and silence around the audio. ``librosa`` has that library's defaults: a window of height one, bands
            of area one on Slaney's scale, and reflections of the audio at its ends. ``audiocraft`` is ``unit`` with
            powers instead of magnitudes, logarithms of ``1e-5 + power``, and reflections.
    """

    windows: tuple[int, ...] = (64, 128, 256, 512, 1024, 2048)
    bands: int = 64
    f_min: float = 0.0
    magnitude: float = 1.0
    log: float = 1.0
    log_power: int = 2
    root: bool = True
    scaled: bool = True
    reduction: Literal["sum", "mean", "sum-of-means"] = "sum"
    decimal: bool = False
    spectrum: Definition = "unit"

    def __post_init__(self) -> None:
        if not self.windows or min(self.windows) < 32:
            raise ValueError(f"windows must be one or more lengths of at least 32, not {list(self.windows)}")
        if self.log_power not in (1, 2):
            raise ValueError(f"log_power must be 1 or 2, not {self.log_power}")
        if self.reduction not in ("sum", "mean", "sum-of-means"):
            raise ValueError(f"reduction must be sum, mean or sum-of-means, not {self.reduction!r}")
        if self.spectrum not in (known := get_args(Definition)):
            raise ValueError(f"spectrum must be {', '.join(known[:-1])} or {known[-1]}, not {self.spectrum!r}")


class MultiScaleSpectralLoss(nn.Module):
    """The distance between two signals that a :class:`SpectralDistance` describes.

    Args:
        config: Definition of the distance.
        sample_rate: Sample rate of the audio in Hz.
    """

    def __init__(self, config: SpectralDistance, sample_rate: int) -> None:
        super().__init__()
        self.config = config
        audiocraft = config.spectrum == "audiocraft"
        self.log = log_power if audiocraft else log_magnitude
        self.spectra = nn.ModuleList(
            MelSpectrum(
                sample_rate,
                window,
                bands=config.bands if audiocraft else min(config.bands, window * 5 // 32),
                f_min=config.f_min,
                definition=config.spectrum,
            )
            for window in config.windows
        )

    def forward(self, estimate: Tensor, target: Tensor) -> Tensor:
        """The distance, a scalar, between two signals ``[B, C, T]``."""
        total, mean = estimate.new_zeros(()), self.config.reduction != "sum"
        unit = 1 / math.log(10) if self.config.decimal else 1.0
        for window, spectrum in zip(self.config.windows, self.spectra, strict=True):
            a, b = spectrum(estimate), spectrum(target)
            difference = unit * (self.log(a) - self.log(b))
            if self.config.log_power == 1:
                log_distance = difference.abs().sum(-1)
            else:
                log_distance = difference.square().sum(-1)
                if self.config.root:
                    log_distance = (log_distance + 1e-14).sqrt()  # the root has no gradient at zero
            factor = math.sqrt(window / 2) if self.config.scaled else 1.0
            frames = self.config.magnitude * (a - b).abs().sum(-1) + self.config.log * factor * log_distance
            total = total + (frames / a.shape[-1] if mean else frames).mean()
        return total / len(self.config.windows) if self.config.reduction == "mean" else total


def discriminator_hinge(real: Sequence[Judgment], fake: Sequence[Judgment]) -> Tensor:
    """``mean(max(0, 1 − D(x))) + mean(max(0, 1 + D(x̂)))``, averaged over discriminators."""
    losses = [(1 - r).relu().mean() + (1 + f).relu().mean() for (r, _), (f, _) in zip(real, fake, strict=True)]
    return torch.stack(losses).mean()


def generator_hinge(fake: Sequence[Judgment]) -> Tensor:
    """``mean(max(0, 1 − D(x̂)))``, averaged over discriminators."""
    return torch.stack([(1 - f).relu().mean() for f, _ in fake]).mean()


def generator_hinge_linear(fake: Sequence[Judgment]) -> Tensor:
    """``mean(−D(x̂))``, averaged over discriminators."""
    return torch.stack([-f.mean() for f, _ in fake]).mean()


def discriminator_least_squares(real: Sequence[Judgment], fake: Sequence[Judgment]) -> Tensor:
    """``mean((1 − D(x))²) + mean(D(x̂)²)``, summed over discriminators."""
    losses = [(1 - r).square().mean() + f.square().mean() for (r, _), (f, _) in zip(real, fake, strict=True)]
    return torch.stack(losses).sum()


def generator_least_squares(fake: Sequence[Judgment]) -> Tensor:
    """``mean((1 − D(x̂))²)``, summed over discriminators."""
    return torch.stack([(1 - f).square().mean() for f, _ in fake]).sum()


AdversarialKind = Literal["hinge", "hinge-linear", "least-squares"]
"""Kinds of adversarial losses."""

GENERATOR: dict[AdversarialKind, Callable[[Sequence[Judgment]], Tensor]] = {
    "hinge": generator_hinge,
    "hinge-linear": generator_hinge_linear,
    "least-squares": generator_least_squares,
}
"""The adversarial loss of the part, by kind."""

DISCRIMINATOR: dict[AdversarialKind, Callable[[Sequence[Judgment], Sequence[Judgment]], Tensor]] = {
    "hinge": discriminator_hinge,
    "hinge-linear": discriminator_hinge,
    "least-squares": discriminator_least_squares,
}
"""The loss of the discriminator, by kind."""


def feature_matching(
    real: Sequence[Judgment], fake: Sequence[Judgment], *, relative: bool = False, summed: bool = False
) -> Tensor:
    """Mean absolute difference of hidden features, averaged over layers and discriminators.

    Args:
        real: Judgments of recordings, treated as constants.
        fake: Judgments of reconstructions.
        relative: Divide each layer by the mean magnitude of the recordings' features, as EnCodec does.
        summed: Sum over layers and discriminators instead, as DAC does.
    """
    pairs = [
        (r.detach(), f)
        for (_, real_features), (_, fake_features) in zip(real, fake, strict=True)
        for r, f in zip(real_features, fake_features, strict=True)
    ]
    distances = torch.stack([(r - f).abs().mean() for r, f in pairs])
    if relative:
        distances = distances / mean_of_all(torch.stack([r.abs().mean() for r, _ in pairs])).clamp(min=1e-8)
    return distances.sum() if summed else distances.mean()


class Balancer(nn.Module):
    """Turns the weight of a loss into its share of the gradient, independent of the loss's scale (EnCodec, 2210.13438
    §3.4).

    Processes that train together share the norms, as if one process had seen all examples.

    Args:
        weights: Share of each loss, by name.
        decay: Decay of the moving average of gradient norms over batches.
    """

    norms: Tensor
    total: Tensor

    def __init__(self, weights: dict[str, float], decay: float = 0.999) -> None:
        super().__init__()
        self.weights, self.decay = weights, decay
        self.register_buffer("norms", torch.zeros(len(weights)))
        self.register_buffer("total", torch.zeros(len(weights)))

    def forward(self, losses: dict[str, Tensor], output: Tensor) -> Tensor:
        """A scalar whose gradient with respect to ``output`` is the balanced sum.

        Args:
            losses: Losses by name; each depends on ``output``.
            output: What the decoder returned, first axis the batch.
        """
        combined = torch.zeros_like(output)
        present = [i for i, name in enumerate(self.weights) if name in losses]
        names = list(self.weights)
        whole = sum(self.weights[names[i]] for i in present)
        gradients = [torch.autograd.grad(losses[names[i]], output, retain_graph=True)[0] for i in present]
        norms = mean_of_all(torch.stack([gradient.flatten(1).norm(dim=1).mean() for gradient in gradients]))
        for i, gradient, norm in zip(present, gradients, norms, strict=True):
            self.norms[i] = self.decay * self.norms[i] + norm
            self.total[i] = self.decay * self.total[i] + 1
            combined += self.weights[names[i]] / whole * gradient * self.total[i] / self.norms[i].clamp(min=1e-12)
        return (output * combined).sum()
