"""MusicGen as transformers saves it."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from ...core.registry import register
from ...errors import PartitaError
from ...limits import LARGEST_VOCABULARY
from ...storage.pretrained import WEIGHTS, read_safetensors
from ...storage.tensor_file import write_tensors
from ...storage.untrusted import own_file, read_json
from .base import PublishedSystem
from .musicgen_slots import codec_slot, decoder_slot, figures, inner, must_be, sampling_of, stage, text_slot

TEXT_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "spiece.model")


@register("published", "transformers-musicgen")
class TransformersMusicGen(PublishedSystem):
    """MusicGen with text prompts, mono or stereo, in the format of transformers."""

    reads = "MusicGen in the format of transformers (musicgen)"
    files: ClassVar[tuple[str, ...]] = (*WEIGHTS, "generation_config.json", *TEXT_TOKENIZER)
    model_type: ClassVar[str] = "musicgen"

    @classmethod
    def detect(cls, folder: Path, config: Mapping[str, Any]) -> bool:
        """Detect the format by the model type."""
        return config.get("model_type") == cls.model_type

    @classmethod
    def recipe(cls, folder: Path, config: Mapping[str, Any]) -> dict[str, Any]:
        """A recipe of one stage, with the sizes of the configuration and the sampling that it names."""
        decoder, text, codec = (inner(config, name) for name in ("decoder", "text_encoder", "audio_encoder"))
        what = "decoder"
        must_be(decoder, what, {"activation_function": "gelu", "scale_embedding": False, "tie_word_embeddings": False})
        size = figures(
            decoder,
            what,
            {
                "hidden_size": 1024,
                "num_hidden_layers": 24,
                "num_attention_heads": 16,
                "ffn_dim": 4096,
                "num_codebooks": 4,
                "audio_channels": 1,
            },
        )
        channels, slot = size["audio_channels"], codec_slot(codec)
        if channels not in (1, 2) or size["num_codebooks"] % max(1, channels):
            raise PartitaError(f"MusicGen has 1 or 2 channels with equally many codebooks, not {channels}")
        if channels == 2:  # each is coded by itself
            slot |= {"channels": 2, "channelwise": True}
        generator = decoder_slot(
            width=size["hidden_size"],
            depth=size["num_hidden_layers"],
            num_heads=size["num_attention_heads"],
            feed_forward=size["ffn_dim"],
            delays=[k // channels for k in range(size["num_codebooks"])],
            sampling=sampling_of(generation := _generation(folder)),
        )
        hop = math.prod(slot["autoencoder"]["network"]["strides"])
        frames = figures(generation, "generation", {"max_length": 1500})["max_length"]
        return {
            "tokenizers": {"acoustic": slot},
            "conditioners": {"text": text_slot(text)},
            "stages": {"acoustic": stage(generator, frames * hop / max(1, slot["sample_rate"]))},
        }

    @classmethod
    def unpack(cls, folder: Path, config: Mapping[str, Any], into: Path) -> dict[str, str]:
        """The folder itself for the stage; text encoder and codec in folders as transformers saves them alone."""
        for name in ("text_encoder", "audio_encoder"):
            part, prefix = into / name, f"{name}."
            part.mkdir()
            (part / "config.json").write_text(json.dumps(config[name]), encoding="utf-8")
            state = read_safetensors(folder, lambda key, prefix=prefix: key.startswith(prefix))  # type: ignore[misc]
            own = {key.removeprefix(prefix): tensor.contiguous() for key, tensor in state.items()}
            write_tensors(own, part / "model.safetensors")
        for name in TEXT_TOKENIZER:
            if (folder / name).is_file():
                shutil.copyfile(own_file(folder, name, LARGEST_VOCABULARY), into / "text_encoder" / name)
        return {
            "tokenizers/acoustic": str(into / "audio_encoder"),
            "conditioners/text": str(into / "text_encoder"),
            "stages/acoustic": str(folder),
        }


def _generation(folder: Path) -> dict[str, Any]:
    """The content of ``generation_config.json``; empty if there is none."""
    path = folder / "generation_config.json"
    return read_json(own_file(folder, path.name)) if path.is_file() else {}
