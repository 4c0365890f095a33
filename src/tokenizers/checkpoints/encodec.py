"""EnCodec checkpoints of transformers, the encodec package and audiocraft, as weights of a codec that trains."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...core.checkpoint import Checkpoint
from ...core.registry import register
from ...errors import PartitaError
from ...storage.pretrained import fold_weight_norm, read_safetensors, read_weights, split_weight_norm

_CODEBOOK = re.compile(r"quantizer\.(?:vq\.)?layers\.(\d+)\.(?:_codebook|codebook)\.(\w+)")


@register("checkpoint", "encodec")
class EnCodecCheckpoint(Checkpoint):
    """EnCodec in the format of transformers, such as ``facebook/encodec_24khz``, or a file of the encodec package."""

    reads = "EnCodec in the format of transformers (encodec), or the files of the encodec package and audiocraft"
    parts: ClassVar = {"tokenizer": ("codec",)}

    @classmethod
    def detect(cls, config: Mapping[str, Any]) -> bool:
        """Detect the format by the model type."""
        return config.get("model_type") == "encodec"

    @classmethod
    def reads_file(cls, path: Path) -> bool:
        """Detect the files of the encodec package (``.th``) and of audiocraft (``.bin``)."""
        return path.suffix in (".th", ".bin")

    @classmethod
    def convert(cls, part: Any, folder: Path, config: Mapping[str, Any]) -> dict[str, Tensor]:
        """The state of a codec with the autoencoder ``seanet`` and the bottleneck ``rvq``."""
        found = [part.autoencoder.registered_name, part.bottleneck.registered_name]
        if found != ["seanet", "rvq"]:
            raise PartitaError(
                f"{folder} holds an EnCodec: set autoencoder to seanet and bottleneck to rvq, not {found[0]} and "
                f"{found[1]}"
            )
        if differences := _differences(part, config):
            raise PartitaError(f"{folder} holds another EnCodec than this codec:\n  " + "\n  ".join(differences))
        weights = read_weights(folder) if folder.is_file() else read_safetensors(folder, lambda _: True)
        return _converted(fold_weight_norm(weights), part.exported_state())


def _converted(weights: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename weights, and divide those that the codec normalizes into length and direction."""
    state: dict[str, Tensor] = {}
    books: dict[str, dict[str, Tensor]] = {}
    for name, tensor in weights.items():
        if found := _CODEBOOK.fullmatch(name):
            books.setdefault(found[1], {})[found[2]] = tensor
        else:
            state |= split_weight_norm(_own_name(name), tensor, own)
    for number, book in books.items():
        state |= _codebook(f"bottleneck.layers.layers.{number}._codebook.", book)
    if books:
        state["bottleneck.started"] = torch.tensor(True)
    return state


def _own_name(name: str) -> str:
    """The name of a weight here; names that are not of an EnCodec are returned unchanged."""
    found = re.fullmatch(r"(encoder|decoder)\.(?:layers|model)\.(.+)", name)
    if found is None:
        return name
    rest = re.sub(r"\b(conv|convtr)\.(?:conv|convtr)\.", "convolution.", found[2])
    rest = re.sub(r"\b(conv|convtr)\.norm\.", "norm.", rest)
    rest = re.sub(r"\bconv\.", "convolution.", rest).replace("block.", "branch.")
    return f"autoencoder.{found[1]}.layers.{rest}"


def _codebook(prefix: str, book: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state of a codebook. Its moving averages continue from where they were, or start at equal shares."""
    entries = book.get("embed")
    if entries is None:
        return {}
    counts = book.get("cluster_size", entries.new_zeros(len(entries)))
    if not counts.any() or counts.shape != entries.shape[:1]:
        counts = torch.ones_like(entries[:, 0])
    return {
        f"{prefix}embed": entries[None],
        f"{prefix}cluster_size": counts[None],
        f"{prefix}embed_avg": (entries * counts[:, None])[None],
        f"{prefix}initted": torch.tensor(True),
    }


def _differences(part: Any, config: Mapping[str, Any]) -> list[str]:
    """Return a line for each figure of a configuration in which a codec differs from it."""
    network, bottleneck = part.autoencoder.network, part.bottleneck
    own = {
        "sampling_rate": ("sample_rate", part.sample_rate),
        "audio_channels": ("channels", part.channels // part.streams),
        "hidden_size": ("dim", bottleneck.dim),
        "codebook_size": ("bottleneck.cardinality", bottleneck.cardinality),
        "num_filters": ("autoencoder.network.width", network.width),
        "upsampling_ratios": ("autoencoder.network.strides, reversed,", list(network.strides[::-1])),
        "kernel_size": ("autoencoder.network.kernel", network.kernel),
        "last_kernel_size": ("autoencoder.network.last_kernel", network.last_kernel),
        "residual_kernel_size": ("autoencoder.network.residual_kernel", network.residual_kernel),
        "compress": ("autoencoder.network.compress", network.compress),
        "num_lstm_layers": ("autoencoder.network.lstm_layers", network.lstm_layers),
        "use_causal_conv": ("autoencoder.network.causal", network.causal),
        "use_conv_shortcut": ("autoencoder.network.shortcut: conv", network.shortcut == "conv"),
        "norm_type": ("autoencoder.network.normalization", network.normalization),
        "pad_mode": ("autoencoder.network.edges", {"zero": "constant"}.get(network.edges, network.edges)),
        "normalize": ("level", part.level is not None),
    }
    lines = [
        f"{name} must be {config[key]!s:.80}, not {value}"
        for key, (name, value) in own.items()
        if key in config and config[key] != value
    ]
    bandwidths = config.get("target_bandwidths")
    if isinstance(bandwidths, list) and bandwidths and isinstance(bandwidths[-1], int | float):
        books = num_codebooks(
            bandwidths[-1], math.ceil(part.sample_rate / part.autoencoder.hop), bottleneck.cardinality
        )
        if books != bottleneck.num_codebooks:
            lines.append(f"bottleneck.num_codebooks must be {books}, not {bottleneck.num_codebooks}")
    return lines


def num_codebooks(bandwidth: float, frame_rate: int, cardinality: int) -> int:
    """The number of codebooks of a bandwidth in kbit/s.

    >>> num_codebooks(24.0, 75, 1024), num_codebooks(2.2, 50, 2048)
    (32, 4)
    """
    return max(1, int(bandwidth * 1000 // (frame_rate * math.ceil(math.log2(max(2, cardinality))))))
