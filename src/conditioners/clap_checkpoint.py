"""Checkpoints of CLAP, both from LAION and from transformers, read under the same names."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import PartitaError
from ..storage.files import kind
from ..storage.pretrained import WEIGHTS, checkpoint_folder, read_config, read_safetensors, read_weights
from ..storage.text_tokenizer import read_text_tokenizer
from ..storage.untrusted import read_json

TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json", "merges.txt")
"""Files of a RoBERTa text tokenizer."""

ROBERTA = "FacebookAI/roberta-base"
"""Hub id of the text tokenizer for LAION's files, which contain none."""

FRONT_END = {
    "sampling_rate": 48000,
    "feature_size": 64,
    "fft_window_size": 1024,
    "hop_length": 480,
    "frequency_min": 50,
    "frequency_max": 14000,
}
"""Parameters of the mel spectra of LAION's models, as in transformers' ``preprocessor_config.json``."""

CONSTANTS = ("relative_position_index", "position_ids", "token_type_ids")
"""Buffers that are derived from the sizes."""

_UNUSED = (
    "text_transform.",
    "audio_transform.",
    "logit_scale_",
    "audio_branch.spectrogram_extractor.",
    "audio_branch.logmel_extractor.",
    "audio_branch.tscam_conv.",
    "audio_branch.head.",
)
"""Unused weights of LAION's files: training heads, temperatures, and the mel front end as convolutions."""

_RENAMED = (
    (r"^text_branch\.", "text.text_model."),
    (r"^audio_branch\.bn0\.", "audio.audio_model.audio_encoder.batch_norm."),
    (r"^audio_branch\.", "audio.audio_model.audio_encoder."),
    (r"^(text|audio)_projection\.0\.", r"\1.\1_projection.linear1."),
    (r"^(text|audio)_projection\.2\.", r"\1.\1_projection.linear2."),
    (r"(blocks\.\d+)\.attn\.proj\.", r"\1.attention.output.dense."),
    (r"(blocks\.\d+)\.attn\.", r"\1.attention.self."),
    (r"(blocks\.\d+)\.norm1\.", r"\1.layernorm_before."),
    (r"(blocks\.\d+)\.norm2\.", r"\1.layernorm_after."),
    (r"(blocks\.\d+)\.mlp\.fc1\.", r"\1.intermediate.dense."),
    (r"(blocks\.\d+)\.mlp\.fc2\.", r"\1.output.dense."),
)


def laion_file(source: str | Path) -> Path | None:
    """The LAION file that ``source`` names: a path, or ``user/name/file.pt`` on the Hub; ``None`` if it names no file.

    Raises:
        PartitaError: The file does not exist.
    """
    path = Path(source)
    if path.suffix not in (".pt", ".pth"):
        return None
    if kind(path) != "file" and not path.is_absolute() and len(path.parts) == 3 and path.parts[0] not in (".", ".."):
        path = checkpoint_folder("/".join(path.parts[:2]), [path.name]) / path.name
    if kind(path) != "file":
        raise PartitaError(f"no weights at {source}: there is no such file")
    return path


def tokenizer_beside(path: Path) -> Path:
    """The folder of the text tokenizer for a LAION file: its own folder if it holds one, or RoBERTa's."""
    return path.parent if _has_tokenizer(path.parent) else checkpoint_folder(ROBERTA, ("config.json", *TOKENIZER))


def read_laion(path: Path) -> dict[str, Tensor]:
    """The weights of a LAION file.

    Raises:
        PartitaError: The file is damaged, holds something else, or is a model with fusion.
    """
    state: dict[str, Tensor] = {}
    for key, tensor in read_weights(path).items():
        name = key.removeprefix("module.")
        if "fusion_model" in name or "mel_conv" in name:
            raise _fused(path)
        if name.startswith(_UNUSED) or name.endswith((*CONSTANTS, ".attn_mask")):
            continue
        for old, new in _RENAMED:
            name = re.sub(old, new, name)
        if ".qkv." in name:
            parts = tensor.chunk(3)
            state |= {name.replace("qkv", part): t for part, t in zip(("query", "key", "value"), parts, strict=True)}
        else:
            state[name] = tensor
    return state


def transformers_folder(source: str | Path) -> Path:
    """The local folder of a checkpoint from transformers or this library."""
    folder = checkpoint_folder(source, (*WEIGHTS, "preprocessor_config.json", *TOKENIZER))
    if not any(folder.glob("*.safetensors")) and not Path(source).is_dir():
        checkpoint_folder(source, ["pytorch_model.bin"])  # into the same folder
    return folder


def read_transformers(folder: Path) -> dict[str, Tensor]:
    """The weights of a ``ClapModel``.

    Raises:
        PartitaError: The model has fusion or uses other spectra, or its weights cannot be read.
    """
    if read_config(folder).get("audio_config", {}).get("enable_fusion"):
        raise _fused(folder)
    if (path := folder / "preprocessor_config.json").is_file():
        hears = read_json(path)
        other = {name: hears[name] for name, value in FRONT_END.items() if hears.get(name, value) != value}
        if other:
            expected = {name: FRONT_END[name] for name in other}
            raise PartitaError(f"{path} asks for mel spectra with {other}; clap uses {expected}")
    pickled = folder / "pytorch_model.bin"
    if pickled.is_file() and not any(folder.glob("*.safetensors")):
        state = read_weights(pickled)
    else:
        state = read_safetensors(folder, lambda name: True)
    return {
        re.sub(r"^(text|audio)_", r"\1.\1_", name): tensor
        for name, tensor in state.items()
        if not name.startswith("logit_scale_") and not name.endswith(CONSTANTS)
    }


def read_tokenizer(folder: Path) -> Any:
    """The RoBERTa tokenizer in a folder.

    Raises:
        PartitaError: The tokenizer does not exist, or cannot be read.
    """
    from transformers import RobertaTokenizerFast

    # Without these files transformers creates an empty tokenizer, to which every word is unknown.
    if not _has_tokenizer(folder):
        raise PartitaError(
            f"{folder} holds no text tokenizer: there is no tokenizer.json, and no vocab.json with merges.txt, in it"
        )
    return read_text_tokenizer(folder, None if (folder / TOKENIZER[0]).is_file() else RobertaTokenizerFast)


def _has_tokenizer(folder: Path) -> bool:
    return any(all((folder / name).is_file() for name in names) for names in (TOKENIZER[:1], TOKENIZER[-2:]))


def _fused(source: Path) -> PartitaError:
    return PartitaError(
        f"{source} is a fused CLAP, which processes four spectra of a clip at once: use one without fusion, such as "
        "music_audioset_epoch_15_esc_90.14.pt of lukewys/laion_clap"
    )
