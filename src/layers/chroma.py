"""Chroma: the strength of each of the twelve pitch classes, summed over octaves."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CLASSES = 12
_A0 = 27.5  # Hz; the reference for octaves


def chroma_filterbank(
    bins: int,
    sample_rate: int,
    *,
    octave: float = 5.0,
    octave_width: float | None = 2.0,
    band: tuple[float, float] | None = None,
) -> Tensor:
    """Weight of each frequency of a spectrum for each pitch class, from C on, with A at 440 Hz.

    Each frequency contributes to the classes near it, with a Gaussian whose standard deviation is half a semitone or,
    if larger, half the distance to the next frequency, normalized to unit energy over the classes. This is the
    definition of D. Ellis (Chroma Feature Analysis and Synthesis, 2007) that librosa and MusicGen use.

    Args:
        bins: Frequencies of the spectrum, from zero to half the sample rate.
        sample_rate: Sample rate in Hz.
        octave: Octave with the highest weight, in octaves above 27.5 Hz; 5 is 880 Hz.
        octave_width: Standard deviation, in octaves, of the weights around it. ``None`` weighs all octaves the same.
        band: Lowest and highest frequency to include, in Hz. ``None`` includes all.

    Returns:
        Weights ``[bins, 12]`` float32.
    """
    with torch.device("cpu"):
        frequencies = torch.arange(bins + 1, dtype=torch.float64) * sample_rate / (2 * (bins - 1))
        octaves = torch.log2(frequencies[1:] / _A0)
        octaves = torch.cat([octaves[:1] - 1.5, octaves])  # places 0 Hz so low that it is spread over all classes
        width = (CLASSES * octaves.diff()).clamp(min=1)[:, None]
        octaves, frequencies = octaves[:-1, None], frequencies[:-1, None]
        classes = torch.arange(CLASSES, dtype=torch.float64) - 9  # C is nine semitones below A
        half = CLASSES / 2
        distance = torch.remainder(CLASSES * octaves - classes + half, CLASSES) - half
        weight = F.normalize(torch.exp(-2 * (distance / width).square()), dim=1)
        if octave_width is not None:
            weight = weight * torch.exp(-0.5 * ((octaves - octave) / octave_width).square())
        if band is not None:
            weight = weight * ((frequencies >= band[0]) & (frequencies <= band[1]))
        return weight.float()


def chroma_window(sample_rate: int) -> int:
    """The power of two nearest to 0.512 s: 2^13 samples at 16 kHz, 2^14 at 24, 32 and 44.1 kHz, 2^15 at 48 kHz.

    >>> [chroma_window(rate) for rate in (16000, 32000, 48000)]
    [8192, 16384, 32768]
    """
    return int(2 ** round(math.log2(0.512 * sample_rate)))


class Chroma(nn.Module):
    """Strength of the pitch classes, C first, in frames centered on multiples of the hop, with reflected ends.

    With the defaults, this is the melody of MusicGen (J. Copet et al., arXiv 2306.05284, §2.3): power under a
    Hann window of unit energy, scaled so that the strongest class of each frame is 1. At 32 kHz that is 2^14 samples
    every 2^12, 7.8125 frames a second.

    Args:
        sample_rate: Sample rate of the audio, in Hz.
        window: Samples per frame. ``None`` takes :func:`chroma_window`.
        hop: Samples between frames. ``None`` takes a quarter of the window.
        one_hot: Whether to set the strongest class of each frame to 1 and the others to 0; silence then is a C.
        normalize: Whether frames are divided by their strongest class.
        power: Exponent of the magnitudes that are summed: 2 for energies.
        octave_width: Standard deviation of the octave weights, as in :func:`chroma_filterbank`.
        band: Range of frequencies, as in :func:`chroma_filterbank`.
    """

    window: Tensor
    filterbank: Tensor

    def __init__(
        self,
        sample_rate: int,
        *,
        window: int | None = None,
        hop: int | None = None,
        one_hot: bool = False,
        normalize: bool = True,
        power: float = 2.0,
        octave_width: float | None = 2.0,
        band: tuple[float, float] | None = None,
    ) -> None:
        super().__init__()
        window = window or chroma_window(sample_rate)
        self.sample_rate, self.hop = sample_rate, hop or window // 4
        self.one_hot, self.normalize, self.power = one_hot, normalize, power
        hann = torch.hann_window(window)
        filterbank = chroma_filterbank(window // 2 + 1, sample_rate, octave_width=octave_width, band=band)
        self.register_buffer("window", hann / hann.square().sum().sqrt(), persistent=False)
        self.register_buffer("filterbank", filterbank, persistent=False)

    @property
    def frame_rate(self) -> float:
        """Frames per second."""
        return self.sample_rate / self.hop

    def forward(self, audio: Tensor) -> Tensor:
        """Audio ``[B, C, T]``, with mixed channels, to ``[B, T // hop + 1, 12]``, in full precision under autocast.

        Audio shorter than a window is first padded to its length, with silence on both sides.
        """
        with torch.autocast(audio.device.type, enabled=False):
            mono = audio.float().mean(1)
            missing = max(0, len(self.window) - mono.shape[-1])
            mono = F.pad(mono, (missing // 2, missing - missing // 2))
            spectrum = torch.stft(mono, len(self.window), self.hop, window=self.window, return_complex=True)
            chroma = spectrum.abs().pow(self.power).mT @ self.filterbank
            if self.one_hot:
                return F.one_hot(chroma.argmax(-1), CLASSES).to(chroma.dtype)
            return F.normalize(chroma, p=torch.inf, dim=-1, eps=1e-6) if self.normalize else chroma
