"""The slots of a recipe for the parts of a published MusicGen, from the figures in its configuration."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ...errors import PartitaError
from ...tokenizers.checkpoints.encodec import num_codebooks

FINE_TUNING = {
    "steps": 2000,
    "batch_size": 4,
    "lr": 1.0e-5,
    "betas": [0.9, 0.95],
    "weight_decay": 0.1,
    "warmup_steps": 100,
    "precision": "bf16-mixed",
    "validate_every": 500,
}
"""Training options of an imported stage: for further training on some hours of music, not those of the paper."""

EDGES = {"reflect": "reflect", "constant": "zero"}
"""Ways to pad clips at their edges, by their names in configurations."""

_ACTIVATIONS = ("relu", "gated-gelu")


def figures(config: Mapping[str, Any], what: str, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The figures of a configuration, which comes from a stranger, or their defaults.

    Args:
        config: The configuration.
        what: What it describes, for messages.
        defaults: The value of each figure where the configuration does not have it, by key. A figure is of its type.

    Raises:
        PartitaError: A figure is of another type.
    """
    found = {}
    for key, default in defaults.items():
        value = config.get(key, default)
        whole = isinstance(default, int) and not isinstance(default, bool)
        fits = isinstance(value, type(default)) and not (whole and (isinstance(value, bool) or value < 0))
        if isinstance(default, list):
            fits = isinstance(value, list) and all(type(item) is type(default[0]) for item in value)
        if not fits:
            raise PartitaError(f"the configuration of the {what} is damaged: {key} is {value!s:.60}")
        found[key] = value
    return found


def inner(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The configuration of a part in the configuration of a system.

    Raises:
        PartitaError: There is none.
    """
    found = config.get(name)
    if not isinstance(found, dict):
        raise PartitaError(f"the configuration is damaged: it does not describe its {name}")
    return found


def must_be(config: Mapping[str, Any], what: str, expected: Mapping[str, Any]) -> None:
    """Check that a configuration has certain values where it names them.

    Raises:
        PartitaError: It has others; the message lists them.
    """
    wrong = [
        f"{key} is {config[key]!s:.60}, not {value}"
        for key, value in expected.items()
        if config.get(key, value) != value
    ]
    if wrong:
        raise PartitaError(f"this {what} differs from MusicGen's and cannot be imported: {'; '.join(wrong)}")


def decoder_slot(
    *, width: int, depth: int, num_heads: int, feed_forward: int, delays: Sequence[int], sampling: Mapping[str, Any]
) -> dict[str, Any]:
    """The slot of the generator.

    Args:
        width: Width of the transformer.
        depth: Number of blocks.
        num_heads: Attention heads.
        feed_forward: Width between the feed-forward projections.
        delays: Delay of each codebook in frames.
        sampling: Options of sampling, where they differ from the published ones.
    """
    block = {"feed_forward": feed_forward / max(1, width), "activation": "gelu", "norm": "layer"}
    return {
        "name": "autoregressive",
        "backbone": {
            "name": "transformer",
            "width": width,
            "depth": depth,
            "num_heads": num_heads,
            "positions": "sinusoidal",
            "block": block,
        },
        "pattern": "delay",
        "delays": list(delays),
        "tail": False,
        "condition_dropout": {"together": 0.3},
        "sampling": {"temperature": 1.0, "top_k": 250, "guidance": 3.0, **sampling},
        "fit": dict(FINE_TUNING),
    }


def stage(generator: Mapping[str, Any], window: float, overlap: float | None = None) -> dict[str, Any]:
    """The one stage of MusicGen, which is given a text.

    Args:
        generator: The slot of the generator.
        window: Seconds of music that it was trained on.
        overlap: Seconds from which longer music is continued. ``None`` is 40 % of the window (audiocraft's
            ``extend_stride`` of 18 in 30 seconds).
    """
    return {
        "generator": dict(generator),
        "target": "acoustic",
        "given": {"text": "cross"},
        "window": window,
        "overlap": 0.4 * window if overlap is None else overlap,
    }


def sampling_of(generation: Mapping[str, Any]) -> dict[str, Any]:
    """The options of sampling that a ``generation_config.json`` names."""
    names = {"temperature": "temperature", "top_k": "top_k", "top_p": "top_p", "guidance_scale": "guidance"}
    given = {
        ours: generation[theirs] for theirs, ours in names.items() if isinstance(generation.get(theirs), int | float)
    }
    if generation.get("do_sample") is False:
        given["temperature"] = 0.0
    if given.get("top_k") == 0:  # transformers' way to set no limit
        given["top_k"] = None
    return given


def text_slot(config: Mapping[str, Any]) -> dict[str, Any]:
    """The slot of a T5 encoder."""
    what = "text encoder"
    must_be(config, what, {"model_type": "t5"})
    size = figures(
        config,
        what,
        {
            "d_model": 512,
            "d_ff": 2048,
            "num_layers": 6,
            "num_heads": 8,
            "d_kv": 64,
            "vocab_size": 32128,
            "feed_forward_proj": "relu",
        },
    )
    kind = size["feed_forward_proj"]
    if kind not in _ACTIVATIONS:
        raise PartitaError(
            f"the text encoder has feed_forward_proj {kind!s:.60}: only {' and '.join(_ACTIVATIONS)} are known"
        )
    shape = {
        "width": size["d_model"],
        "feed_forward_width": size["d_ff"],
        "depth": size["num_layers"],
        "num_heads": size["num_heads"],
        "head_width": size["d_kv"],
        "vocabulary": size["vocab_size"],
    }
    return {"name": "t5", "size": "base", "feed_forward": kind, "shape": shape, "word_dropout": 0.3}


def codec_slot(config: Mapping[str, Any]) -> dict[str, Any]:
    """The slot of an EnCodec."""
    what = "audio encoder"
    must_be(
        config, what, {"model_type": "encodec", "normalize": False, "norm_type": "weight_norm", "trim_right_ratio": 1.0}
    )
    size = figures(
        config,
        what,
        {
            "sampling_rate": 24000,
            "audio_channels": 1,
            "target_bandwidths": [1.5, 3.0, 6.0, 12.0, 24.0],
            "hidden_size": 128,
            "num_filters": 32,
            "num_residual_layers": 1,
            "upsampling_ratios": [8, 5, 4, 2],
            "kernel_size": 7,
            "last_kernel_size": 7,
            "residual_kernel_size": 3,
            "dilation_growth_rate": 2,
            "use_causal_conv": True,
            "pad_mode": "reflect",
            "compress": 2,
            "num_lstm_layers": 2,
            "codebook_size": 1024,
            "use_conv_shortcut": True,
        },
    )
    if size["pad_mode"] not in EDGES:
        raise PartitaError(
            f"the audio encoder has pad_mode {size['pad_mode']!s:.60}: only {' and '.join(EDGES)} are known"
        )
    strides = size["upsampling_ratios"][::-1]
    frames = math.ceil(size["sampling_rate"] / max(1, math.prod(strides)))
    return {
        "preset": "encodec-32khz",
        "sample_rate": size["sampling_rate"],
        "channels": size["audio_channels"],
        "dim": size["hidden_size"],
        "num_codebooks": None,
        "autoencoder": {
            "name": "seanet",
            "network": {
                "width": size["num_filters"],
                "strides": strides,
                "dilations": [size["dilation_growth_rate"] ** j for j in range(size["num_residual_layers"])],
                "kernel": size["kernel_size"],
                "last_kernel": size["last_kernel_size"],
                "residual_kernel": size["residual_kernel_size"],
                "compress": size["compress"],
                "lstm_layers": size["num_lstm_layers"],
                "shortcut": "conv" if size["use_conv_shortcut"] else "identity",
                "normalization": "weight_norm",
                "edges": EDGES[size["pad_mode"]],
                "causal": size["use_causal_conv"],
            },
        },
        "bottleneck": {
            "name": "rvq",
            "num_codebooks": num_codebooks(size["target_bandwidths"][-1], frames, size["codebook_size"]),
            "cardinality": size["codebook_size"],
        },
    }
