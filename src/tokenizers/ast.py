"""The Audio Spectrogram Transformer: an AudioSet classifier and embedding."""

from __future__ import annotations

import re
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..core.contracts import RepresentationSpec
from ..core.registry import register
from .frozen import FrozenFeatures, cut

SAMPLE_RATE = 16000
SHORTEST, HOP = 400, 160
"""Length of a frame of the spectrogram (25 ms) and hop between frames (10 ms), in samples."""
FRAMES, BANDS = 1024, 128
"""Frames and mel bands of a spectrogram, which covers 10.24 s."""
MEAN, DEVIATION = -4.2677393, 4.5689974
"""Mean and deviation of AudioSet's log-mel values, used to normalize spectrograms to deviation 0.5."""
PATCH, STRIDE = 16, 10
"""Size of a patch and step between patches, in frames and bands."""
PATCHES = ((FRAMES - PATCH) // STRIDE + 1) * ((BANDS - PATCH) // STRIDE + 1)

_PLACES = {
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "attention.output.dense": "self_attn.out_proj",
    "attention.o_proj": "self_attn.out_proj",
    "intermediate.dense": "linear1",
    "mlp.fc1": "linear1",
    "output.dense": "linear2",
    "mlp.fc2": "linear2",
}
"""Names of a block's layers in older and newer versions of transformers, and here."""


@register("tokenizer", "audio-spectrogram-transformer")
class AudioSpectrogramTransformer(FrozenFeatures):
    """Frozen AudioSet classifier AST (arXiv 2104.01778): 527 logits, or a 768-d embedding, for 10.24 s of 16 kHz audio.

    A frame is a window of 10.24 s; there are ``S = ceil(T / 163840)``. The last one of a longer clip is always its last
    10.24 s, and may overlap the one before: so no frame contains padding, and all frames count the same when their
    classes are compared or averaged. Only a clip shorter than a window is padded, as in training, with zeros in the
    spectrogram.

    Kaldi's mel filterbank, from 20 Hz on, normalized by AudioSet's statistics, is cut into overlapping patches for a
    transformer. The embedding is the mean of two of its outputs, which belong to no patch.

    Weights are those of transformers' ``ASTForAudioClassification``, from a hub id such as
    ``MIT/ast-finetuned-audioset-10-10-0.4593``, a folder or a file.

    Args:
        output: ``logits``, one per label (AudioSet's labels are not exclusive, so the
            model was trained with a sigmoid on each), or the ``embedding`` they are made from.
        labels: Number of labels.
        width: Width of the embedding.
        feed_forward_width: Width between the feed-forward projections.
        depth: Number of blocks.
        num_heads: Attention heads.

    Raises:
        ValueError: A value is out of range.
    """

    weight_files: ClassVar[tuple[str, ...]] = ("pytorch_model.bin",)

    def __init__(
        self,
        *,
        output: Literal["logits", "embedding"] = "logits",
        labels: int = 527,
        width: int = 768,
        feed_forward_width: int = 3072,
        depth: int = 12,
        num_heads: int = 12,
    ) -> None:
        super().__init__()
        if output not in ("logits", "embedding"):
            raise ValueError(f"output must be logits or embedding, not {output!r}")
        for name, value in (("labels", labels), ("depth", depth)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")
        if width % num_heads:
            raise ValueError(f"width {width} must be a multiple of heads, {num_heads}")
        self.logits = output == "logits"
        self.dim = labels if self.logits else width
        self.patches = nn.Conv2d(1, width, PATCH, STRIDE)
        self.outlooks = nn.Parameter(torch.zeros(1, 2, width))
        self.positions = nn.Parameter(torch.zeros(1, PATCHES + 2, width))
        self.blocks = nn.ModuleList(_block(width, num_heads, feed_forward_width) for _ in range(depth))
        self.norm = nn.LayerNorm(width, 1e-12)
        self.head_norm = nn.LayerNorm(width, 1e-12)
        self.head = nn.Linear(width, labels)
        self.freeze()

    @property
    def spec(self) -> RepresentationSpec:
        """Spec with one frame per 10.24 s."""
        return RepresentationSpec(SAMPLE_RATE, 1, SAMPLE_RATE / (FRAMES * HOP), dim=self.dim)

    @torch.no_grad()
    def encode(self, audio: Tensor) -> Tensor:
        """Audio ``[B, 1, T]`` to logits ``[B, labels, S]`` or embeddings ``[B, width, S]``."""
        with torch.autocast(audio.device.type, enabled=False):
            clips = self.mono(audio)
            length = FRAMES * HOP
            shortest = length if clips.shape[1] > length else SHORTEST
            return torch.stack([self._of(window) for window in cut(clips, length, shortest)], -1)

    def spectrogram(self, audio: Tensor) -> Tensor:
        """Audio ``[N, T]``, 400 to 163840 samples, to normalized log-mel frames ``[N, 1024, 128]``."""
        from torchaudio.compliance.kaldi import fbank

        options = {"sample_frequency": SAMPLE_RATE, "window_type": "hanning", "num_mel_bins": BANDS}
        frames = torch.stack([fbank(clip[None], **options) for clip in audio])
        return (F.pad(frames, (0, 0, 0, FRAMES - frames.shape[1])) - MEAN) / (2 * DEVIATION)

    def own_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Rename weights of transformers to the names used here."""
        if "outlooks" in state:
            return state
        own: dict[str, Tensor] = {}
        attention: dict[str, dict[str, Tensor]] = {}
        for name, tensor in state.items():
            name = name.removeprefix("audio_spectrogram_transformer.")
            name = re.sub(r"^(encoder\.layer|layers)\.", "blocks.", name)
            if match := re.fullmatch(
                r"(blocks\.\d+)\.attention\.(?:attention\.)?(query|key|value|[qkv]_proj)\.(.+)", name
            ):
                block, which, kind = match.groups()
                attention.setdefault(f"{block}.self_attn.in_proj_{kind}", {})[which[0]] = tensor
                continue
            for place, here in _PLACES.items():
                name = re.sub(rf"^(blocks\.\d+)\.{re.escape(place)}\.", rf"\1.{here}.", name)
            own[_OUTER.get(name, name)] = tensor
        for name, parts in attention.items():
            own[name] = torch.cat([parts[which] for which in "qkv" if which in parts])
        tokens = [own.pop(name) for name in ("embeddings.cls_token", "embeddings.distillation_token") if name in own]
        if tokens:
            own["outlooks"] = torch.cat(tokens, 1)
        return own

    def _of(self, audio: Tensor) -> Tensor:
        """A window ``[B, T]`` to logits or embeddings ``[B, dim]``."""
        image = self.spectrogram(audio).mT[:, None]
        tokens = self.patches(image).flatten(2).mT
        x = torch.cat([self.outlooks.expand(len(tokens), -1, -1), tokens], 1) + self.positions
        for block in self.blocks:
            x = block(x)
        embedding = self.norm(x)[:, :2].mean(1)
        return self.head(self.head_norm(embedding)) if self.logits else embedding


_OUTER = {
    "embeddings.position_embeddings": "positions",
    "embeddings.patch_embeddings.projection.weight": "patches.weight",
    "embeddings.patch_embeddings.projection.bias": "patches.bias",
    "layernorm.weight": "norm.weight",
    "layernorm.bias": "norm.bias",
    "classifier.layernorm.weight": "head_norm.weight",
    "classifier.layernorm.bias": "head_norm.bias",
    "classifier.dense.weight": "head.weight",
    "classifier.dense.bias": "head.bias",
}


def _block(width: int, num_heads: int, feed_forward_width: int) -> nn.TransformerEncoderLayer:
    return nn.TransformerEncoderLayer(
        width,
        num_heads,
        feed_forward_width,
        dropout=0.0,
        activation="gelu",
        layer_norm_eps=1e-12,
        batch_first=True,
        norm_first=True,
    )
