"""What the training of full-size stages takes on many GPUs, as estimated, and how a step on this processor compares.

    python benchmarks/scaling.py            # writes docs/scaling.md
    python benchmarks/scaling.py --dry      # prints it

The estimates are those of ``partita check --devices``. Steps of several sizes are measured on this processor, to see
how far time and memory are from their estimates.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import replace
from pathlib import Path

import torch
from measuring import machine, timed

from partita.core.fit import Fit
from partita.core.hardware import HARDWARE, Hardware, measured
from partita.core.part import OUTLINED
from partita.recipe.plan import load_recipe
from partita.system.estimate import Step, estimate
from partita.system.system import System

PAGE = Path(__file__).parents[1] / "docs" / "scaling.md"
CODE_BYTES = 2
"""Bytes of a stored code."""


STAGES = {
    "musicgen-small": (["stages.acoustic.generator=musicgen-small", "tokenizers.acoustic=encodec-32khz"], 30),
    "musicgen-medium": (["stages.acoustic.generator=musicgen-medium", "tokenizers.acoustic=encodec-32khz"], 30),
    "musicgen-large": (["stages.acoustic.generator=musicgen-large", "tokenizers.acoustic=encodec-32khz"], 30),
    "decoder-430m": (
        [
            "stages.acoustic.generator=decoder-430m",
            "tokenizers.acoustic=encodec-32khz",
            "stages.acoustic.given={text: prepend}",
        ],
        10,
    ),
    "music-44khz-stereo": ([], 20),
}
"""Changes of the recipe music-44khz-stereo, and the window in seconds."""
CLUSTERS = [("a100", 8), ("a100", 64), ("h100", 8), ("h100", 64), ("l4", 8), ("4090", 8)]


class Costs:
    """The steps of a stage for any batch size: estimated for one and two examples, as all costs grow linearly."""

    def __init__(self, name: str) -> None:
        changes, window = STAGES[name]
        changes = [*changes, "stages.acoustic.generator.checkpointing=true", f"stages.acoustic.window={window}"]
        self.name, self.system = name, System.outline(load_recipe("music-44khz-stereo", changes))
        self.part, self.window = self.system.stages["acoustic"], window
        self.fit = self.part.fit_options
        found = []
        for size in (1, 2):
            self.part.fit_options = replace(self.fit, batch_size=size, accumulate=1, precision="bf16-mixed")
            found.append(estimate(self.part, window))
        self.one, self.two = found
        assert self.one is not None
        assert self.two is not None

    def step(self, size: int, accumulate: int) -> Step:
        """A step of some batches of some examples."""
        more, one, two = size - 1, self.one, self.two
        return replace(
            one,
            activations=one.activations + more * (two.activations - one.activations),
            forward=one.forward * size,
            recomputed=one.recomputed * size,
            batches=accumulate,
        )

    def fitted(self, devices: int, hardware: Hardware, sharded: bool) -> tuple[Step, int, int] | None:
        """The step with the recipe's examples in all and the largest batch that fits: (step, batch, accumulate)."""
        each = self.fit.examples // devices
        for size in range(each, 0, -1):
            if each % size == 0:
                step = self.step(size, each // size)
                if step.memory(devices, sharded=sharded) <= 0.92 * (hardware.memory or math.inf):
                    return step, size, each // size
        return None

    def shard_bytes(self) -> int:
        """Stored bytes of an example: its codes, and its conditions in half precision."""
        codes = CODE_BYTES * (self.part.target.num_codebooks or 0) * self.part.target.frames(self.window)
        return codes + sum(2 * OUTLINED * (given.spec.dim or 0) for given in self.part.given.values())


def rows(name: str) -> list[str]:
    """The rows of a stage on each cluster."""
    costs, lines = Costs(name), []
    stage = f"{name}, {costs.one.trained / 1e9:.2g} B"
    for kind, devices in CLUSTERS:
        hardware = HARDWARE[kind]
        for strategy in ("ddp", "fsdp2"):
            if costs.fit.examples < devices:
                continue
            sharded = strategy == "fsdp2"
            label, found = f"| {stage} | {devices} × {kind} | {strategy} |", costs.fitted(devices, hardware, sharded)
            if found is None:
                most = costs.step(1, costs.fit.examples // devices).memory(devices, sharded=sharded)
                lines.append(f"{label} does not fit | {most / 1e9:.1f} GB | | | | |")
                continue
            step, size, accumulate = found
            seconds = step.seconds(hardware, devices, sharded=sharded)
            days = seconds * costs.fit.steps / 86400
            cells = [
                f"{size} × {accumulate}",
                f"{step.memory(devices, sharded=sharded) / 1e9:.1f} GB",
                f"{1 / seconds:.3g}",
                f"{costs.shard_bytes() * costs.fit.examples / seconds / 1e6:.3g} MB/s",
                f"{days:,.3g}",
                f"{days * 24 * devices * hardware.dollars:,.0f}",
            ]
            lines.append(f"{label} {' | '.join(cells)} |")
    return lines


def real(precision: str, depth: int, frames: int, checkpointing: bool) -> tuple[float, float, float]:
    """Seconds of a step of musicgen-small's width on this processor, its estimate, and its share of the speed."""
    changes = ["tokenizers.acoustic=encodec-32khz", f"stages.acoustic.generator.backbone.depth={depth}"]
    changes += [f"stages.acoustic.generator.checkpointing={str(checkpointing).lower()}", "stages.acoustic.window=10"]
    stage = System(
        load_recipe("music-44khz-stereo", ["conditioners.text=lookup", "conditioners.text.dim=768", *changes])
    )
    part = stage.stages["acoustic"].train()
    part.fit_options = fit = Fit(batch_size=1, precision=precision, lr=1e-4)
    part.joint.clear()
    optimizer = fit.make_optimizer(part.parameters())
    step, here = estimate(part, frames / 50), measured()
    assert step is not None
    loss = part.outline_step(1, frames / 50)

    def take() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision != "32-true"):
            value = loss()
        optimizer.zero_grad()
        value.backward()
        optimizer.step()

    take()
    seconds = sorted(timed(take) for _ in range(3))[1]
    speed = here.single if precision == "32-true" else here.half
    return seconds, step.seconds(here), step.operations / speed / seconds


def page() -> str:
    """The page, in Markdown."""
    tables = [line for name in STAGES for line in rows(name)]
    checks = []
    for precision in ("32-true", "bf16-mixed"):
        for depth, frames, checkpointing in ((4, 500, False), (4, 500, True), (4, 1000, False)):
            seconds, expected, share = real(precision, depth, frames, checkpointing)
            checks.append(
                f"| {precision} | {depth} | {frames} | {'yes' if checkpointing else 'no'} | {seconds:.2f} s | "
                f"{expected:.2f} s | {share:.0%} |"
            )
            print(checks[-1], flush=True)
    facts = machine()
    devices = "\n".join(
        f"| `{name}` | {h.name} | {h.half / 1e12:.0f} T | {h.single / 1e12:.1f} T | {(h.memory or 0) / 1e9:.0f} GB | "
        f"{h.bandwidth / 1e9:,.0f} GB/s | {h.link / 1e9:.0f} GB/s | {h.network / 1e9:.0f} GB/s | {h.dollars:.2f} |"
        for name, h in HARDWARE.items()
    )
    return TEMPLATE.format(
        tables="\n".join(tables), checks="\n".join(checks), devices=devices, processor=facts["processor"],
        threads=facts["threads"], torch=facts["torch"], share=HARDWARE["a100"].share, code=CODE_BYTES, tokens=OUTLINED,
        row=ROW,
    )  # fmt: skip


ROW = (
    "partita check music-44khz-stereo data=chorales stages.acoustic.generator.checkpointing=true "
    "stages.acoustic.generator.fit.batch_size=1 --devices 8 --hardware h100"
)
TEMPLATE = """# Scaling

What full-size stages need on many GPUs. `benchmarks/scaling.py` writes this page. **The figures for GPUs are estimates
from sizes and data sheets: none of them was measured on a GPU.** Estimates for any recipe:

    partita check chorales-tiny stages.acoustic.generator=musicgen-small --devices 64 --hardware h100
    partita check chorales-tiny stages.acoustic.generator=musicgen-large --devices 64 --hardware a100 --strategy fsdp2

Without `--devices` and `--strategy`, those of the recipe's [`trainer:`](training.md#many-gpus-and-machines) count.
`fit.batch_size` counts per GPU, so 64 GPUs take 64 times as many examples in a step; `check` prints how many. The table
below divides the examples among the GPUs instead. Its row of `music-44khz-stereo` on eight H100 with `ddp` is:

    {row}

## Full-size stages

A step has as many examples in all as the preset says, whatever the number of GPUs: 192 clips for the MusicGen presets
and `decoder-430m`, 8 for `music-44khz-stereo`. The batch is the largest that fits into 92 % of the memory, times the
number of accumulated batches. Layers compute in bfloat16 (`bf16-mixed`) and are recomputed in the backward pass
(`checkpointing: true`); tokens and the outputs of frozen conditioners are stored. Shards are read at {code} bytes per
code and {tokens} positions of text in half precision per clip. Steps are those of the preset.

| stage | GPUs | strategy | batch | memory per GPU | steps/s | shards | days | dollars |
|---|---|---|---|---|---|---|---|---|
{tables}

## Hardware

Figures of the data sheets: dense operations per second in bfloat16 with sums in float32 and in float32, memory, its
bandwidth, and the bandwidth of the links inside a machine per direction. Training is assumed to reach {share:.0%} of
the operations. The network between machines of 8 GPUs, per GPU and direction, and the price of a GPU hour are
assumptions: look up your own.

| name | product | bfloat16 | float32 | memory | bandwidth | link | network | dollars per hour |
|---|---|---|---|---|---|---|---|---|
{devices}

## How the estimate works

- **Operations** are counted: the forward pass of two blocks and one example is run without values, and multiplied. The
  backward pass takes twice as many, and a recomputed block once more.
- **Memory** is four bytes per weight, gradient and number of the optimizer's and the average's state, and the tensors
  that the forward pass keeps. FSDP2 divides weights, gradients and state by the number of GPUs and adds three blocks.
  Tests compare the kept tensors with those of real steps: they agree within 2 %, or 5 % if blocks are recomputed. The
  memory of CUDA itself, about 1 GB, and fragmentation come on top.
- **Time** is the larger of operations and communication, which run at the same time, and the optimizer's traffic to
  memory. DDP sends the gradients around once; FSDP2 gathers weights in each pass and adds up gradients, in single
  precision. A ring of all GPUs passes each machine once, over the network of its 8 GPUs together.
- Not counted: loading data, and encoding audio and text if they are not stored.

## Against measured steps

Steps of musicgen-small's width (1024, 16 heads, 4 codebooks of 2048), batch 1, AdamW, with {threads} threads of
{processor}, PyTorch {torch}. The estimate takes the speed of a product of two matrices of
1024 × 1024, measured at the same time, times 60 % in float32 and 50 % in bfloat16; the share is what the step really
reached of that speed. Both vary if the machine is busy.

| precision | layers | frames | recomputed | measured | estimated | share |
|---|---|---|---|---|---|---|
{checks}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--dry", action="store_true", help="print the page instead of writing it")
    options = parser.parse_args()
    text = page()
    if options.dry:
        print(text)
    else:
        PAGE.write_text(text)
        print(f"written: {PAGE}")


if __name__ == "__main__":
    main()
