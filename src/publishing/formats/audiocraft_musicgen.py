"""MusicGen and AudioGen as audiocraft exports them."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ...core.registry import register
from ...errors import PartitaError
from ...storage.pretrained import read_export
from ...storage.tensor_file import write_tensors
from .audiocraft_prefix import heard
from .base import PublishedSystem
from .musicgen_slots import codec_slot, decoder_slot, figures, inner, stage

GENERATOR, CODEC = "state_dict.bin", "compression_state_dict.bin"
T5_NAMES = ("t5-small", "t5-base", "t5-large")
AUDIOGEN_STRIDE = 2.0
"""Seconds by which AudioGen continues longer sounds (audiocraft's ``extend_stride``)."""
_NAMES = {
    "cross_attention": "encoder_attn",
    "linear1": "fc1",
    "linear2": "fc2",
    "norm1": "self_attn_layer_norm",
    "norm_cross": "encoder_attn_layer_norm",
    "norm2": "final_layer_norm",
}
_OUTSIDE = {
    "out_norm.": "model.decoder.layer_norm.",
    "condition_provider.conditioners.description.output_proj.": "enc_to_dec_proj.",
    "condition_provider.conditioners.self_wav.output_proj.": "audio_enc_to_dec_proj.",
}


@register("published", "audiocraft-musicgen")
class AudiocraftMusicGen(PublishedSystem):
    """MusicGen, AudioGen, MusicGen-melody and MusicGen-Style in the two files that audiocraft exports.

    They are read as plain tensors. They hold neither the text encoder nor MERT, whose weights come from the Hub.
    """

    reads = f"MusicGen and AudioGen as audiocraft exports them ({GENERATOR} and {CODEC})"
    files = (GENERATOR, CODEC)

    @classmethod
    def detect(cls, folder: Path, config: Mapping[str, Any]) -> bool:
        """Detect the format by its two files."""
        return "model_type" not in config and all((folder / name).is_file() for name in (GENERATOR, CODEC))

    @classmethod
    def recipe(cls, folder: Path, config: Mapping[str, Any]) -> dict[str, Any]:
        """A recipe of one stage, with the sizes of the two configurations."""
        state, settings = read_export(folder / GENERATOR)
        what = "transformer_lm of the export"
        size = figures(inner(settings, "transformer_lm"), what, {"dim": 1024, "num_heads": 16, "n_q": 4})
        depth = len({found[1] for name in state if (found := re.match(r"transformer\.layers\.(\d+)\.", name))})
        widths = [len(state[name]) for name in state if name.endswith("linear1.weight")]
        pattern = (settings.get("codebooks_pattern") or {}).get("delay") or {}
        delays = figures(pattern, "delay pattern", {"delays": list(range(size["n_q"]))})["delays"]
        generator = decoder_slot(
            width=size["dim"],
            depth=depth,
            num_heads=size["num_heads"],
            feed_forward=widths[0] if widths else 4 * size["dim"],
            delays=delays,
            sampling={},
        )
        slot = codec_slot(_codec_config(read_export(folder / CODEC)[1]))
        if settings.get("interleave_stereo_codebooks", {}).get("use"):
            slot |= {"channels": 2, "channelwise": True}
        seconds = float(figures(settings.get("dataset") or {}, "data", {"segment_duration": 30})["segment_duration"])
        overlap = max(0.0, seconds - AUDIOGEN_STRIDE) if settings.get("solver") == "audiogen" else None
        conditioners, made = {"text": _text(settings)[0]}, stage(generator, seconds, overlap)
        if (recording := heard(settings, seconds)) is not None:
            conditioners[recording.name] = recording.slot
            conditioners["text"]["word_dropout"] = 0.2
            made["given"] = {recording.name: "prepend", "text": "prepend"}
            made["generator"] |= {"plain_prefix": True, **recording.generator}
            made["generator"]["sampling"] |= recording.sampling
        return {"tokenizers": {"acoustic": slot}, "conditioners": conditioners, "stages": {"acoustic": made}}

    @classmethod
    def unpack(cls, folder: Path, config: Mapping[str, Any], into: Path) -> dict[str, str]:
        """The generator in the format of transformers, the file of the codec, and the text encoder on the Hub."""
        state, settings = read_export(folder / GENERATOR)
        part = into / "decoder"
        part.mkdir()
        model_type = "musicgen_melody" if (settings.get("fuser") or {}).get("prepend") else "musicgen_decoder"
        (part / "config.json").write_text(json.dumps({"model_type": model_type}), encoding="utf-8")
        write_tensors(dict(_renamed(state)), part / "model.safetensors")
        return {
            "tokenizers/acoustic": str(folder / CODEC),
            "conditioners/text": _text(settings)[1],
            "conditioners/style": str(folder / GENERATOR),
            "stages/acoustic": str(part),
        }


def _renamed(state: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Yield the weights under their names in transformers, with queries, keys and values apart."""
    for name, tensor in state.items():
        for ours, theirs in _OUTSIDE.items():
            if name.startswith(ours):
                yield name.replace(ours, theirs), tensor.contiguous()
        if name.startswith("emb."):
            yield f"model.decoder.embed_tokens.{name.removeprefix('emb.')}", tensor.contiguous()
        elif name.startswith("linears."):
            yield f"lm_heads.{name.removeprefix('linears.')}", tensor.contiguous()
        elif found := re.fullmatch(r"transformer\.layers\.(\d+)\.(\w+)\.(.+)", name):
            number, module, rest = found.groups()
            prefix = f"model.decoder.layers.{number}.{_NAMES.get(module, module)}"
            if rest == "in_proj_weight":
                for which, part in zip("qkv", tensor.chunk(3), strict=True):
                    yield f"{prefix}.{which}_proj.weight", part.contiguous()
            else:
                yield f"{prefix}.{rest}", tensor.contiguous()


def _text(settings: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """The slot of the text encoder that the configuration names, and its hub id."""
    at: Any = settings
    for key in ("conditioners", "description", "t5"):
        at = at.get(key) if isinstance(at, Mapping) else None
    name = at.get("name", "t5-base") if isinstance(at, Mapping) else "t5-base"
    if name not in T5_NAMES:
        raise PartitaError(f"the text encoder is {name!s:.60}: only {', '.join(T5_NAMES)} can be imported")
    return {"preset": name}, f"google-t5/{name}"


def _codec_config(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of an EnCodec as transformers writes it, from that of audiocraft."""
    what = "codec of the export"
    network = inner(settings, "seanet")
    size = figures(
        network,
        what,
        {
            "dimension": 128,
            "channels": 1,
            "n_filters": 64,
            "n_residual_layers": 1,
            "ratios": [8, 5, 4, 4],
            "kernel_size": 7,
            "last_kernel_size": 7,
            "residual_kernel_size": 3,
            "dilation_base": 2,
            "causal": False,
            "pad_mode": "constant",
            "true_skip": True,
            "compress": 2,
            "lstm": 2,
            "norm": "weight_norm",
        },
    )
    books = figures(inner(settings, "rvq"), what, {"n_q": 4, "bins": 2048})
    rate = figures(settings, what, {"sample_rate": 32000})["sample_rate"]
    hop, bits = max(1, math.prod(size["ratios"])), math.ceil(math.log2(max(2, books["bins"])))
    return {
        "model_type": "encodec",
        "sampling_rate": rate,
        "audio_channels": size["channels"],
        "target_bandwidths": [(books["n_q"] + 0.5) * bits * math.ceil(rate / hop) / 1000],
        "hidden_size": size["dimension"],
        "num_filters": size["n_filters"],
        "num_residual_layers": size["n_residual_layers"],
        "upsampling_ratios": size["ratios"],
        "kernel_size": size["kernel_size"],
        "last_kernel_size": size["last_kernel_size"],
        "residual_kernel_size": size["residual_kernel_size"],
        "dilation_growth_rate": size["dilation_base"],
        "use_causal_conv": size["causal"],
        "pad_mode": size["pad_mode"],
        "compress": size["compress"],
        "num_lstm_layers": size["lstm"],
        "codebook_size": books["bins"],
        "use_conv_shortcut": not size["true_skip"],
        "norm_type": size["norm"],
    }
