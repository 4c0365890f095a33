"""DAC checkpoints in the format of transformers, as weights of a codec that trains."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...core.checkpoint import Checkpoint
from ...core.registry import register
from ...errors import PartitaError
from ...storage.pretrained import fold_weight_norm, read_safetensors, split_weight_norm


@register("checkpoint", "dac")
class TransformersDAC(Checkpoint):
    """DAC in the format of transformers, such as ``descript/dac_44khz``."""

    reads = "DAC in the format of transformers (dac)"
    parts: ClassVar = {"tokenizer": ("codec",)}

    @classmethod
    def detect(cls, config: Mapping[str, Any]) -> bool:
        """Detect the format by the model type."""
        return config.get("model_type") == "dac"

    @classmethod
    def convert(cls, part: Any, folder: Path, config: Mapping[str, Any]) -> dict[str, Tensor]:
        """The state of a codec with the autoencoder ``dac`` and the bottleneck ``factorized-rvq``."""
        found = [part.autoencoder.registered_name, part.bottleneck.registered_name]
        if found != ["dac", "factorized-rvq"]:
            raise PartitaError(
                f"{folder} holds a DAC: set autoencoder to dac and bottleneck to factorized-rvq, not {found[0]} and "
                f"{found[1]}"
            )
        if differences := _differences(part, config):
            raise PartitaError(f"{folder} holds another DAC than this codec:\n  " + "\n  ".join(differences))
        own, theirs = part.exported_state(), _modules(part)
        state: dict[str, Tensor] = {}
        for name, tensor in fold_weight_norm(read_safetensors(folder, lambda _: True)).items():
            module, _, kind = name.rpartition(".")
            if module.endswith(".codebook") and kind == "weight":
                state[f"{theirs.get(module, module)}.entries"] = tensor
            elif kind == "alpha" and tensor.dim() == 3 and len(tensor) == 1:
                state[f"{theirs.get(module, module)}.alpha"] = tensor[0]
            else:
                state |= split_weight_norm(f"{theirs.get(module, module)}.{kind}", tensor, own)
        if "bottleneck.started" in own:  # its entries are no longer random, so they are trained at once
            state["bottleneck.started"] = torch.tensor(True)
        if "bottleneck.usage" in own:
            state["bottleneck.usage"] = torch.ones(len(part.bottleneck.codebooks), part.bottleneck.cardinality)
        return state


def _differences(part: Any, config: Mapping[str, Any]) -> list[str]:
    """Return a line for each figure of a configuration in which a codec differs from it."""
    autoencoder, bottleneck = part.autoencoder, part.bottleneck
    own = {
        "sampling_rate": ("sample_rate", part.sample_rate),
        "encoder_hidden_size": ("autoencoder.encoder_width", autoencoder.encoder_width),
        "decoder_hidden_size": ("autoencoder.decoder_width", autoencoder.decoder_width),
        "downsampling_ratios": ("autoencoder.strides", autoencoder.strides),
        "hidden_size": ("dim", bottleneck.dim),
        "n_codebooks": ("bottleneck.num_codebooks", bottleneck.num_codebooks),
        "codebook_size": ("bottleneck.cardinality", bottleneck.cardinality),
        "codebook_dim": ("bottleneck.codebook_dim", bottleneck.codebook_dim),
    }
    lines = [
        f"{name} must be {config[key]!s:.80}, not {value}"
        for key, (name, value) in own.items()
        if key in config and config[key] != value
    ]
    if autoencoder.dilations != [1, 3, 9]:
        lines.append(f"autoencoder.dilations must be [1, 3, 9], not {autoencoder.dilations}")
    if part.channels != 1:
        lines.append(f"channels must be 1, not {part.channels}")
    return lines


def _modules(part: Any) -> dict[str, str]:
    """Return the names of a codec's modules by those that they have in transformers."""
    units, blocks = len(part.autoencoder.dilations), len(part.autoencoder.strides)
    size = units + 2
    names: dict[str, str] = {}
    inner = {"snake1": "0", "conv1": "1.convolution", "snake2": "2", "conv2": "3.convolution"}
    # A block of the encoder ends with its Snake and its stride, and one of the decoder begins with them.
    for network, stride, snake, first in (("encoder", "conv1", units, 0), ("decoder", "conv_t1", 0, 2)):
        ours = f"autoencoder.{network}"
        for block in range(blocks):
            theirs, start = f"{network}.block.{block}", 1 + block * size
            names[f"{theirs}.snake1"] = f"{ours}.{start + snake}"
            names[f"{theirs}.{stride}"] = f"{ours}.{start + snake + 1}.convolution"
            for unit in range(units):
                branch = f"{ours}.{start + first + unit}.branch"
                names |= {f"{theirs}.res_unit{unit + 1}.{one}": f"{branch}.{other}" for one, other in inner.items()}
        end = 1 + blocks * size
        names[f"{network}.conv1"] = f"{ours}.0.convolution"
        names[f"{network}.snake1"] = f"{ours}.{end}"
        names[f"{network}.conv2"] = f"{ours}.{end + 1}.convolution"
    for k in range(part.bottleneck.num_codebooks):
        prefix, ours = f"quantizer.quantizers.{k}.", f"bottleneck.codebooks.{k}"
        names |= {f"{prefix}in_proj": f"{ours}.input", f"{prefix}out_proj": f"{ours}.output", f"{prefix}codebook": ours}
    return names
