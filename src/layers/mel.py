"""Mel spectra, in the one definition that losses and metrics share."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Definition = Literal["unit", "librosa", "audiocraft"]
"""Definitions of a mel spectrum."""


def mel_filterbank(
    bins: int,
    bands: int,
    sample_rate: int,
    f_min: float = 0.0,
    f_max: float | None = None,
    straight_in: Literal["hertz", "mel"] = "hertz",
    scale: Literal["htk", "slaney"] = "htk",
) -> Tensor:
    """Triangular bands, evenly spaced on a mel scale.

    torchaudio's are computed in float32, which is off by up to 1e-5, and span half of an odd sample rate rounded down.

    Args:
        bins: Frequencies of the spectrum, from zero to half the sample rate.
        bands: Number of bands.
        sample_rate: Sample rate in Hz.
        f_min: Lower edge of the lowest band, in Hz.
        f_max: Upper edge of the highest band, in Hz. ``None`` takes half the sample rate.
        straight_in: Whether the sides of the triangles are straight in hertz, as in librosa, or on the mel scale,
            as in HTK and Kaldi.
        scale: ``htk`` is ``2595 · log10(1 + f / 700)``, with bands of height one. ``slaney``, the default of librosa,
            is linear up to 1 kHz and logarithmic above, with bands of area one over frequencies in Hz.

    Returns:
        Weights ``[bins, bands]`` float32.
    """
    with torch.device("cpu"):
        limits = torch.tensor([f_min, f_max or sample_rate / 2], dtype=torch.float64)
        to_mel, to_hertz = _SCALES[scale]
        low, high = to_mel(limits).tolist()
        edges = torch.linspace(low, high, bands + 2, dtype=torch.float64)
        points = torch.linspace(0, sample_rate / 2, bins, dtype=torch.float64)[:, None]
        if straight_in == "mel":
            points = to_mel(points)
        else:
            edges = to_hertz(edges)
        rising = (points - edges[:-2]) / (edges[1:-1] - edges[:-2])
        falling = (edges[2:] - points) / (edges[2:] - edges[1:-1])
        bank = torch.minimum(rising, falling).clamp(min=0)
        return (bank * 2 / (edges[2:] - edges[:-2]) if scale == "slaney" else bank).float()


def _htk(frequency: Tensor) -> Tensor:
    return 2595 * torch.log10(1 + frequency / 700)


def _from_htk(mel: Tensor) -> Tensor:
    return 700 * (10 ** (mel / 2595) - 1)


_STEP = math.log(6.4) / 27
"""Logarithm of the ratio of frequencies above 1 kHz that are one mel of Slaney's scale apart."""


def _slaney(frequency: Tensor) -> Tensor:
    return torch.where(frequency < 1000, frequency * 3 / 200, 15 + (frequency / 1000).clamp(min=1).log() / _STEP)


def _from_slaney(mel: Tensor) -> Tensor:
    return torch.where(mel < 15, mel * 200 / 3, 1000 * ((mel - 15) * _STEP).exp())


_SCALES = {"htk": (_htk, _from_htk), "slaney": (_slaney, _from_slaney)}


class MelSpectrum(nn.Module):
    """Magnitudes in mel bands, over a Hann window, or powers in the definition of audiocraft.

    Args:
        sample_rate: Sample rate in Hz.
        window: Samples per frame.
        hop: Samples between frames; ``None`` is a quarter of the window.
        bands: Mel bands.
        f_min: Lower edge of the lowest band, in Hz.
        definition: ``unit`` has a window of unit energy, bands of height one on the HTK scale, and silence around the
            audio. ``librosa`` has that library's defaults: a window of height one, bands of area one on Slaney's
            scale, and reflections of the audio at its ends. ``audiocraft`` has a window of unit energy, bands of height
            one on the HTK scale, of powers instead of magnitudes, and one frame for each hop of the audio, with
            reflections at its ends.
    """

    window: Tensor
    filterbank: Tensor

    def __init__(
        self,
        sample_rate: int,
        window: int,
        *,
        hop: int | None = None,
        bands: int = 80,
        f_min: float = 0.0,
        definition: Definition = "unit",
    ) -> None:
        super().__init__()
        self.hop, self.definition = hop or window // 4, definition
        hann = torch.hann_window(window)
        unit = definition != "librosa"
        self.register_buffer("window", hann / hann.square().sum().sqrt() if unit else hann, persistent=False)
        filterbank = mel_filterbank(window // 2 + 1, bands, sample_rate, f_min, scale="htk" if unit else "slaney")
        self.register_buffer("filterbank", filterbank, persistent=False)

    def forward(self, audio: Tensor) -> Tensor:
        """Audio ``[B, C, T]`` to magnitudes ``[B, C, frames, bands]``, in full precision even under autocast."""
        with torch.autocast(audio.device.type, enabled=False):
            spectrum = torch.stft(
                self._extended(audio.float().flatten(0, 1)),
                len(self.window),
                self.hop,
                window=self.window,
                center=False,
                return_complex=True,
            )
            magnitudes = spectrum.abs().square() if self.definition == "audiocraft" else spectrum.abs()
            return (magnitudes.mT @ self.filterbank).unflatten(0, audio.shape[:2])

    def _extended(self, audio: Tensor) -> Tensor:
        """Audio ``[B, T]`` with what the frames at its ends see besides it."""
        window, length = len(self.window), audio.shape[-1]
        edge = (window - self.hop if self.definition == "audiocraft" else window) // 2
        mode = "reflect" if self.definition != "unit" and length > edge else "constant"  # less cannot be reflected
        extended = F.pad(audio, (edge, edge), mode)
        if self.definition == "audiocraft":
            extended = F.pad(extended, (0, -(length + 2 * edge - window) % self.hop))
        return extended


def log_magnitude(magnitude: Tensor) -> Tensor:
    """Natural logarithm of magnitudes of at least 1e-5: 122 dB below a full-scale sine under a window of 1024."""
    return magnitude.clamp(min=1e-5).log()


def log_power(power: Tensor) -> Tensor:
    """Natural logarithm of ``1e-5 + power``, as in audiocraft."""
    return (1e-5 + power).log()
