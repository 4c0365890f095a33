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
    """MusicGen or MusicGen-melody in the format of transformers: its decoder and the projections of its conditions."""

    reads = "MusicGen in the format of transformers (musicgen, musicgen_decoder, musicgen_melody)"
    parts: ClassVar = {"generator": ("autoregressive",)}

    @classmethod
    def detect(cls, config: Mapping[str, Any]) -> bool:
        """Detect the format by the model type."""
        return config.get("model_type") in ("musicgen", "musicgen_decoder", "musicgen_melody")

    @classmethod
    def convert(cls, part: Any, folder: Path, config: Mapping[str, Any]) -> dict[str, Tensor]:
        """The state of an autoregressive stage with a transformer.

        Its first cross-attention condition is the text. That of MusicGen-melody has two conditions in a prefix: the
        melody and the text. A stage can have other conditions that are added frame by frame, which MusicGen does not
        have (MusiConGen, arXiv 2407.15060): their projections are zero, so that nothing changes before training.
        """
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
        melody = config.get("model_type") == "musicgen_melody"
        named = [name for name, given in part.given.items() if ("prepend" if melody else "cross") in given.fusions]
        if melody and (len(named) != 2 or not part.plain_prefix):
            raise PartitaError(
                f"{folder}: MusicGen-melody has a prefix of melody and text: set plain_prefix to true, and let the "
                "stage be given a melody and a text, in this order, by prepend"
            )
        projections = ("audio_enc_to_dec_proj", "enc_to_dec_proj") if melody else ("enc_to_dec_proj",)
        prefixes = ("decoder.", "model.", "lm_heads.", *(f"{name}." for name in projections))
        state = read_safetensors(folder, lambda name: name.startswith(prefixes))
        new = convert(state, dict(zip(projections, named, strict=False)))
        others = [name for name, given in part.given.items() if given.fusions == ("add",)]
        added = tuple(f"conditioning.projections.{name}." for name in others)
        return new | {key: torch.zeros_like(t) for key, t in part.exported_state().items() if key.startswith(added)}


def convert(state: Mapping[str, Tensor], conditions: Mapping[str, str]) -> dict[str, Tensor]:
    """Rename and join the weights of ``MusicgenForCausalLM`` or ``MusicgenForConditionalGeneration``.

    Parameters that the checkpoint does not have are left out: the caller reports them.

    Args:
        state: Weights of either model; those of the second that do not belong to the decoder are ignored.
        conditions: Name of the condition of each projection in the checkpoint.
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
        elif (projection := name.partition(".")[0]) in conditions:
            new[f"conditioning.projections.{conditions[projection]}." + name.rsplit(".", 1)[1]] = tensor
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
