"""PANNs CNN14: an AudioSet classifier, with the logits and embeddings of AudioLDM's metrics."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..core.contracts import RepresentationSpec
from ..core.registry import register
from .frozen import FrozenFeatures, cut

BANDS = 64
HIGHEST = {16000: 8000.0, 32000: 14000.0}
"""Upper edge of the highest mel band by sample rate, in Hz. The lowest band begins at 50 Hz."""
POOLING = 32
"""Number of spectral frames that the convolutions pool into one."""


@register("tokenizer", "panns")
class PANNs(FrozenFeatures):
    """Pretrained PANNs CNN14 at 32 or 16 kHz: logits of 527 labels of AudioSet, or 2048-d embeddings (1912.10211).

    The published network ends in a sigmoid; the logits are its input. A frame is a window of the clip; windows do not
    overlap. The last window is the rest of the clip, without padding, because silence would be classified like sound
    and count like a whole window. If less than 0.31 s is left, too little for the network, the last frame is the last
    ``window`` seconds of the clip. Only a clip that is itself shorter is padded. AudioLDM's metrics process a clip of
    10 s as one window, after removing its mean.

    Weights have the names of the original release: a file such as ``Cnn14_mAP=0.431.pth`` (32 kHz) or
    ``Cnn14_16k_mAP=0.438.pth`` (16 kHz).

    Args:
        sample_rate: Sample rate of the audio, in Hz. Each rate has weights of its own.
        output: ``logits``, or the ``embedding`` they are computed from.
        window: Length of a window in seconds. The weights were trained on 10; the network takes any length.
        labels: Number of labels.
        width: Channels of the first block. The last block and the embedding are 32 times as wide.

    Raises:
        ValueError: A value is out of range.
    """

    weight_files: ClassVar[tuple[str, ...]] = ("Cnn14*.pth",)
    frame: Tensor

    def __init__(
        self,
        *,
        sample_rate: Literal[16000, 32000] = 32000,
        output: Literal["logits", "embedding"] = "logits",
        window: float = 10.0,
        labels: int = 527,
        width: int = 64,
    ) -> None:
        super().__init__()
        if sample_rate not in HIGHEST:
            raise ValueError(f"sample_rate must be 16000 or 32000, not {sample_rate}")
        if output not in ("logits", "embedding"):
            raise ValueError(f"output must be logits or embedding, not {output!r}")
        for name, value in (("labels", labels), ("width", width)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")
        self.sample_rate = sample_rate
        self.hop = sample_rate // 100
        self.shortest = (POOLING - 1) * self.hop
        self.length = round(window * sample_rate)
        if self.length < self.shortest:
            raise ValueError(f"window must be at least {self.shortest / sample_rate} seconds, not {window}")
        self.logits = output == "logits"
        self.dim = labels if self.logits else 32 * width
        self.fft = 1024 * sample_rate // 32000
        self.logmel_extractor = _LogMel(self.fft // 2 + 1, sample_rate)
        self.bn0 = nn.BatchNorm2d(BANDS)
        channels = [1, *(width << block for block in range(6))]
        for block in range(6):
            self.add_module(f"conv_block{block + 1}", _Block(channels[block], channels[block + 1], block < 5))
        self.fc1 = nn.Linear(channels[-1], channels[-1])
        self.fc_audioset = nn.Linear(channels[-1], labels)
        self.register_buffer("frame", torch.hann_window(self.fft), persistent=False)
        self.freeze()

    @property
    def spec(self) -> RepresentationSpec:
        """Spec with logits or an embedding per window."""
        return RepresentationSpec(self.sample_rate, 1, self.sample_rate / self.length, dim=self.dim)

    @torch.no_grad()
    def encode(self, audio: Tensor) -> Tensor:
        """Audio ``[B, 1, T]`` to logits or embeddings ``[B, D, ceil(T / sample rate / window)]``."""
        with torch.autocast(audio.device.type, enabled=False):
            windows = cut(self.mono(audio), self.length, self.shortest)
            frames = [self._embed(self.log_mel(window)) for window in windows]
            embeddings = torch.stack(frames, -1) if frames else audio.new_zeros(len(audio), self.fc1.in_features, 0)
            return self.fc_audioset(embeddings.mT).mT if self.logits else embeddings

    def log_mel(self, audio: Tensor) -> Tensor:
        """Audio ``[B, T]`` to powers in dB ``[B, frames, 64]``."""
        spectrum = torch.stft(audio, self.fft, self.hop, window=self.frame, return_complex=True)
        return self.logmel_extractor((spectrum.real.square() + spectrum.imag.square()).mT)

    def own_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Leave out the Fourier transform, which the release stores as convolutions."""
        return {name: tensor for name, tensor in state.items() if not name.startswith("spectrogram_extractor.")}

    def _embed(self, log_mel: Tensor) -> Tensor:
        """Powers in dB ``[B, frames, 64]`` to the embedding ``[B, 32 · width]``."""
        x = self.bn0(log_mel.mT[..., None]).permute(0, 3, 2, 1)
        for block in range(6):
            x = self.get_submodule(f"conv_block{block + 1}")(x)
        x = x.mean(3)
        return self.fc1(x.amax(2) + x.mean(2)).relu()


class _LogMel(nn.Module):
    """Power in mel bands, in dB. The bands come with the weights, and identify their sample rate."""

    melW: Tensor  # noqa: N815 (the release's name)

    def __init__(self, bins: int, sample_rate: int) -> None:
        super().__init__()
        from torchaudio.functional import melscale_fbanks

        highest, slaney = HIGHEST[sample_rate], "slaney"
        with torch.device("cpu"):
            bands = melscale_fbanks(bins, 50.0, highest, BANDS, sample_rate, norm=slaney, mel_scale=slaney)
        self.register_buffer("melW", bands.to(torch.get_default_device()))

    def forward(self, power: Tensor) -> Tensor:
        """``[B, frames, bins]`` to ``[B, frames, 64]``."""
        return 10 * (power @ self.melW).clamp(min=1e-10).log10()


class _Block(nn.Module):
    """Two convolutions, followed by 2 × 2 average pooling except in the last block."""

    def __init__(self, in_channels: int, out_channels: int, pooled: bool) -> None:
        super().__init__()
        self.pooled = pooled
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.bn2 = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, frames, bands]`` to ``[B, C', frames / 2, bands / 2]``."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        return F.avg_pool2d(x, 2) if self.pooled else x
