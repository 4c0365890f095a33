"""The style conditioner of MusicGen-Style as audiocraft exports it with the whole system."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..core.checkpoint import Checkpoint
from ..core.registry import register
from ..errors import PartitaError
from ..storage.pretrained import read_weights

MERT = "m-a-p/MERT-v1-95M"
"""Where the features are, which the file does not hold."""

PREFIX = "condition_provider.conditioners.self_wav."

_BLOCK = {
    "self_attn.in_proj_weight": "self_attention.query_key_value.weight",
    "self_attn.out_proj.weight": "self_attention.output.weight",
    "linear1.weight": "feed_forward.expand.weight",
    "linear2.weight": "feed_forward.contract.weight",
    "norm1.weight": "self_norm.weight",
    "norm1.bias": "self_norm.bias",
    "norm2.weight": "feed_forward_norm.weight",
    "norm2.bias": "feed_forward_norm.bias",
}
_SINGLE = {
    "embed.weight": "projection.weight",
    "embed.bias": "projection.bias",
    "batch_norm.running_mean": "mean",
    "batch_norm.running_var": "variance",
}
_BOOK = {"embed": "embed", "embed_avg": "embed_avg", "cluster_size": "cluster_size", "inited": "initted"}


@register("checkpoint", "audiocraft-style")
class AudiocraftStyle(Checkpoint):
    """The style conditioner in a ``state_dict.bin`` of MusicGen-Style. Its features are those of MERT, from the Hub."""

    reads = "the style conditioner in a state_dict.bin of MusicGen-Style"
    parts: ClassVar = {"conditioner": ("style",)}

    @classmethod
    def detect(cls, config: Mapping[str, Any]) -> bool:
        """No folder holds such a checkpoint."""
        return False

    @classmethod
    def reads_file(cls, path: Path) -> bool:
        """Detect the file by its ending."""
        return path.suffix == ".bin"

    @classmethod
    def convert(cls, part: Any, folder: Path, config: Mapping[str, Any]) -> dict[str, Tensor]:
        """The state of a style conditioner with the bottleneck ``rvq``."""
        found = part.bottleneck.registered_name, part.features.registered_name
        if found != ("rvq", "hubert"):
            raise PartitaError(
                f"{folder} holds a style of MERT: set bottleneck to rvq and features to mert-95m, not "
                f"{' and '.join(found)}"
            )
        part.features.load_weights(MERT)
        state = {f"features.{name}": tensor for name, tensor in part.features.exported_state().items()}
        for name, tensor in read_weights(folder).items():
            if not name.startswith(PREFIX):
                continue
            own = name.removeprefix(PREFIX)
            if own in _SINGLE:
                state[_SINGLE[own]] = tensor
            elif (block := re.fullmatch(r"transformer\.layers\.(\d+)\.(.+)", own)) and block[2] in _BLOCK:
                state[f"transformer.blocks.{block[1]}.{_BLOCK[block[2]]}"] = tensor
            elif (book := re.fullmatch(r"rvq\.vq\.layers\.(\d+)\._codebook\.(\w+)", own)) and book[2] in _BOOK:
                value = tensor.bool().squeeze() if book[2] == "inited" else tensor[None]
                state[f"bottleneck.layers.layers.{book[1]}._codebook.{_BOOK[book[2]]}"] = value
                state["bottleneck.started"] = torch.tensor(True)
        return state
