"""HuBERT and MERT: self-supervised features of audio, for semantic tokens."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils import parametrize

from ..core.contracts import RepresentationSpec
from ..core.registry import register
from ..errors import PartitaError
from .frozen import FrozenFeatures, read_checked_config

HOP, REACH = 320, 400
"""Hop between frames and receptive field of a frame's convolutions, in samples."""

EXPECTED = {
    "feat_extract_norm": "group",
    "feat_proj_layer_norm": True,
    "do_stable_layer_norm": False,
    "conv_pos_batch_norm": False,
    "conv_bias": False,
    "conv_stride": [5, 2, 2, 2, 2, 2, 2],
    "conv_kernel": [10, 3, 3, 3, 3, 2, 2],
    "feature_extractor_cqt": False,
    "deepnorm": False,
    "attention_relax": -1.0,
}
"""Required values of a ``config.json``, those of HuBERT base and MERT-v1-95M; other models compute differently."""

_UNUSED = ("masked_spec_embed", "final_proj.", "label_embs_concat", "encoder_cqt_model.", "encoder_mel_model.")
"""Weights that only training needs: the embedding of masked frames, and the prediction heads."""


@dataclass(frozen=True)
class HuBERTShape:
    """Shape of the network; the defaults are those of the base models.

    Args:
        width: Width of the features.
        feed_forward_width: Width between the feed-forward projections.
        num_heads: Attention heads.
        convolution_width: Channels of the convolutions.
        position_kernel: Taps of the convolution that encodes positions.
        position_groups: Groups of that convolution.
    """

    width: int = 768
    feed_forward_width: int = 3072
    num_heads: int = 12
    convolution_width: int = 512
    position_kernel: int = 128
    position_groups: int = 16

    def __post_init__(self) -> None:
        if min(self.num_heads, self.position_groups) < 1:
            raise ValueError(
                f"num_heads and position_groups must be positive, not {self.num_heads} and {self.position_groups}"
            )
        if self.width % self.num_heads or self.width % self.position_groups:
            raise ValueError(
                f"width {self.width} must be a multiple of num_heads, {self.num_heads}, and position_groups, "
                f"{self.position_groups}"
            )


SHAPE = HuBERTShape()
"""Shape of HuBERT base and of MERT-v1-95M."""


@register("tokenizer", "hubert")
class HuBERT(FrozenFeatures):
    """Frozen features of one layer of HuBERT base (arXiv 2106.07447), or of MERT-v1-95M (arXiv 2306.00107).

    Seven convolutions yield a frame per 320 samples: 50 a second of 16 kHz speech (HuBERT), 75 of 24 kHz music (MERT).
    Attention then sees the whole clip, so a frame depends on how the clip was cut. Frame ``s`` starts at sample
    ``320 · s``; silence is appended, because the last frame reaches 80 samples further than a hop.

    Their clusters (``kmeans`` with these ``features``) are the semantic tokens of audiolm-pytorch (HuBERT, layer 9)
    and open-musiclm (MERT, layer 7). They cannot be decoded to audio.

    Weights are those of transformers' ``HubertModel`` or of MERT, from a hub id such as ``m-a-p/MERT-v1-95M``, a folder
    or a file. Only the layers up to ``layer`` are kept. It needs the extra ``t5``.

    Args:
        sample_rate: Sample rate of the training audio of the weights, in Hz.
        layer: Number of the block whose output is used, counted from 1.
        normalize: Whether to normalize each clip to mean 0 and variance 1, as MERT's feature extractor does.
        pad: Whether silence is appended, without which clips have a frame less, as where audiocraft hears styles. Clips
            that are shorter than a frame are padded in any case.
        network: Shape of the network.

    Raises:
        ValueError: A value is out of range.
        PartitaError: transformers is not installed.
    """

    weight_files: ClassVar[tuple[str, ...]] = ("pytorch_model.bin",)

    def __init__(
        self,
        *,
        sample_rate: int = 16000,
        layer: int = 9,
        normalize: bool = True,
        pad: bool = True,
        network: HuBERTShape = SHAPE,
    ) -> None:
        super().__init__()
        for name, value in (("sample_rate", sample_rate), ("layer", layer)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")
        try:
            from transformers import HubertConfig, HubertModel
        except ImportError:
            raise PartitaError("the hubert tokenizer needs transformers: pip install 'partita[t5]'") from None
        config = HubertConfig(
            hidden_size=network.width,
            num_hidden_layers=layer,
            num_attention_heads=network.num_heads,
            intermediate_size=network.feed_forward_width,
            conv_dim=[network.convolution_width] * 7,
            num_conv_pos_embeddings=network.position_kernel,
            num_conv_pos_embedding_groups=network.position_groups,
            mask_time_prob=0.0,
        )
        self.network = HubertModel(config)
        # Weight normalization of the position convolution is only needed in training.
        parametrize.remove_parametrizations(self.network.encoder.pos_conv_embed.conv, "weight")
        self.sample_rate, self.layer, self.normalize, self.pad = sample_rate, layer, normalize, pad
        self.freeze()

    @property
    def spec(self) -> RepresentationSpec:
        """Spec with one feature vector per 320 samples."""
        return RepresentationSpec(self.sample_rate, 1, self.sample_rate / HOP, dim=self.network.config.hidden_size)

    @torch.no_grad()
    def encode(self, audio: Tensor) -> Tensor:
        """Audio ``[B, 1, T]`` to features ``[B, width, ceil(T / 320)]``, or ``(T - 80) // 320`` without ``pad``."""
        with torch.autocast(audio.device.type, enabled=False):
            clips = self.mono(audio)
            if self.normalize:
                variance, mean = torch.var_mean(clips, 1, correction=0, keepdim=True)
                clips = (clips - mean) * (variance + 1e-7).rsqrt()
            frames = -(-clips.shape[1] // HOP)
            missing = (frames - 1) * HOP + REACH - clips.shape[1]
            padded = F.pad(clips, (0, missing)) if self.pad or clips.shape[1] < REACH else clips
            return self.network(padded).last_hidden_state.mT

    def load_weights(self, source: str | Path) -> None:
        """Load a folder that :meth:`save` wrote, or weights of HuBERT base or MERT-v1-95M.

        Args:
            source: A ``.safetensors`` or ``.bin`` file, a folder with such a file, or a hub id.

        Raises:
            PartitaError: ``source`` has no weights, cannot be reached, or holds those of another model.
        """
        config = read_checked_config(source, EXPECTED, "neither HuBERT base nor MERT-v1-95M", "hubert")
        if config.get("sample_rate", self.sample_rate) != self.sample_rate:
            raise PartitaError(
                f"{source} was trained on audio at {config['sample_rate']} Hz: set sample_rate to that, not "
                f"{self.sample_rate}"
            )
        super().load_weights(source)

    def own_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Rename the weights to the names used here, and keep only those of the layers in use."""
        own = {}
        for name, tensor in _folded(state).items():
            block = re.match(r"encoder\.layers\.(\d+)\.", name)
            if name.startswith(_UNUSED) or (block and int(block[1]) >= self.layer):
                continue
            own[name if name.startswith("network.") else f"network.{name}"] = tensor
        return own


def _folded(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Fold weight normalization, stored under either naming of PyTorch, into plain weights."""
    for length, direction in (
        ("weight_g", "weight_v"),
        ("parametrizations.weight.original0", "parametrizations.weight.original1"),
    ):
        prefix = "encoder.pos_conv_embed.conv."
        if prefix + length in state and prefix + direction in state:
            state = dict(state)
            weight = torch._weight_norm(state.pop(prefix + direction), state.pop(prefix + length), 2)
            state[prefix + "weight"] = weight
    return state
