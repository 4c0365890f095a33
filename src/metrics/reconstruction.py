"""Distances between clips and their reconstructions, one value for each clip."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ..layers.codec_losses import MultiScaleSpectralLoss, SpectralDistance

MEL = SpectralDistance(
    windows=(32, 64, 128, 256, 512, 1024, 2048),
    bands=320,
    magnitude=0.0,
    log_power=1,
    scaled=False,
    reduction="sum-of-means",
    decimal=True,
    spectrum="librosa",
)
"""DAC's mel distance (arXiv 2306.06546): 5 to 320 bands over windows of 32 to 2048 samples, decimal logarithms."""

STFT_WINDOWS = (2048, 512)
"""Windows of DAC's STFT distance, in samples; the hop is a quarter of each."""

WORST_SI_SDR, SILENCE = -60.0, 1e-4
"""Lowest SI-SDR in dB, and the root mean square, relative to full scale, below which a clip is silent (-80 dB)."""


def mel_distance(estimate: Tensor, target: Tensor, sample_rate: int) -> Tensor:
    """The mel distance of DAC (:data:`MEL`) of each clip.

    Args:
        estimate: Reconstructions ``[B, C, T]``.
        target: Clips of the same shape.
        sample_rate: Sample rate in Hz.

    Returns:
        Distances ``[B]``: the mean difference of decimal logarithms over bands and frames, summed over seven windows.
    """
    distance = MultiScaleSpectralLoss(MEL, sample_rate)
    estimate, target = (_at_least(audio, max(MEL.windows)) for audio in (estimate, target))
    return torch.stack([distance(one[None], other[None]) for one, other in zip(estimate, target, strict=True)])


def stft_distance(estimate: Tensor, target: Tensor) -> Tensor:
    """The STFT distance of DAC of each clip: the difference of magnitudes and that of logarithms of power.

    Args:
        estimate: Reconstructions ``[B, C, T]``.
        target: Clips of the same shape.

    Returns:
        Distances ``[B]``: ``mean(| |X| − |Y| |) + mean(|log10 |X|² − log10 |Y|²|)`` over frequencies and frames, with
        magnitudes of at least 1e-5 in the logarithms, summed over two windows.
    """
    total = estimate.new_zeros(len(estimate))
    for window in STFT_WINDOWS:
        one, other = (_magnitude(_at_least(audio, window), window) for audio in (estimate, target))
        logarithms = 2 * (one.clamp(min=1e-5).log10() - other.clamp(min=1e-5).log10())
        total = total + (one - other).abs().flatten(1).mean(1) + logarithms.abs().flatten(1).mean(1)
    return total


def si_sdr(estimate: Tensor, target: Tensor) -> Tensor:
    """The scale-invariant signal-to-distortion ratio of each clip in dB, without its mean.

    Values below -60 dB, which say nothing more, count as -60 dB, and so does a silent reconstruction.

    Args:
        estimate: Reconstructions ``[B, C, T]``.
        target: Clips of the same shape.

    Returns:
        Ratios ``[B]``, the mean over channels. NaN where the clip is silent, because there is no such ratio.

    Example:
        >>> clip = torch.sin(torch.arange(800) / 5)[None, None]
        >>> noise = torch.cos(torch.arange(800) / 5)[None, None]
        >>> round(float(si_sdr(3 * (clip + 0.1 * noise), clip)))
        20
    """
    estimate, target = (audio.double() - audio.double().mean(-1, keepdim=True) for audio in (estimate, target))
    powers = [audio.square().mean(-1) for audio in (estimate, target)]
    scaled = target * ((estimate * target).mean(-1) / powers[1].clamp(min=1e-30))[..., None]
    distortion = (scaled - estimate).square().mean(-1).clamp(min=1e-30)
    ratios = 10 * (scaled.square().mean(-1) / distortion).clamp(min=1e-30).log10()
    quiet = [power < SILENCE**2 for power in powers]
    ratios = ratios.clamp(min=WORST_SI_SDR).masked_fill(quiet[0], WORST_SI_SDR).masked_fill(quiet[1], torch.nan)
    return ratios.nanmean(1).float()


def _at_least(audio: Tensor, samples: int) -> Tensor:
    """Audio with silence at its end if it is shorter than a window."""
    return F.pad(audio.float(), (0, max(0, samples - audio.shape[-1])))


def _magnitude(audio: Tensor, window: int) -> Tensor:
    """Magnitudes ``[B, C, bins, frames]`` of audio ``[B, C, T]``."""
    hann = torch.hann_window(window, device=audio.device)
    spectrum = torch.stft(audio.flatten(0, 1), window, window // 4, window=hann, return_complex=True)
    return spectrum.abs().unflatten(0, audio.shape[:2])
