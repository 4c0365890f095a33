"""MusicGen-melody as transformers saves it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from ...core.registry import register
from ...errors import PartitaError
from ...layers.chroma import CLASSES
from ...storage.untrusted import own_file, read_json
from .musicgen_slots import figures
from .transformers_musicgen import TransformersMusicGen

EXTRACTOR = "preprocessor_config.json"
"""File with the settings of the chroma."""


@register("published", "transformers-musicgen-melody")
class TransformersMusicGenMelody(TransformersMusicGen):
    """MusicGen with text and melody, mono or stereo, in the format of transformers."""

    reads = "MusicGen-melody in the format of transformers (musicgen_melody)"
    files = (*TransformersMusicGen.files, EXTRACTOR)
    model_type: ClassVar[str] = "musicgen_melody"

    @classmethod
    def recipe(cls, folder: Path, config: Mapping[str, Any]) -> dict[str, Any]:
        """The recipe of MusicGen, with a melody and the text before the codes instead of cross-attention."""
        made = super().recipe(folder, config)
        stage = made["stages"]["acoustic"]
        size = figures(config, "system", {"num_chroma": CLASSES, "chroma_length": 235})
        melody = _chroma(folder)
        if size["num_chroma"] != CLASSES:
            raise PartitaError(f"the melody of MusicGen-melody has {CLASSES} pitch classes, not {size['num_chroma']}")
        rate = melody["sample_rate"] / max(1, melody["hop"])
        if (frames := math.ceil(stage["window"] * rate)) != size["chroma_length"]:
            raise PartitaError(
                f"a melody of {stage['window']:g} s has {frames:,} frames by {EXTRACTOR}, but chroma_length is "
                f"{size['chroma_length']:,}: this MusicGen-melody cannot be imported"
            )
        made["conditioners"]["melody"] = {"name": "melody-chroma", **melody, "at_least": stage["window"]}
        made["conditioners"]["text"]["word_dropout"] = 0.2
        stage["given"] = {"melody": "prepend", "text": "prepend"}
        stage["generator"] |= {
            "plain_prefix": True,
            "condition_dropout": {"together": 0.2, "alone": {"melody": 0.5}},
        }
        return made


def _chroma(folder: Path) -> dict[str, int]:
    """The settings of the chroma, in terms of the conditioner."""
    config = read_json(own_file(folder, EXTRACTOR)) if (folder / EXTRACTOR).is_file() else {}
    defaults = {"sampling_rate": 32000, "n_fft": 16384, "hop_length": 4096}
    found = figures(config, "feature extractor", defaults)
    return {"sample_rate": found["sampling_rate"], "window": found["n_fft"], "hop": found["hop_length"]}
