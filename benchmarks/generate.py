"""Milliseconds per step of autoregressive generation, here and in transformers, with the same weights and sizes.

    python benchmarks/generate.py --width 1024 --depth 24 --heads 16

Both models run in one process, in turns, so that their ratio means something on a busy machine. One run takes a
prompt of text embeddings, guidance (a batch of two) or not, and a number of steps with the cache.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from transformers import MusicgenDecoderConfig, MusicgenForCausalLM
from transformers.cache_utils import DynamicCache, EncoderDecoderCache

from partita.core.contracts import Condition, ConditionSpec, Given, RepresentationSpec
from partita.generators.autoregressive import Autoregressive
from partita.generators.backbones.transformer import Transformer
from partita.generators.checkpoints.musicgen import convert
from partita.layers.guidance import classifier_free

CODEBOOKS, CARDINALITY = 4, 2048


def models(width: int, depth: int, num_heads: int, dtype: torch.dtype) -> tuple[Autoregressive, MusicgenForCausalLM]:
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
    return stage.to(dtype), reference.to(dtype)


def ours(stage: Autoregressive, text: torch.Tensor, frames: int, guided: bool) -> Callable[[], object]:
    mask = torch.ones(text.shape[:2], dtype=torch.bool)
    pair = (Condition(text, mask), Condition(torch.zeros_like(text), ~mask))
    terms = classifier_free(3.0 if guided else 1.0)
    return lambda: stage.generate({"text": pair}, frames, seeds=[0], guidance=terms)


@torch.inference_mode()
def theirs(reference: MusicgenForCausalLM, text: torch.Tensor, steps: int, guided: bool) -> None:
    """The forward passes alone, one code per step, as its ``generate`` makes them."""
    batch = 2 if guided else 1
    encoded = torch.cat([text, torch.zeros_like(text)])[:batch].to(reference.dtype)
    mask = torch.ones(batch, text.shape[1], dtype=torch.long)
    mask[1:] = 0
    cache = EncoderDecoderCache(DynamicCache(config=reference.config), DynamicCache(config=reference.config))
    codes = torch.full((batch * CODEBOOKS, 1), CARDINALITY)
    for _ in range(steps):
        out = reference(
            input_ids=codes,
            encoder_hidden_states=encoded,
            encoder_attention_mask=mask,
            past_key_values=cache,
            use_cache=True,
        )
        codes = out.logits[:, -1:].argmax(-1)[:CODEBOOKS].repeat(batch, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--depth", type=int, default=24)
    parser.add_argument("--heads", type=int, default=16)
    parser.add_argument("--frames", type=int, default=60)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    options = parser.parse_args()
    torch.manual_seed(0)
    stage, reference = models(options.width, options.depth, options.num_heads, getattr(torch, options.dtype))
    text = torch.randn(1, 12, options.width)
    steps = options.frames + CODEBOOKS - 1
    for guided in (False, True):
        contenders = {
            "partita": ours(stage, text, options.frames, guided),
            "transformers": lambda guided=guided: theirs(reference, text, steps, guided),
        }
        times: dict[str, list[float]] = {name: [] for name in contenders}
        for run in range(options.runs + 1):
            for name, generate in contenders.items():
                start = time.perf_counter()
                generate()
                if run:
                    times[name].append((time.perf_counter() - start) / steps * 1000)
        best = {name: statistics.median(values) for name, values in times.items()}
        ratio = best["partita"] / best["transformers"]
        what = "guided, batch 2" if guided else "batch 1"
        print(
            f"{what}: partita {best['partita']:.1f} ms, transformers {best['transformers']:.1f} ms a step, "
            f"ratio {ratio:.2f}"
        )


if __name__ == "__main__":
    main()
