"""Audio at another sample rate or with another number of channels, on the device it is on."""

from __future__ import annotations

import math
from functools import lru_cache

import soxr
import torch
from torch import Tensor
from torch.nn import functional as F

CUTOFF = 0.957
"""Frequency at which the filter has fallen by 6 dB, relative to half the lower of the two rates; that of soxr."""
ZEROS = 80
"""Zero crossings of the filter on either side: its stopband begins at half the lower rate, as that of soxr does."""
BETA = 11.0
"""Shape parameter of the Kaiser window, which keeps the stopband about 110 dB down."""
LARGEST_FILTERS = 1 << 23
"""Maximum number of weights of a filter bank. Rates with a small common divisor would need more, and use soxr."""


def convert(audio: Tensor, rate: int, to_rate: int, channels: int) -> Tensor:
    """Audio ``[B, C, T]`` at ``rate`` to ``[B, channels, ceil(T · to_rate / rate)]`` float32.

    Every conversion of tensors uses this function: soxr on the CPU, as for files, and a filter with the same response
    on other devices. Frequencies up to 93 % of half the lower rate lose less than 1 dB, and aliasing is at least 100 dB
    down. One channel is copied to several; several are averaged if the number of channels falls.

    Args:
        audio: Audio on any device.
        rate: Sample rate of the audio, in Hz.
        to_rate: Sample rate of the result, in Hz.
        channels: Number of channels of the result.
    """
    if audio.shape[1] != channels:
        audio = audio.mean(1, keepdim=True).expand(-1, channels, -1)
    if rate == to_rate:
        return audio
    source, target = rate // math.gcd(rate, to_rate), to_rate // math.gcd(rate, to_rate)
    length = -(-audio.shape[-1] * target // source)
    if audio.is_cpu or target * (2 * _margin(source, target) + source) > LARGEST_FILTERS:
        return _by_soxr(audio, source, target, length)
    return _by_filters(audio, source, target, length)


def _by_soxr(audio: Tensor, source: int, target: int, length: int) -> Tensor:
    # If the exact length falls between two samples, soxr leaves out the last one: add enough silence for one more.
    signals = F.pad(audio.detach().float().cpu().reshape(-1, audio.shape[-1]), (0, -(-source // target) + 1)).numpy()
    made = [torch.from_numpy(soxr.resample(signal, source, target)[:length]) for signal in signals]
    return torch.stack(made).view(*audio.shape[:-1], length).to(audio.device)


def _by_filters(audio: Tensor, source: int, target: int, length: int) -> Tensor:
    margin = _margin(source, target)
    several = max(1, 32 // target)  # a matrix product is faster than the same number of dot products
    source, target = several * source, several * target
    # GPUs would round the factors of float32 products to ten bits, whose noise would be louder than the aliasing.
    dtype = torch.float64 if audio.is_cuda else torch.float32
    with torch.autocast(audio.device.type, enabled=False):
        padded = F.pad(audio.to(dtype).reshape(-1, 1, audio.shape[-1]), (margin, margin + source))
        resampled = F.conv1d(padded, _filters(source, target, margin, audio.device, dtype), stride=source)
    return resampled.float().mT.reshape(*audio.shape[:-1], -1)[..., :length]


def _margin(source: int, target: int) -> int:
    """Number of samples on either side that a resampled sample depends on."""
    return math.ceil(ZEROS * source / (CUTOFF * min(source, target)))


# Normal tensors whatever mode or device the first caller uses: they are cached, and training uses them too.
@lru_cache(maxsize=16)
@torch.inference_mode(False)
def _filters(source: int, target: int, margin: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """A windowed sinc for each of the ``target`` samples that ``source`` samples become, ``[target, 1, taps]``."""
    with torch.device("cpu"):
        taps = torch.arange(-margin, margin + source, dtype=torch.float64) / source
        places = torch.arange(target, dtype=torch.float64) / target
        crossings = (taps - places[:, None]) * CUTOFF * min(source, target)
        window = torch.special.i0(BETA * (1 - (crossings / ZEROS) ** 2).clamp(min=0).sqrt())
        filters = torch.where(crossings.abs() <= ZEROS, torch.sinc(crossings) * window, 0)
        return (filters / filters.sum(1, keepdim=True))[:, None].to(device, dtype)
