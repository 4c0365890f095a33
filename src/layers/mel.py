"""Mel spectra, in the one definition that losses and metrics share."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn


def mel_filterbank(
    bins: int,
    bands: int,
    sample_rate: int,
    f_min: float = 0.0,
    f_max: float | None = None,
    straight_in: Literal["hertz", "mel"] = "hertz",
) -> Tensor:
    """Triangular bands of height one, evenly spaced on the scale ``2595 · log10(1 + f / 700)``.

    torchaudio's are computed in float32, which is off by up to 1e-5, and span half of an odd sample rate rounded down.

    Args:
        bins: Frequencies of the spectrum, from zero to half the sample rate.
        bands: Number of bands.
        sample_rate: Sample rate in Hz.
        f_min: Lower edge of the lowest band, in Hz.
        f_max: Upper edge of the highest band, in Hz. ``None`` takes half the sample rate.
        straight_in: Whether the sides of the triangles are straight in hertz, as in librosa, or on the mel scale,
            as in HTK and Kaldi.

    Returns:
        Weights ``[bins, bands]`` float32.
    """
    with torch.device("cpu"):
        limits = torch.tensor([f_min, f_max or sample_rate / 2], dtype=torch.float64)
        low, high = _mel(limits).tolist()
        edges = torch.linspace(low, high, bands + 2, dtype=torch.float64)
        points = torch.linspace(0, sample_rate / 2, bins, dtype=torch.float64)[:, None]
        if straight_in == "mel":
            points = _mel(points)
        else:
            edges = 700 * (10 ** (edges / 2595) - 1)
        rising = (points - edges[:-2]) / (edges[1:-1] - edges[:-2])
        falling = (edges[2:] - points) / (edges[2:] - edges[1:-1])
        return torch.minimum(rising, falling).clamp(min=0).float()


def _mel(frequency: Tensor) -> Tensor:
    return 2595 * torch.log10(1 + frequency / 700)


class MelSpectrum(nn.Module):
    """Magnitudes in mel bands, over a Hann window of unit energy.

    Args:
        sample_rate: Sample rate in Hz.
        window: Samples per frame.
        hop: Samples between frames; ``None`` is a quarter of the window.
        bands: Mel bands.
        f_min: Lower edge of the lowest band, in Hz.
    """

    window: Tensor
    filterbank: Tensor

    def __init__(self, sample_rate: int, window: int, *, hop: int | None = None, bands: int = 80, f_min: float = 0.0):
        super().__init__()
        self.hop = hop or window // 4
        hann = torch.hann_window(window)
        self.register_buffer("window", hann / hann.square().sum().sqrt(), persistent=False)
        self.register_buffer("filterbank", mel_filterbank(window // 2 + 1, bands, sample_rate, f_min), persistent=False)

    def forward(self, audio: Tensor) -> Tensor:
        """Audio ``[B, C, T]`` to magnitudes ``[B, C, frames, bands]``, in full precision even under autocast."""
        with torch.autocast(audio.device.type, enabled=False):
            spectrum = torch.stft(
                audio.float().flatten(0, 1),
                len(self.window),
                self.hop,
                window=self.window,
                pad_mode="constant",
                return_complex=True,
            )
            return (spectrum.abs().mT @ self.filterbank).unflatten(0, audio.shape[:2])


def log_magnitude(magnitude: Tensor) -> Tensor:
    """Natural logarithm of magnitudes of at least 1e-5: 122 dB below a full-scale sine under a window of 1024."""
    return magnitude.clamp(min=1e-5).log()
