"""Milliseconds per step of autoregressive generation, here and in transformers, with the same weights and sizes.

    python benchmarks/decode.py --shape small --frames 500

All contenders run in one process, in turns, so that their ratios mean something on a busy machine. A run takes a prompt
of text embeddings, guidance (two rows per clip) or not, and as many steps as its frames need; transformers makes the
forward passes of its ``generate`` alone. Each precision is compared with the memory: how many bytes of weights and keys
and values a step reads, and what share of the measured bandwidth that is. Where there is a GPU, all run there, and each
precision also with ``compile``.
"""

from __future__ import annotations

import argparse
import copy
import statistics
from collections.abc import Callable
from functools import partial

import torch
from measuring import add_save, bandwidth, in_turns, median_ratio, save
from torch import Tensor, nn
from transformers import MusicgenDecoderConfig, MusicgenForCausalLM
from transformers.cache_utils import DynamicCache, EncoderDecoderCache

from partita.core.contracts import Condition, ConditionSpec, Given, RepresentationSpec
from partita.generators.autoregressive import Autoregressive
from partita.generators.backbones.transformer import Transformer
from partita.generators.checkpoints.musicgen import convert
from partita.layers.guidance import classifier_free
from partita.layers.lowered import lowered

CODEBOOKS, CARDINALITY = 4, 2048
BYTES = {"fp32": 4, "bf16": 2, "int8": 1}
SHAPES = {"small": (1024, 24, 16), "medium": (1536, 48, 24), "tiny": (256, 4, 4)}
"""Width, depth and heads of MusicGen-small and -medium (arXiv 2306.05284), and of the stage of chorales-tiny."""


def models(width: int, depth: int, num_heads: int) -> tuple[Autoregressive, MusicgenForCausalLM]:
    """The same random weights in both libraries."""
    config = MusicgenDecoderConfig(
        vocab_size=CARDINALITY,
        hidden_size=width,
        num_hidden_layers=depth,
        num_attention_heads=num_heads,
        ffn_dim=4 * width,
        num_codebooks=CODEBOOKS,
    )
    reference = MusicgenForCausalLM(config).eval()
    target = RepresentationSpec(
        sample_rate=32000, channels=1, frame_rate=50.0, num_codebooks=CODEBOOKS, cardinality=CARDINALITY
    )
    backbone = Transformer(width=width, depth=depth, num_heads=num_heads)
    stage = Autoregressive(target, {"text": Given(ConditionSpec(dim=width), "cross")}, backbone=backbone).eval()
    state = convert(reference.state_dict(), "text")
    state |= {"conditioning.projections.text.weight": torch.eye(width)}
    state |= {"conditioning.projections.text.bias": torch.zeros(width)}
    stage.load_exported_state(state, "the reference")
    return stage, reference


def pair_of(text: Tensor) -> tuple[Condition, Condition]:
    """The text as a condition, and its absence."""
    mask = torch.ones(text.shape[:2], dtype=torch.bool)
    return Condition(text, mask), Condition(torch.zeros_like(text), ~mask)


@torch.inference_mode()
def ours(stage: Autoregressive, text: Tensor, frames: int, guided: bool) -> None:
    """A whole generation."""
    terms = classifier_free(3.0 if guided else 1.0)
    stage.generate({"text": pair_of(text)}, frames, seeds=range(len(text)), guidance=terms)


@torch.inference_mode()
def theirs(reference: MusicgenForCausalLM, text: Tensor, steps: int, guided: bool) -> None:
    """The forward passes alone, one code per step, as its ``generate`` makes them."""
    encoded = torch.cat([text, torch.zeros_like(text)]) if guided else text
    batch = len(encoded)
    encoded = encoded.to(reference.dtype)
    mask = torch.ones(batch, text.shape[1], dtype=torch.long, device=text.device)
    mask[len(text) :] = 0
    cache = EncoderDecoderCache(DynamicCache(config=reference.config), DynamicCache(config=reference.config))
    codes = torch.full((batch * CODEBOOKS, 1), CARDINALITY, device=text.device)
    for _ in range(steps):
        out = reference(
            input_ids=codes,
            encoder_hidden_states=encoded,
            encoder_attention_mask=mask,
            past_key_values=cache,
            use_cache=True,
        )
        codes = out.logits[:, -1:].argmax(-1)[: CODEBOOKS * len(text)].repeat(batch // len(text), 1)


def bytes_per_step(stage: Autoregressive, precision: str, frames: int, rows: int) -> float:
    """Bytes of the weights that a step reads and, at half of the length, of keys and values."""
    once = {stage.conditioning.projections["text"]} | {block.cross_attention.key_value for block in blocks(stage)}
    read = [layer for layer in stage.modules() if isinstance(layer, nn.Linear) and layer not in once]
    cache = 2 * stage.backbone.width * stage.backbone.depth * rows * frames / 2
    rounded = precision != "fp32" and stage.embeddings.weight.device.type == "cpu"
    return sum(layer.weight.numel() for layer in read) * BYTES[precision] + cache * (2 if rounded else 4)


def blocks(stage: Autoregressive) -> list[nn.Module]:
    """The blocks of the stage's transformer."""
    return list(stage.backbone.layers.blocks)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument("--frames", type=int, default=500, help="Frames to generate, 50 per second.")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--clips", type=int, nargs="+", default=[1], help="Numbers of clips in a batch.")
    parser.add_argument("--precisions", nargs="+", default=list(BYTES), choices=BYTES)
    parser.add_argument("--guidance", type=float, nargs="+", default=[3.0], help="1 generates without guidance.")
    parser.add_argument("--half", action="store_true", help="Also measure transformers in bfloat16.")
    add_save(parser)
    options = parser.parse_args()
    torch.manual_seed(0)
    width, depth, heads = SHAPES[options.shape]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    stage, reference = (model.to(device) for model in models(width, depth, heads))
    references = {"transformers fp32": reference}
    if options.half:
        references["transformers bf16"] = copy.deepcopy(reference).bfloat16()
    steps, speed = options.frames + CODEBOOKS - 1, bandwidth(device)
    print(f"memory: {speed / 1e9:.1f} GB/s with {torch.get_num_threads()} threads")
    precisions = [name for name in options.precisions if device == "cpu" or name != "int8"]  # only CPUs have int8
    stages = {precision: lowered(stage, precision, stepwise=True) for precision in precisions}
    if device == "cuda":
        prepare = Autoregressive.compile_steps
        stages |= {f"{name} compile": lowered(stage, name, stepwise=True, prepare=prepare) for name in precisions}
    rows = []
    for clips in options.clips:
        text = torch.randn(clips, 12, width).to(device)
        for guidance in options.guidance:
            guided = guidance != 1
            contenders: dict[str, Callable[[], None]] = {
                name: partial(theirs, model, text, steps, guided) for name, model in references.items()
            } | {precision: partial(ours, small, text, options.frames, guided) for precision, small in stages.items()}
            times = in_turns(contenders, options.runs)
            for name, seconds in times.items():
                row = {"shape": options.shape, "clips": clips, "guidance": guidance, "frames": options.frames}
                row |= {"name": name, "milliseconds": statistics.median(seconds) / steps * 1000}
                row["ratio"] = median_ratio(times["transformers fp32"], seconds)
                if name in stages:
                    read = bytes_per_step(stage, name.split()[0], options.frames, clips * (2 if guided else 1))
                    row["bandwidth_share"] = read * steps / statistics.median(seconds) / speed
                rows.append(row)
                print({key: round(value, 3) if isinstance(value, float) else value for key, value in row.items()})
    clips_name = "-".join(map(str, options.clips))
    if options.save:
        save(f"decode-{options.shape}-{clips_name}", rows, bandwidth=speed)


if __name__ == "__main__":
    main()
