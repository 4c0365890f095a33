"""Spectra in bands of equal width in octaves, where a transposition is a shift."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from .mel import MelSpectrum


def octave_filterbank(bins: int, bands: int, sample_rate: int, f_min: float, per_octave: int) -> Tensor:
    """Triangular bands that are evenly spaced in octaves, each with weights that sum to one.

    A band is at least as wide as the distance between two frequencies of the spectrum, so that low bands overlap where
    the spectrum cannot tell them apart.

    Args:
        bins: Frequencies of the spectrum, from zero to half the sample rate.
        bands: Number of bands.
        sample_rate: Sample rate in Hz.
        f_min: Center of the lowest band, in Hz.
        per_octave: Bands per octave.

    Returns:
        Weights ``[bins, bands]`` float32.
    """
    with torch.device("cpu"):
        frequencies = torch.arange(bins, dtype=torch.float64) * sample_rate / (2 * (bins - 1))
        numbers = torch.arange(bands, dtype=torch.float64)
        places = per_octave * torch.log2(frequencies.clamp(min=1e-3) / f_min)
        step = sample_rate / (2 * (bins - 1))
        width = (per_octave * torch.log2(1 + step / (f_min * 2 ** (numbers / per_octave)))).clamp(min=1.5)
        weights = (1 - ((places[:, None] - numbers) / width).abs()).clamp(min=0)
        return (weights / weights.sum(0).clamp(min=1e-12)).float()


def shifted_bands(spectrum: Tensor, shifts: Tensor, silence: float) -> Tensor:
    """Shift spectra upwards by fractions of bands, as a change of the tuning does, with linear interpolation.

    Args:
        spectrum: Spectra ``[N, frames, bands]``.
        shifts: Number of bands for each, ``[N]``.
        silence: Value of the bands that are shifted in from beyond the edges.
    """
    bands = spectrum.shape[2]
    places = torch.arange(bands, device=spectrum.device) - shifts[:, None]  # where each band comes from, [N, bands]
    below = places.floor()
    fraction = (places - below)[:, None]
    padded = F.pad(spectrum, (1, 1), value=silence)
    low, high = (
        padded.gather(2, (side + 1).clamp(0, bands + 1).long()[:, None].expand_as(spectrum))
        for side in (below, below + 1)
    )
    return low + fraction * (high - low)


class OctaveSpectrum(MelSpectrum):
    """Magnitudes in bands of equal width in octaves, over a Hann window of unit energy.

    Args:
        sample_rate: Sample rate in Hz.
        window: Samples per frame.
        hop: Samples between frames.
        bands: Number of bands.
        f_min: Center of the lowest band, in Hz.
        per_octave: Bands per octave.

    Raises:
        ValueError: The highest band is not below half the sample rate.
    """

    def __init__(self, sample_rate: int, window: int, *, hop: int, bands: int, f_min: float, per_octave: int) -> None:
        octaves = (bands - 1) / per_octave
        if math.log2(f_min) + octaves >= math.log2(sample_rate / 2):
            raise ValueError(
                f"{bands} bands from {f_min:g} Hz reach {octaves:.6g} octaves higher, but half the sample rate is "
                f"{sample_rate / 2:g} Hz: take fewer bands"
            )
        super().__init__(sample_rate, window, hop=hop, bands=bands, f_min=f_min)
        self.filterbank = octave_filterbank(window // 2 + 1, bands, sample_rate, f_min, per_octave)
