"""MusicGen checkpoints in the format of transformers, as weights of an autoregressive stage."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...core.checkpoint import Checkpoint
from ...core.registry import register
from ...errors import PartitaError
from ...storage.pretrained import read_safetensors

_BLOCK = re.compile(r"model\.decoder\.layers\.(\d+)\.(.+)\.(weight|bias)")
_SINGLE = {
    "self_attn.out_proj": "self_attention.output",
    "self_attn_layer_norm": "self_norm",
    "encoder_attn.q_proj": "cross_attention.query",
    "encoder_attn.out_proj": "cross_attention.output",
    "encoder_attn_layer_norm": "cross_norm",
    "fc1": "feed_forward.expand",
    "fc2": "feed_forward.contract",
    "final_layer_norm": "feed_forward_norm",
}
_JOINED = {
    "self_attention.query_key_value": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "cross_attention.key_value": ("encoder_attn.k_proj", "encoder_attn.v_proj"),
}


@register("checkpoint", "musicgen")
class MusicGen(Checkpoint):
    """MusicGen in the format of transformers: its decoder and its text projection."""

    reads = "MusicGen in the format of transformers (musicgen, musicgen_decoder)"
    parts: ClassVar = {"generator": ("autoregressive",)}

    @classmethod
    def detect(cls, config: Mapping[str, Any]) -> bool:
        """Detect the format by the model type."""
        return config.get("model_type") in ("musicgen", "musicgen_decoder")

    @classmethod
    def convert(cls, part: Any, folder: Path, config: Mapping[str, Any]) -> dict[str, Tensor]:
        """The state of an autoregressive stage with a transformer; its first cross-attention condition is the text."""
        backbone = part.backbone
        if backbone.registered_name != "transformer":
            raise PartitaError(
                f"{folder} holds a transformer: set backbone to transformer, not {backbone.registered_name}"
            )
        if backbone.positions != "sinusoidal" or backbone.block.activation != "gelu":
            raise PartitaError(
                f"{folder}: MusicGen has sinusoidal positions and GELU; set backbone.positions and "
                "backbone.block.activation so"
            )
        attended = [name for name, given in part.given.items() if given.fusion == "cross"]
        prefixes = ("decoder.", "model.", "lm_heads.", "enc_to_dec_proj.")
        return convert(
            read_safetensors(folder, lambda name: name.startswith(prefixes)), attended[0] if attended else ""
        )


def convert(state: Mapping[str, Tensor], condition: str) -> dict[str, Tensor]:
    """Rename and join the weights of ``MusicgenForCausalLM`` or ``MusicgenForConditionalGeneration``.

    Parameters that the checkpoint does not have are left out: the caller reports them.

    Args:
        state: Weights of either model; those of the second that do not belong to the decoder are ignored.
        condition: Name of the cross-attention condition whose projection is in the checkpoint.
    """
    flat = {name.removeprefix("decoder."): tensor for name, tensor in state.items()}
    new: dict[str, Tensor] = {}
    layers: dict[str, dict[str, Tensor]] = {}
    for name, tensor in flat.items():
        if match := _BLOCK.fullmatch(name):
            index, module, kind = match.groups()
            if module in _SINGLE:
                new[f"backbone.layers.blocks.{index}.{_SINGLE[module]}.{kind}"] = tensor
            else:
                layers.setdefault(index, {})[module] = tensor
        elif name.startswith("model.decoder.layer_norm."):
            new["backbone.layers.norm." + name.rsplit(".", 1)[1]] = tensor
        elif name.startswith("enc_to_dec_proj."):
            new[f"conditioning.projections.{condition}." + name.rsplit(".", 1)[1]] = tensor
    for index, modules in layers.items():
        for target, sources in _JOINED.items():
            if modules.keys() >= set(sources):
                new[f"backbone.layers.blocks.{index}.{target}.weight"] = torch.cat(
                    [modules[source] for source in sources]
                )
    for target, source in (("embeddings", "model.decoder.embed_tokens"), ("output_heads", "lm_heads")):
        parts = {int(n.split(".")[-2]): t for n, t in flat.items() if n.startswith(f"{source}.")}
        if parts:
            new[f"{target}.weight"] = torch.cat([parts[k] for k in sorted(parts)])
    return new
