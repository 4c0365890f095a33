"""MusicGen checkpoints in the format of transformers, as weights of an autoregressive stage."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ..errors import PartitaError
from ..storage.files import kind
from ..storage.pretrained import checkpoint_folder, read_config, read_safetensors

MODEL_TYPES = ("musicgen", "musicgen_decoder")

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


def read_musicgen(source: str | Path, condition: str) -> dict[str, Tensor] | None:
    """The state of an autoregressive stage from a checkpoint of transformers; none where ``source`` is no such thing.

    Args:
        source: A folder, or a hub id such as ``facebook/musicgen-small``.
        condition: Name of what the stage attends to, whose projection is in the checkpoint.

    Raises:
        PartitaError: There is no such checkpoint, or it is of another kind of model.
    """
    if kind(source) == "file":
        return None
    folder = checkpoint_folder(source)
    config = read_config(folder)
    if "family" in config:
        return None
    if config.get("model_type") not in MODEL_TYPES:
        held = config.get("model_type", "unknown")
        raise PartitaError(f"{source} holds a model of type {held}: this stage takes {' or '.join(MODEL_TYPES)}")
    prefixes = ("decoder.", "model.", "lm_heads.", "enc_to_dec_proj.")
    return convert(read_safetensors(folder, lambda name: name.startswith(prefixes)), condition)


def convert(state: Mapping[str, Tensor], condition: str) -> dict[str, Tensor]:
    """Rename and join the weights of ``MusicgenForCausalLM`` or ``MusicgenForConditionalGeneration``.

    What is missing stays missing; whoever loads the result names it.

    Args:
        state: Of either model; of the second, what does not belong to the decoder is left out.
        condition: Name of what the stage attends to.
    """
    flat = {name.removeprefix("decoder."): tensor for name, tensor in state.items()}
    new: dict[str, Tensor] = {}
    layers: dict[str, dict[str, Tensor]] = {}
    for name, tensor in flat.items():
        if match := _BLOCK.fullmatch(name):
            index, module, kind = match.groups()
            if module in _SINGLE:
                new[f"transformer.blocks.{index}.{_SINGLE[module]}.{kind}"] = tensor
            else:
                layers.setdefault(index, {})[module] = tensor
        elif name.startswith("model.decoder.layer_norm."):
            new["transformer.norm." + name.rsplit(".", 1)[1]] = tensor
        elif name.startswith("enc_to_dec_proj."):
            new[f"conditioning.projections.{condition}." + name.rsplit(".", 1)[1]] = tensor
    for index, modules in layers.items():
        for target, sources in _JOINED.items():
            if modules.keys() >= set(sources):
                new[f"transformer.blocks.{index}.{target}.weight"] = torch.cat([modules[source] for source in sources])
    for target, source in (("embeddings", "model.decoder.embed_tokens"), ("output_heads", "lm_heads")):
        parts = {int(n.split(".")[-2]): t for n, t in flat.items() if n.startswith(f"{source}.")}
        if parts:
            new[f"{target}.weight"] = torch.cat([parts[k] for k in sorted(parts)])
    return new
