"""VGGish: the embedding that the Fréchet audio distance was defined on."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..core.contracts import RepresentationSpec
from ..core.registry import register
from ..errors import PartitaError
from ..layers.mel import mel_filterbank
from .frozen import FrozenFeatures

SAMPLE_RATE = 16000
WINDOW, HOP, FFT = 400, 160, 512
"""Length of a frame (25 ms), hop (10 ms) and length of the transform, in samples."""
PATCH, BANDS = 96, 64
"""Frames of a patch (0.96 s), and mel bands of a frame."""
DIM = 128
AT_ONCE = 64
"""Number of patches embedded at once, which bounds the memory for a long clip."""


@register("tokenizer", "vggish")
class VGGish(FrozenFeatures):
    """Pretrained VGGish: 128-d embeddings of 0.96 s of 16 kHz audio (arXiv 1609.09430), as FAD uses them.

    A patch is 96 frames of 64 mel bands (125 to 7500 Hz), logarithms of magnitude plus 0.01. Patch ``s`` begins
    ``s · hop`` seconds into the clip. A patch that would reach beyond the end begins earlier, so that it ends with the
    clip: no embedding contains padding, unless the whole clip is shorter than a patch (0.975 s). The first patches are
    thus those of the original, which leaves out an incomplete last patch.

    Weights are those of torchvggish: a file such as ``vggish-10086976.pth``, or a folder or hub id with it, and if
    ``postprocess`` is set with ``vggish_pca_params-970ea276.pth`` beside it.

    Args:
        hop: Seconds between patches, a whole number of hundredths. 0.96 leaves no gap and no overlap.
        activation: Whether the rectifier after the last layer is applied. The original does; the Fréchet audio distance
            in PyTorch usually does not.
        postprocess: Whether to rotate and whiten the embedding and round it to 0 … 255, as the embeddings released
            with AudioSet are.
        width: Channels of the first convolution; the last one has eight times as many.
        hidden: Width of the two layers before the embedding.

    Raises:
        ValueError: A value is out of range.
    """

    weight_files: ClassVar[tuple[str, ...]] = ("vggish-*.pth", "vggish_pca_params-*.pth")
    window: Tensor
    filterbank: Tensor

    def __init__(
        self,
        *,
        hop: float = 0.96,
        activation: bool = False,
        postprocess: bool = False,
        width: int = 64,
        hidden: int = 4096,
    ) -> None:
        super().__init__()
        self.hop = round(hop * SAMPLE_RATE / HOP)
        if self.hop < 1 or abs(self.hop * HOP / SAMPLE_RATE - hop) > 1e-6:
            raise ValueError(f"hop must be a whole number of hundredths of a second, at least 0.01, not {hop}")
        for name, value in (("width", width), ("hidden", hidden)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")
        self.activation, self.postprocess = activation, postprocess
        self.features = _convolutions(width)
        self.embeddings = nn.Sequential(
            nn.Linear(8 * width * (PATCH // 16) * (BANDS // 16), hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Linear(hidden, DIM),
        )
        if postprocess:
            self.pproc = _Whitening()
        self.register_buffer("window", torch.hann_window(WINDOW), persistent=False)
        filterbank = mel_filterbank(FFT // 2 + 1, BANDS, SAMPLE_RATE, 125, 7500, straight_in="mel")
        self.register_buffer("filterbank", filterbank, persistent=False)
        self.freeze()

    @property
    def spec(self) -> RepresentationSpec:
        """Spec with one embedding per hop."""
        return RepresentationSpec(SAMPLE_RATE, 1, SAMPLE_RATE / HOP / self.hop, dim=DIM)

    @torch.no_grad()
    def encode(self, audio: Tensor) -> Tensor:
        """Audio ``[B, 1, T]`` to embeddings ``[B, 128, ceil(T / 16000 / hop)]``."""
        with torch.autocast(audio.device.type, enabled=False):
            log_mel = self.log_mel(self.mono(audio))
            count = -(-audio.shape[-1] // (self.hop * HOP))
            starts = (torch.arange(count, device=audio.device) * self.hop).clamp(max=log_mel.shape[1] - PATCH)
            at = starts[:, None] + torch.arange(PATCH, device=audio.device)
            patches = log_mel[:, at].flatten(0, 1)
            embedded = torch.cat([self._embed(some) for some in patches.split(AT_ONCE)])
            return embedded.unflatten(0, (len(audio), count)).mT

    def log_mel(self, audio: Tensor) -> Tensor:
        """Audio ``[B, T]`` to log magnitudes ``[B, frames, 64]``, at least one patch."""
        shortest = (PATCH - 1) * HOP + WINDOW
        frames = F.pad(audio, (0, max(0, shortest - audio.shape[1]))).unfold(1, WINDOW, HOP)
        magnitude = torch.fft.rfft(frames * self.window, FFT).abs()
        return (magnitude @ self.filterbank + 0.01).log()

    def own_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Rename the principal components, which have a file of their own, and leave them out if unused."""
        renamed = {f"pproc.{name}" if name.startswith("pca_") else name: tensor for name, tensor in state.items()}
        if not self.postprocess:
            return {name: tensor for name, tensor in renamed.items() if not name.startswith("pproc.")}
        if means := [name for name in renamed if name == "pproc.pca_means"]:
            renamed[means[0]] = renamed[means[0]].reshape(-1, 1)  # a list of numbers in the file, a column since
        return renamed

    def load_weights(self, source: str | Path) -> None:
        """Load weights of torchvggish, or that :meth:`save` wrote.

        Args:
            source: A ``.safetensors`` or ``.pth`` file, a folder with such files, or a hub id.

        Raises:
            PartitaError: ``source`` has no weights, or those of another model, or ``postprocess`` is set and the
                principal components are missing.
        """
        try:
            super().load_weights(source)
        except PartitaError as error:
            if "missing: pproc." not in str(error):
                raise
            raise PartitaError(
                f"{source} holds no principal components, which `postprocess` needs: put the file "
                "vggish_pca_params-970ea276.pth of torchvggish in one folder with the other weights and give that"
            ) from None

    def _embed(self, patches: Tensor) -> Tensor:
        """Patches ``[N, 96, 64]`` to embeddings ``[N, 128]``."""
        embedding = self.embeddings(self.features(patches[:, None]).permute(0, 2, 3, 1).flatten(1))
        if self.activation:
            embedding = embedding.relu()
        return self.pproc(embedding) if self.postprocess else embedding


def _convolutions(width: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    channels = 1
    for group in ((width,), (2 * width,), (4 * width, 4 * width), (8 * width, 8 * width)):
        for out in group:
            layers += [nn.Conv2d(channels, out, 3, padding=1), nn.ReLU()]
            channels = out
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers)


class _Whitening(nn.Module):
    """Principal components at unit variance, mapped from [−2, 2] to 0 … 255."""

    def __init__(self) -> None:
        super().__init__()
        self.pca_eigen_vectors = nn.Parameter(torch.eye(DIM))
        self.pca_means = nn.Parameter(torch.zeros(DIM, 1))

    def forward(self, embedding: Tensor) -> Tensor:
        """``[N, 128]`` to the same shape."""
        components = (embedding - self.pca_means[:, 0]) @ self.pca_eigen_vectors.T
        return ((components.clamp(-2, 2) + 2) * (255 / 4)).round()
