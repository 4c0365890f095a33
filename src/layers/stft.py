"""A short-time Fourier transform with one frame per hop, and its exact inverse."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class STFT(nn.Module):
    """Frames of ``overlap · hop`` samples under a Hann window, one per hop, each centered on its hop.

    ``T`` samples give ``T / hop`` frames and are restored to ``T`` samples: :meth:`inverse` inverts :meth:`forward` up
    to rounding, including the ends, for which ``torch.istft`` would need one more frame.

    Args:
        hop: Samples per frame.
        overlap: Number of frames that cover a sample: the length of the window in hops.
    """

    window: Tensor

    def __init__(self, hop: int, overlap: int = 4) -> None:
        super().__init__()
        if overlap < 2:
            raise ValueError(f"overlap must be at least 2, not {overlap}: a single Hann window fades to nothing")
        self.hop, self.overlap = hop, overlap
        self.length = overlap * hop
        self.left = (self.length - hop) // 2
        self.register_buffer("window", torch.hann_window(self.length), persistent=False)

    @property
    def bins(self) -> int:
        """Number of frequencies per frame."""
        return self.length // 2 + 1

    @property
    def reach(self) -> tuple[int, int]:
        """Number of hops before and after its own that a frame covers: the frames after and before that cover a hop."""
        return -(-self.left // self.hop), -(-(self.length - self.hop - self.left) // self.hop)

    def forward(self, audio: Tensor) -> Tensor:
        """Audio ``[..., S · hop]`` to a complex spectrum ``[..., S, bins]``, in full precision under autocast."""
        with torch.autocast(audio.device.type, enabled=False):
            padded = F.pad(audio.float(), (self.left, self.length - self.hop - self.left))
            return torch.fft.rfft(padded.unfold(-1, self.length, self.hop) * self.window)

    def inverse(self, spectrum: Tensor) -> Tensor:
        """A complex spectrum ``[..., S, bins]`` to audio ``[..., S · hop]``."""
        frames = torch.fft.irfft(spectrum, self.length) * self.window
        envelope = (self.window**2).expand(frames.shape[-2], -1)
        audio = self._overlap_add(frames) / self._overlap_add(envelope).clamp(min=1e-8)
        return audio[..., self.left : self.left + frames.shape[-2] * self.hop]

    def _overlap_add(self, frames: Tensor) -> Tensor:
        """Add overlapping frames ``[..., S, length]`` up to ``[..., (S + overlap − 1) · hop]``."""
        parts = frames.unflatten(-1, (self.overlap, self.hop)).unbind(-2)
        padded = [F.pad(part, (0, 0, i, self.overlap - 1 - i)) for i, part in enumerate(parts)]
        return torch.stack(padded).sum(0).flatten(-2)
