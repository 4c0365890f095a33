"""PaSST: an AudioSet classifier, used for the KLD that AudioCraft reports."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..core.contracts import RepresentationSpec
from ..core.registry import register
from ..layers.mel import mel_filterbank
from .frozen import FrozenFeatures, cut

SAMPLE_RATE = 32000
WINDOW, HOP, FFT = 800, 320, 1024
"""Length of a frame (25 ms), hop (10 ms) and length of the transform, in samples."""
BANDS, HIGHEST = 128, 15000
"""Number of mel bands, and upper edge of the highest in Hz."""
PATCH, STEP = 16, 10
"""Side of a patch and step between patches, in frames and in bands."""
SHORTEST = (PATCH - 1) * HOP + 1
"""Minimum number of samples for a patch: 0.15 s."""
POSITIONS = {10: 99, 20: 200, 30: 300}
"""Number of time positions of each model, by the length in seconds that it was trained on."""


@register("tokenizer", "passt")
class PaSST(FrozenFeatures):
    """Pretrained PaSST at 32 kHz: logits of AudioSet's 527 labels, or the 768-d embedding (arXiv 2110.05069).

    A frame is a window of the clip; windows do not overlap. The last window is the rest of the clip without padding:
    the network accepts short windows, and silence would be classified like sound and count like a whole window.
    AudioCraft computes a KLD over segments of at most 20 s in the same way. It leaves out a rest of up to 0.15 s, too
    short for the network; here the last frame is then the last ``window`` seconds of the clip. Only a clip that is
    itself shorter than 0.15 s is padded.

    Weights have the names of the original release, as in ``passt-s-f128-20sec-p16-s10-ap.474-swa.pt``.

    Args:
        output: ``logits``, before the sigmoid or softmax, or the ``embedding`` they are computed from.
        window: Length of a window in seconds: that of the weights, which hold a position for each of their
            patches.
        labels: Number of labels.
        width: Width of the transformer and of the embedding.
        depth: Number of blocks.
        num_heads: Attention heads; must divide the width.

    Raises:
        ValueError: A value is out of range.
    """

    weight_files: ClassVar[tuple[str, ...]] = ("*passt*.pt",)
    frame: Tensor
    filterbank: Tensor

    def __init__(
        self,
        *,
        output: Literal["logits", "embedding"] = "logits",
        window: Literal[10, 20, 30] = 20,
        labels: int = 527,
        width: int = 768,
        depth: int = 12,
        num_heads: int = 12,
    ) -> None:
        super().__init__()
        if output not in ("logits", "embedding"):
            raise ValueError(f"output must be logits or embedding, not {output!r}")
        if window not in POSITIONS:
            raise ValueError(f"window must be one of {', '.join(map(str, POSITIONS))} seconds, not {window}")
        for name, value in (("labels", labels), ("width", width), ("depth", depth), ("num_heads", num_heads)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")
        if width % num_heads:
            raise ValueError(f"width must split into heads: {num_heads} does not divide {width}")
        self.logits = output == "logits"
        self.window, self.width = window, width
        self.dim = labels if self.logits else width
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(1, width, PATCH, STEP)})
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.dist_token = nn.Parameter(torch.zeros(1, 1, width))
        self.new_pos_embed = nn.Parameter(torch.zeros(1, 2, width))
        self.freq_new_pos_embed = nn.Parameter(torch.zeros(1, width, BANDS // STEP, 1))
        self.time_new_pos_embed = nn.Parameter(torch.zeros(1, width, 1, POSITIONS[window]))
        self.blocks = nn.Sequential(*(_Block(width, num_heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, labels))
        self.register_buffer("frame", torch.hann_window(WINDOW, periodic=False), persistent=False)
        filterbank = mel_filterbank(FFT // 2 + 1, BANDS, SAMPLE_RATE, 0, HIGHEST, straight_in="mel")
        self.register_buffer("filterbank", filterbank, persistent=False)
        self.freeze()

    @property
    def spec(self) -> RepresentationSpec:
        """Spec with logits or an embedding per window."""
        return RepresentationSpec(SAMPLE_RATE, 1, 1 / self.window, dim=self.dim)

    @torch.no_grad()
    def encode(self, audio: Tensor) -> Tensor:
        """Audio ``[B, 1, T]`` to logits or embeddings ``[B, D, ceil(T / 32000 / window)]``."""
        with torch.autocast(audio.device.type, enabled=False):
            windows = cut(self.mono(audio), self.window * SAMPLE_RATE, SHORTEST + 1)  # pre-emphasis takes one sample
            frames = [self._embed(self.log_mel(window)) for window in windows]
            embeddings = torch.stack(frames, -1) if frames else audio.new_zeros(len(audio), self.width, 0)
            return self.head(embeddings.mT).mT if self.logits else embeddings

    def log_mel(self, audio: Tensor) -> Tensor:
        """Audio ``[B, T]`` to log powers ``[B, 128, frames]``, scaled as in training."""
        audio = audio[:, 1:] - 0.97 * audio[:, :-1]
        spectrum = torch.stft(audio, FFT, HOP, WINDOW, self.frame, return_complex=True)
        power = spectrum.real.square() + spectrum.imag.square()
        return ((self.filterbank.T @ power + 1e-5).log() + 4.5) / 5

    def own_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Leave out the second head, which only training needs."""
        return {name: tensor for name, tensor in state.items() if not name.startswith("head_dist.")}

    def _embed(self, log_mel: Tensor) -> Tensor:
        """Log powers ``[B, 128, frames]`` to the mean of the two tokens ``[B, width]``."""
        patches = self.patch_embed["proj"](log_mel[:, None])
        patches = patches + self.time_new_pos_embed[..., : patches.shape[-1]] + self.freq_new_pos_embed
        tokens = torch.cat([self.cls_token, self.dist_token], 1) + self.new_pos_embed
        x = torch.cat([tokens.expand(len(patches), -1, -1), patches.flatten(2).mT], 1)
        return self.norm(self.blocks(x)[:, :2]).mean(1)


class _Block(nn.Module):
    """Attention and a feed-forward network, each on a residual."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = _Attention(width, num_heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, 4 * width), "fc2": nn.Linear(4 * width, width)})

    def forward(self, x: Tensor) -> Tensor:
        """``[B, N, width]`` to the same shape."""
        x = x + self.attn(self.norm1(x))
        return x + self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(x))))


class _Attention(nn.Module):
    """Self-attention without a mask, with biases."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, N, width]`` to the same shape."""
        queries, keys, values = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind()
        return self.proj(F.scaled_dot_product_attention(queries, keys, values).transpose(1, 2).flatten(2))
