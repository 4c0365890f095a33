"""Mel spectra: the one definition that losses and metrics share."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def mel_filterbank(bins: int, bands: int, sample_rate: int, f_min: float = 0.0, f_max: float | None = None) -> Tensor:
    """Triangular bands of height one, evenly spaced on the scale ``2595 · log10(1 + f / 700)``.

    Args:
        bins: Frequencies of the spectrum, from zero to half the sample rate.
        bands: Number of bands.
        sample_rate: In Hz.
        f_min: Where the lowest band begins, in Hz.
        f_max: Where the highest ends, in Hz; half the sample rate where none is given.

    Returns:
        ``[bins, bands]`` float32.
    """
    with torch.device("cpu"):
        limits = torch.tensor([f_min, f_max or sample_rate / 2], dtype=torch.float64)
        low, high = (2595 * torch.log10(1 + limits / 700)).tolist()
        edges = 700 * (10 ** (torch.linspace(low, high, bands + 2, dtype=torch.float64) / 2595) - 1)
        frequencies = torch.linspace(0, sample_rate / 2, bins, dtype=torch.float64)[:, None]
        rising = (frequencies - edges[:-2]) / (edges[1:-1] - edges[:-2])
        falling = (edges[2:] - frequencies) / (edges[2:] - edges[1:-1])
        return torch.minimum(rising, falling).clamp(min=0).float()


class MelSpectrum(nn.Module):
    """Magnitudes in mel bands, over a Hann window of unit energy.

    Args:
        sample_rate: In Hz.
        window: Samples per frame.
        hop: Samples between frames; a quarter of the window where none is given.
        bands: Mel bands.
        f_min: Where the lowest band begins, in Hz.
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
        """Audio ``[B, C, T]`` to magnitudes ``[B, C, frames, bands]``; full precision whatever autocast says."""
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
    """Natural logarithm, of at least 1e-5: 122 dB below a full-scale sine under a window of 1024."""
    return magnitude.clamp(min=1e-5).log()
