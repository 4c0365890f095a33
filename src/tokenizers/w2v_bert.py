"""w2v-BERT 2.0: self-supervised features of audio, for semantic tokens."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..core.contracts import RepresentationSpec
from ..core.registry import register
from ..errors import PartitaError
from .encoding_windows import WINDOWS, Windows
from .frozen import FrozenFeatures, read_checked_config

SAMPLE_RATE = 16000
BANDS, STACK = 80, 2
"""Mel bands, and mel frames that are stacked for a frame of features."""
LENGTH, STEP = 400, 160
"""Length of a mel frame (25 ms) and step between mel frames (10 ms), in samples."""
HOP = STACK * STEP

EXPECTED = {
    "model_type": "wav2vec2-bert",
    "hidden_act": "swish",
    "position_embeddings_type": "relative_key",
    "feature_projection_input_dim": STACK * BANDS,
    "layer_norm_eps": 1e-5,
    "add_adapter": False,
    "use_intermediate_ffn_before_adapter": False,
}
"""Required values of a ``config.json``, those of w2v-BERT 2.0; other models compute differently."""

_UNUSED = ("masked_spec_embed",)
"""The embedding of masked frames, which only training needs."""


@dataclass(frozen=True)
class W2vBertShape:
    """Shape of the network; the defaults are those of w2v-BERT 2.0.

    Args:
        width: Width of the features.
        feed_forward_width: Width between the feed-forward projections.
        num_heads: Attention heads.
        kernel: Taps of the depthwise convolutions, an odd number.
        farthest_before: Largest distance of an earlier frame that attention tells apart, in frames.
        farthest_after: Largest distance of a later frame that attention tells apart, in frames.
    """

    width: int = 1024
    feed_forward_width: int = 4096
    num_heads: int = 16
    kernel: int = 31
    farthest_before: int = 64
    farthest_after: int = 8

    def __post_init__(self) -> None:
        if min(self.width, self.feed_forward_width, self.num_heads, self.kernel) < 1:
            raise ValueError(f"sizes of the network must be positive, unlike those of {self}")
        if self.width % self.num_heads:
            raise ValueError(f"width {self.width} must be a multiple of num_heads, {self.num_heads}")
        if self.kernel % 2 == 0:
            raise ValueError(f"kernel must be odd, not {self.kernel}")
        if min(self.farthest_before, self.farthest_after) < 0:
            raise ValueError(f"distances must not be negative, unlike those of {self}")


SHAPE = W2vBertShape()
"""Shape of w2v-BERT 2.0."""


@register("tokenizer", "w2v-bert")
class W2vBert(FrozenFeatures):
    """Frozen features of one layer of w2v-BERT 2.0 (arXiv 2312.05187), at 50 Hz from 16 kHz audio.

    Kaldi's log-mel frames of 10 ms are normalized per band over the window (mean zero, variance one) and stacked by two
    for a stack of Conformer layers. Frame ``s`` starts at sample ``320 · s``. The last mel frames, which would reach
    beyond the end, repeat the last whole one. Attention sees the whole window (:class:`Windows`), so a frame depends on
    how the clip was cut.

    Clusters of its features (``kmeans`` with these ``features``) are semantic tokens like those of MusicLM, whose own
    w2v-BERT is unpublished. They cannot be decoded to audio.

    Weights are those of transformers' ``Wav2Vec2BertModel`` in safetensors, from the hub id ``facebook/w2v-bert-2.0``,
    a folder or a file. Only the layers up to ``layer`` are kept. It needs the extra ``t5``.

    Args:
        layer: Layer whose output is used, from 1 to the depth of the model.
        network: Shape of the network.
        windows: The windows in which long clips are encoded.

    Raises:
        ValueError: A value is out of range.
        PartitaError: transformers is not installed.
    """

    def __init__(self, *, layer: int = 17, network: W2vBertShape = SHAPE, windows: Windows = WINDOWS) -> None:
        super().__init__()
        if layer < 1:
            raise ValueError(f"layer must be at least 1, not {layer}")
        try:
            from transformers import Wav2Vec2BertConfig, Wav2Vec2BertModel
        except ImportError:
            raise PartitaError("the w2v-bert tokenizer needs transformers: pip install 'partita[t5]'") from None
        config = Wav2Vec2BertConfig(
            hidden_size=network.width,
            num_hidden_layers=layer,
            num_attention_heads=network.num_heads,
            intermediate_size=network.feed_forward_width,
            conv_depthwise_kernel_size=network.kernel,
            left_max_position_embeddings=network.farthest_before,
            right_max_position_embeddings=network.farthest_after,
            mask_time_prob=0.0,
        )
        self.network = Wav2Vec2BertModel(config)
        self.layer, self.shape, self.windows = layer, network, windows
        self.freeze()

    @property
    def spec(self) -> RepresentationSpec:
        """Spec with one feature vector per 320 samples."""
        return RepresentationSpec(SAMPLE_RATE, 1, SAMPLE_RATE / HOP, dim=self.shape.width)

    @torch.no_grad()
    def encode(self, audio: Tensor) -> Tensor:
        """Audio ``[B, 1, T]`` to features ``[B, width, ceil(T / 320)]``."""

        def features(window: Tensor) -> Tensor:
            return self.network(self._stacked(self.mono(window))).last_hidden_state.mT

        with torch.autocast(audio.device.type, enabled=False):
            return self.windows.encode(features, audio, HOP, self.spec.rate)

    def load_weights(self, source: str | Path) -> None:
        """Load a folder that :meth:`save` wrote, or the weights of w2v-BERT 2.0.

        Args:
            source: A ``.safetensors`` file, a folder with such a file, or a hub id.

        Raises:
            PartitaError: ``source`` has no weights, cannot be reached, or holds those of another model.
        """
        read_checked_config(source, self._expected, "not this w2v-BERT 2.0", "w2v-bert")
        super().load_weights(source)

    def own_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Rename the weights to the names used here, and keep only those of the layers in use."""
        own = {}
        for name, tensor in state.items():
            block = re.match(r"encoder\.layers\.(\d+)\.", name)
            if name.startswith(_UNUSED) or (block and int(block[1]) >= self.layer):
                continue
            own[name if name.startswith("network.") else f"network.{name}"] = tensor
        return own

    @property
    def _expected(self) -> dict[str, Any]:
        """Required values of a ``config.json`` that the shapes of the weights do not tell."""
        return EXPECTED | {
            "num_attention_heads": self.shape.num_heads,
            "left_max_position_embeddings": self.shape.farthest_before,
            "right_max_position_embeddings": self.shape.farthest_after,
        }

    def _stacked(self, audio: Tensor) -> Tensor:
        """Normalized log-mel frames ``[B, S, 160]`` of a window ``[B, T]``."""
        from torchaudio.compliance.kaldi import fbank

        options = {"sample_frequency": SAMPLE_RATE, "num_mel_bins": BANDS}
        frames = -(-audio.shape[1] // HOP) * STACK
        padded = F.pad(audio, (0, max(0, LENGTH - audio.shape[1]))) * 2**15  # Kaldi's audio is 16-bit integers
        mel = torch.stack([fbank(clip[None], **options) for clip in padded])
        variance, mean = torch.var_mean(mel, 1, correction=min(1, mel.shape[1] - 1), keepdim=True)
        mel = (mel - mean) / (variance + 1e-7).sqrt()
        missing = mel[:, -1:].expand(-1, max(0, frames - mel.shape[1]), -1)
        return torch.cat([mel, missing], 1)[:, :frames].unflatten(1, (-1, STACK)).flatten(2)
