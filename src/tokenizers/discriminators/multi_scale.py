"""Discriminators of the waveform at several rates and of complex spectra at several resolutions."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from ...core.registry import register
from ...layers.codec_losses import Judgment
from .base import Discriminator


@register("discriminator", "multi-scale")
class MultiScale(Discriminator):
    """Waveforms at several rates and complex spectra at several resolutions; each channel is judged separately.

    The defaults are SoundStream's. EnCodec's have no waveforms, and five spectra of the ``dilated`` kind.

    Args:
        wave_scales: A discriminator of the waveform for each of these down-sampling factors, powers of two.
        wave_width: Channels of the first layer of each.
        stft_windows: A discriminator of the complex spectrum for each of these window lengths in samples.
        stft_width: Channels of the first layer of each.
        stft_kind: ``residual`` is SoundStream's (2107.03312 §III-D), ``dilated`` EnCodec's (2210.13438 §3.4).
    """

    def __init__(
        self,
        *,
        wave_scales: tuple[int, ...] = (1, 2, 4),
        wave_width: int = 16,
        stft_windows: tuple[int, ...] = (1024,),
        stft_width: int = 32,
        stft_kind: Literal["residual", "dilated"] = "residual",
    ) -> None:
        super().__init__()
        if not wave_scales and not stft_windows:
            raise ValueError("wave_scales or stft_windows must name at least one discriminator")
        odd = [s for s in wave_scales if s < 1 or s & (s - 1)]
        if odd:
            raise ValueError(f"wave_scales must be powers of two, not {odd}")
        self.wave_scales, self.wave_width = tuple(wave_scales), wave_width
        self.stft_windows, self.stft_width, self.stft_kind = tuple(stft_windows), stft_width, stft_kind

    def build(self, sample_rate: int, channels: int) -> None:
        """Create all discriminators. Each reads one channel at a time, so the number of channels does not matter."""
        super().build(sample_rate, channels)
        kind = {"residual": ResidualSTFTDiscriminator, "dilated": DilatedSTFTDiscriminator}[self.stft_kind]
        self.members = nn.ModuleList(
            [
                *(WaveDiscriminator(scale, self.wave_width) for scale in self.wave_scales),
                *(kind(window, self.stft_width) for window in self.stft_windows),
            ]
        )

    def forward(self, audio: Tensor) -> list[Judgment]:
        """Audio ``[B, C, T]`` to one judgment per discriminator."""
        mono = audio.flatten(0, 1)[:, None]
        return [member(mono) for member in self.members]


class _Discriminator(nn.Module):
    """Layers whose activations are the features, and a last layer for the scores."""

    def __init__(self, layers: list[nn.Module], score: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.score = score

    def judge(self, x: Tensor) -> Judgment:
        features = []
        for layer in self.layers:
            x = F.leaky_relu(layer(x), 0.2)
            features.append(x)
        return self.score(x), features


class WaveDiscriminator(_Discriminator):
    """MelGAN's discriminator of the waveform, as used in SoundStream (2107.03312 §III-D).

    Args:
        scale: Factor of the initial down-sampling, a power of two.
        width: Channels of the first layer; four strided layers multiply them by four, up to 1024.
    """

    def __init__(self, scale: int, width: int = 16) -> None:
        widths = [min(1024, width * 4**i) for i in range(5)]
        layers: list[nn.Module] = [weight_norm(nn.Conv1d(1, width, 15, padding=7))]
        for narrow, wide in pairwise(widths):
            groups = max(1, narrow // 4)
            layers.append(weight_norm(nn.Conv1d(narrow, wide, 41, 4, padding=20, groups=groups)))
        layers.append(weight_norm(nn.Conv1d(widths[-1], widths[-1], 5, padding=2)))
        super().__init__(layers, weight_norm(nn.Conv1d(widths[-1], 1, 3, padding=1)))
        self.halvings = scale.bit_length() - 1

    def forward(self, audio: Tensor) -> Judgment:
        """Audio ``[B, 1, T]`` to scores ``[B, 1, T']`` and features."""
        for _ in range(self.halvings):
            audio = F.avg_pool1d(audio, 4, 2, padding=1, count_include_pad=False)
        return self.judge(audio)


class _STFTDiscriminator(_Discriminator):
    """A discriminator of the real and imaginary part, ``[B, 2, frames, frequencies]``, under a window of unit energy.

    Args:
        window: Samples per frame; the hop is a quarter of that.
        center: Whether frames are centered on multiples of the hop, with silence around the audio, or lie inside it.
        layers: Layers that process the spectrum.
        score: Layer that computes the scores.
    """

    window: Tensor

    def __init__(self, window: int, center: bool, layers: list[nn.Module], score: nn.Module) -> None:
        super().__init__(layers, score)
        self.center = center
        hann = torch.hann_window(window)
        self.register_buffer("window", hann / hann.square().sum().sqrt(), persistent=False)

    def forward(self, audio: Tensor) -> Judgment:
        """Audio ``[B, 1, T]`` to scores ``[B, 1, frames', frequencies']`` and features."""
        length = len(self.window)
        with torch.autocast(audio.device.type, enabled=False):
            spectrum = torch.stft(
                F.pad(audio.float().flatten(0, 1), (0, max(0, length - audio.shape[-1]))),
                length,
                length // 4,
                window=self.window,
                center=self.center,
                pad_mode="constant",
                return_complex=True,
            )
            parts = torch.view_as_real(spectrum).permute(0, 3, 2, 1)
        return self.judge(parts)


class DilatedSTFTDiscriminator(_STFTDiscriminator):
    """One resolution of EnCodec's multi-scale STFT discriminator (2210.13438 §3.4, and its published code).

    Frames begin with the audio and end with it, so that no frame holds padding unless the audio is shorter than one.

    Args:
        window: Samples per frame; the hop is a quarter of that.
        width: Channels of every layer.
    """

    def __init__(self, window: int, width: int = 32) -> None:
        layers: list[nn.Module] = [nn.Conv2d(2, width, (3, 9), padding=(1, 4))]
        for dilation in (1, 2, 4):
            layers.append(
                weight_norm(
                    nn.Conv2d(width, width, (3, 9), stride=(1, 2), dilation=(dilation, 1), padding=(dilation, 4))
                )
            )
        layers.append(weight_norm(nn.Conv2d(width, width, 3, padding=1)))
        super().__init__(window, False, layers, weight_norm(nn.Conv2d(width, 1, 3, padding=1)))


class ResidualSTFTDiscriminator(_STFTDiscriminator):
    """SoundStream's discriminator of the complex STFT (2107.03312 §III-D and figure 4).

    Six residual blocks stride by (1, 2) and (2, 2) in turn, and leave 2, 4, 4, 8, 8 and 16 times the channels of the
    first layer; the last layer spans what is left of the frequencies. Frames are centered, one for each hop, as many as
    the paper counts.

    Args:
        window: Samples per frame, at least 256; the hop is a quarter of that.
        width: Channels of the first layer.
    """

    def __init__(self, window: int, width: int = 32) -> None:
        if window < 256:  # the last kernels span four frequencies, but only two would be left
            raise ValueError(
                f"a residual STFT discriminator halves frequencies six times: a window of {window} is too short, "
                "256 is the shortest"
            )
        layers: list[nn.Module] = [weight_norm(nn.Conv2d(2, width, 7, padding=3))]
        for i, factor in enumerate((2, 2, 1, 2, 1, 2)):
            layers.append(_ResidualBlock(width, factor * width, (1 + i % 2, 2)))
            width = factor * width
        super().__init__(window, True, layers, weight_norm(nn.Conv2d(width, 1, (1, window // 128))))


class _ResidualBlock(nn.Module):
    def __init__(self, narrow: int, wide: int, stride: tuple[int, int]) -> None:
        super().__init__()
        # an even kernel covers an even number of strides: (3 or 4) x 4 with one more row and column of padding
        kernel = (3 if stride[0] == 1 else 4, 4)
        self.first = weight_norm(nn.Conv2d(narrow, narrow, 3, padding=1))
        self.second = weight_norm(nn.Conv2d(narrow, wide, kernel, stride=stride, padding=1))
        self.shortcut = weight_norm(nn.Conv2d(narrow, wide, 1))
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        y = self.second(F.leaky_relu(self.first(x), 0.2))
        pooled = F.avg_pool2d(x, self.stride, ceil_mode=True)
        return y + self.shortcut(pooled)[..., : y.shape[-2], : y.shape[-1]]
