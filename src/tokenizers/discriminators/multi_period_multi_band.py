"""Discriminators of the waveform at several periods and of complex spectra in several bands."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from ...core.registry import register
from ...layers.codec_losses import Judgment
from .base import Discriminator

BANDS = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)
"""Edges of DAC's bands, as fractions of the highest frequency."""


@register("discriminator", "multi-period-multi-band")
class MultiPeriodMultiBand(Discriminator):
    """Waveforms at several periods, and complex spectra in several bands, of each channel separately.

    The defaults are DAC's (2306.06546 §3.3 and its published code). The mean of a clip is removed and its peak scaled
    to 0.8 before it is judged, so that neither an offset nor the level gives a reconstruction away.

    Args:
        periods: A discriminator of every ``n``-th sample for each of these ``n``, as in HiFi-GAN.
        period_width: Channels of the first layer of each; the next ones have 4, 16, 32 and 32 times as many.
        windows: A discriminator of the complex spectrum for each of these window lengths in samples, multiples of four.
        window_width: Channels of each.
        bands: Edges of the bands, as fractions of the highest frequency, from 0 to 1. Bands do not share weights,
            except for those of the scores.
    """

    def __init__(
        self,
        *,
        periods: tuple[int, ...] = (2, 3, 5, 7, 11),
        period_width: int = 32,
        windows: tuple[int, ...] = (2048, 1024, 512),
        window_width: int = 32,
        bands: tuple[float, ...] = BANDS,
    ) -> None:
        super().__init__()
        if not periods and not windows:
            raise ValueError("periods or windows must name at least one discriminator")
        if any(period < 1 for period in periods):
            raise ValueError(f"periods must be positive, not {list(periods)}")
        if any(window < 4 or window % 4 for window in windows):
            raise ValueError(f"windows must be multiples of four, not {list(windows)}")
        if len(bands) < 2 or bands[0] != 0 or bands[-1] != 1 or any(a >= b for a, b in pairwise(bands)):
            raise ValueError(f"bands must rise from 0 to 1, unlike {list(bands)}")
        for window in windows:
            if any(high == low for low, high in _ranges(window, bands)):
                raise ValueError(f"bands: one of {list(bands)} holds no frequency of a window of {window} samples")
        self.periods, self.period_width = tuple(periods), period_width
        self.windows, self.window_width, self.bands = tuple(windows), window_width, tuple(bands)

    def build(self, sample_rate: int, channels: int) -> None:
        """Create all discriminators. Each reads one channel at a time, so the number of channels does not matter."""
        super().build(sample_rate, channels)
        self.members = nn.ModuleList(
            [
                *(PeriodDiscriminator(period, self.period_width) for period in self.periods),
                *(BandDiscriminator(window, self.window_width, self.bands) for window in self.windows),
            ]
        )

    def forward(self, audio: Tensor) -> list[Judgment]:
        """Audio ``[B, C, T]`` to one judgment per discriminator."""
        mono = audio.flatten(0, 1)[:, None]
        mono = mono - mono.mean(-1, keepdim=True)
        mono = 0.8 * mono / (mono.abs().amax(-1, keepdim=True) + 1e-9)
        return [member(mono) for member in self.members]


class PeriodDiscriminator(nn.Module):
    """HiFi-GAN's discriminator of the samples at a period (2010.05646 §2.3), as used in DAC.

    Args:
        period: Samples per row.
        width: Channels of the first layer.
    """

    def __init__(self, period: int, width: int) -> None:
        super().__init__()
        self.period = period
        widths = [1, *(factor * width for factor in (1, 4, 16, 32))]
        self.layers = nn.ModuleList(
            weight_norm(nn.Conv2d(narrow, wide, (5, 1), (3, 1), padding=(2, 0))) for narrow, wide in pairwise(widths)
        )
        self.layers.append(weight_norm(nn.Conv2d(widths[-1], widths[-1], (5, 1), padding=(2, 0))))
        self.score = weight_norm(nn.Conv2d(widths[-1], 1, (3, 1), padding=(1, 0)))

    def forward(self, audio: Tensor) -> Judgment:
        """Audio ``[B, 1, T]`` to scores ``[B, 1, T', period]`` and features."""
        # A whole row is added if none is incomplete.
        missing = self.period - audio.shape[-1] % self.period
        x = F.pad(audio, (0, missing), mode="reflect" if missing < audio.shape[-1] else "constant")
        x, features = _activations(self.layers, x.unflatten(-1, (-1, self.period)))
        return self.score(x), features


class BandDiscriminator(nn.Module):
    """DAC's discriminator of the complex spectrum, with layers of its own for each band (2306.06546 §3.3).

    There is one frame per hop, in whose center it lies.

    Args:
        window: Samples per frame; the hop is a quarter of that.
        width: Channels of each layer.
        bands: Edges of the bands, as fractions of the highest frequency.
    """

    window: Tensor

    def __init__(self, window: int, width: int, bands: tuple[float, ...]) -> None:
        super().__init__()
        self.register_buffer("window", torch.hann_window(window), persistent=False)
        self.ranges = _ranges(window, bands)
        self.bands = nn.ModuleList(
            nn.ModuleList(
                [
                    weight_norm(nn.Conv2d(2, width, (3, 9), padding=(1, 4))),
                    *(weight_norm(nn.Conv2d(width, width, (3, 9), (1, 2), padding=(1, 4))) for _ in range(3)),
                    weight_norm(nn.Conv2d(width, width, 3, padding=1)),
                ]
            )
            for _ in self.ranges
        )
        self.score = weight_norm(nn.Conv2d(width, 1, 3, padding=1))

    def forward(self, audio: Tensor) -> Judgment:
        """Audio ``[B, 1, T]`` to scores ``[B, 1, frames, frequencies']`` and features of one band after the other."""
        spectrum, ends, features = self._spectrum(audio[:, 0]), [], []
        for (low, high), layers in zip(self.ranges, self.bands, strict=True):
            end, found = _activations(layers, spectrum[..., low:high])  # type: ignore[arg-type]
            ends.append(end)
            features += found
        return self.score(torch.cat(ends, -1)), features

    def _spectrum(self, audio: Tensor) -> Tensor:
        """Audio ``[B, T]`` to the real and imaginary part, ``[B, 2, frames, frequencies]``."""
        length = len(self.window)
        hop = length // 4
        with torch.autocast(audio.device.type, enabled=False):
            whole = F.pad(audio.float(), (0, max(0, length - audio.shape[-1])))
            left = (length - hop) // 2
            whole = F.pad(whole, (left, left + -whole.shape[-1] % hop), mode="reflect")
            spectrum = torch.stft(whole, length, hop, window=self.window, center=False, return_complex=True)
            return torch.view_as_real(spectrum).permute(0, 3, 2, 1)


def _ranges(window: int, bands: tuple[float, ...]) -> list[tuple[int, int]]:
    """First and last frequency of each band of a spectrum, the last one excluded."""
    edges = [int(edge * (window // 2 + 1)) for edge in bands]
    return list(pairwise(edges))


def _activations(layers: nn.ModuleList, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    """The output of layers that follow each other, and the outputs of all of them."""
    features = []
    for layer in layers:
        x = F.leaky_relu(layer(x), 0.1)
        features.append(x)
    return x, features
