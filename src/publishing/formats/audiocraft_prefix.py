"""The recording that MusicGen-melody and MusicGen-Style hear before the codes, as audiocraft configures it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from ...errors import PartitaError
from ...layers.chroma import CLASSES
from .musicgen_slots import figures, inner

ORDER = ["self_wav", "description"]
"""The conditions before the codes: the recording and the text."""

SCALES = {"xsmall": (256, 4, 8), "default": (512, 8, 8), "large": (1024, 24, 16)}
"""Width, depth and heads of the transformer of a style, by its scale."""


FEATURES = {"preset": "mert-95m", "layer": 12, "normalize": False, "pad": False}
"""What a style is heard by: MERT as audiocraft runs it."""


class Heard(NamedTuple):
    """What a stage hears before the codes.

    Args:
        name: Name of the condition.
        slot: The slot of its conditioner.
        generator: Changes of the slot of the generator.
        sampling: Changes of its sampling.
    """

    name: str
    slot: dict[str, Any]
    generator: dict[str, Any]
    sampling: dict[str, Any]


def heard(settings: Mapping[str, Any], seconds: float) -> Heard | None:
    """What the stage of a configuration hears before the codes; ``None`` if it is given the text by cross-attention.

    Args:
        settings: The configuration of audiocraft.
        seconds: Length of the training clips.

    Raises:
        PartitaError: It hears something that no recipe can express.
    """
    prepended = (settings.get("fuser") or {}).get("prepend") or []
    if not prepended:
        return None
    config = inner(inner(settings, "conditioners"), "self_wav") if prepended == ORDER else {}
    slots = {"chroma_stem": _melody, "style": _style}
    if (kind := config.get("model")) not in slots:
        raise PartitaError(
            f"a prefix of {prepended!s:.60} cannot be imported, but only text, a melody (chroma_stem) and a style"
        )
    return slots[kind](inner(config, kind), seconds)


def _melody(config: Mapping[str, Any], seconds: float) -> Heard:
    """The melody of MusicGen-melody."""
    size = figures(config, "melody", {"sample_rate": 32000, "n_chroma": CLASSES, "radix2_exp": 14, "argmax": True})
    if size["n_chroma"] != CLASSES or not size["argmax"] or size["radix2_exp"] > 20:
        raise PartitaError(
            f"the melody of MusicGen-melody is the strongest of {CLASSES} pitch classes, unlike this one"
        )
    slot = {
        "name": "melody-chroma",
        "sample_rate": size["sample_rate"],
        "window": 2 ** size["radix2_exp"],
        "hop": 2 ** size["radix2_exp"] // 4,
        "at_least": seconds,
    }
    return Heard("melody", slot, {"condition_dropout": {"together": 0.2, "alone": {"melody": 0.5}}}, {})


def _style(config: Mapping[str, Any], seconds: float) -> Heard:
    """The style of MusicGen-Style, as MERT hears it."""
    size = figures(
        config,
        "style",
        {
            "model_name": "mert",
            "transformer_scale": "default",
            "ds_factor": 15,
            "n_q_out": 6,
            "eval_q": 3,
            "bins": 1024,
            "length": 3.0,
            "varying_lengths": [1.5, 4.5],
            "batch_norm": True,
        },
    )
    if size["model_name"] != "mert" or size["transformer_scale"] not in SCALES or not size["batch_norm"]:
        raise PartitaError(
            f"only a style that MERT hears, with a batch norm and one of the transformers {', '.join(SCALES)}, can be "
            "imported"
        )
    width, depth, num_heads = SCALES[size["transformer_scale"]]
    if len(size["varying_lengths"]) != 2:
        raise PartitaError(f"varying_lengths of the style must be two lengths, not {size['varying_lengths']!s:.60}")
    shortest, longest = size["varying_lengths"]
    slot = {
        "name": "style",
        "features": dict(FEATURES),
        "bottleneck": {
            "name": "rvq",
            "num_codebooks": size["n_q_out"],
            "cardinality": size["bins"],
            "codebook_choices": list(range(1, size["n_q_out"] + 1)),
            "dropout": 0.0,
            "warmup_steps": 0,
        },
        "network": {"width": width, "depth": depth, "num_heads": num_heads},
        "stride": size["ds_factor"],
        "streams": size["eval_q"],
        "length": {"shortest": shortest, "longest": longest, "seconds": size["length"]},
    }
    dropout = {"condition_dropout": {"together": 0.1, "alone": {"text": 0.4, "style": 0.4}}}
    return Heard("style", slot, dropout, {"inner": ["style"], "inner_guidance": 5.0})
