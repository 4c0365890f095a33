"""Seconds per sampler step of a diffusion transformer, here and in diffusers' Stable Audio, at the same size.

    python benchmarks/diffusion.py --width 768 --depth 12 --heads 12 --frames 215

All contenders run in one process, in turns. The weights are random. Each step runs the network on a batch of two, for
guidance, with a text of 77 places. Our stage runs with the keys and values of cross-attention computed once, and, as
before, in each step. Both networks have gated feed-forward layers of the same width; diffusers' has half as many key
and value heads, as in Stable Audio, and conditions the sequence on one more place.
"""

from __future__ import annotations

import argparse
import os
import statistics
from functools import partial

os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # as the command line does: threads that wait yield early

import torch
from diffusers import StableAudioDiTModel
from measuring import add_save, in_turns, median_ratio, save
from torch import Tensor

from partita.core.contracts import Condition, ConditionSpec, Given, RepresentationSpec
from partita.generators.denoisers.base import Denoiser
from partita.generators.denoisers.dit import DiT
from partita.generators.diffusion import Diffusion
from partita.layers.guidance import classifier_free
from partita.layers.noise_process import DiffusionSampling
from partita.layers.transformer_blocks import BlockConfig

LATENTS, TEXT, PLACES = 64, 768, 77


class EachStep(DiT):
    """The denoiser without what is computed once."""

    prepare = Denoiser.prepare


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--depth", type=int, default=12)
    parser.add_argument("--heads", type=int, default=12)
    parser.add_argument("--frames", type=int, default=215)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    add_save(parser)
    options = parser.parse_args()
    torch.manual_seed(0)
    target = RepresentationSpec(sample_rate=44100, channels=2, frame_rate=44100 / 2048, dim=LATENTS)
    block = BlockConfig(activation="swiglu")
    sizes = {"width": options.width, "depth": options.depth, "num_heads": options.heads, "block": block}
    given = {"text": Given(ConditionSpec(dim=TEXT), "cross")}
    ours, before = (
        Diffusion(target, given, denoiser=denoiser(**sizes), continuation=0.0).eval().to(options.device)
        for denoiser in (DiT, EachStep)
    )
    before.load_state_dict(ours.state_dict())
    theirs = StableAudioDiTModel(
        sample_size=options.frames,
        in_channels=LATENTS,
        num_layers=options.depth,
        attention_head_dim=options.width // options.heads,
        num_attention_heads=options.heads,
        num_key_value_attention_heads=options.heads // 2,
        out_channels=LATENTS,
        cross_attention_dim=TEXT,
        global_states_input_dim=2 * TEXT,
        cross_attention_input_dim=TEXT,
    )
    theirs = theirs.eval().to(options.device)
    text = torch.randn(1, PLACES, TEXT, device=options.device)
    mask = torch.ones(1, PLACES, dtype=torch.bool, device=options.device)
    pairs = {"text": (Condition(text, mask), Condition(torch.zeros_like(text), ~mask))}

    def run(stage: Diffusion) -> Tensor:
        sampling = DiffusionSampling(steps=options.steps)
        terms = classifier_free(3.0)
        return stage.generate(pairs, options.frames, seeds=[0], guidance=terms, sampling=sampling).values

    noise = torch.randn(2, LATENTS, options.frames, device=options.device)
    encoded = torch.cat([text, torch.zeros_like(text)])
    # the angles are computed once, as by its pipeline
    from diffusers.models.embeddings import get_1d_rotary_pos_embed

    rotary = get_1d_rotary_pos_embed(
        options.width // options.heads // 2, options.frames + 1, use_real=True, repeat_interleave_real=False
    )
    rotary = tuple(angles.to(options.device) for angles in rotary)

    def reference() -> None:
        for step in range(options.steps):
            theirs(
                noise,
                torch.full((2,), 1 - step / options.steps, device=options.device),
                encoder_hidden_states=encoded,
                global_hidden_states=torch.cat([encoded[:, :1], encoded[:, :1]], 2),
                rotary_embedding=rotary,
            )

    with torch.inference_mode():
        assert torch.equal(run(ours), run(before))
        contenders = {"partita": partial(run, ours), "keys and values each step": partial(run, before)}
        times = in_turns({**contenders, "diffusers": reference}, options.runs)
    rows = []
    for name, values in times.items():
        count = sum(p.numel() for p in (theirs if name == "diffusers" else ours).parameters())
        row = {
            "contender": name,
            "seconds_per_step": statistics.median(values) / options.steps,
            "parameters": count,
            "ratio_of_partita": median_ratio(values, times["partita"]),
        }
        rows.append(row)
        print(", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()))
    if options.save:
        save("diffusion", rows)


if __name__ == "__main__":
    main()
