"""Audio at another sample rate or with another number of channels, on the device it is on."""

from __future__ import annotations

from torch import Tensor


def convert(audio: Tensor, rate: int, to_rate: int, channels: int) -> Tensor:
    """Audio ``[B, C, T]`` at ``rate`` to ``[B, channels, T · to_rate / rate]``, rounded up.

    Channels are copied from one, or mixed by their mean where the number falls.
    """
    if audio.shape[1] != channels:
        audio = audio.mean(1, keepdim=True).expand(-1, channels, -1)
    if rate != to_rate:
        from torchaudio.functional import resample

        audio = resample(audio, rate, to_rate)
    return audio
