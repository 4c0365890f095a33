"""Whether training and generation agree: every stage of a chain, over-fitted on four clips, generates them back.

    python benchmarks/agreement.py chorales-hybrid-tiny runs/chorales-hybrid-tiny

Stages have the size and the conditions of the recipe; tokenizers come trained from the run. Prints, for each stage
alone and for the chain, the share of equal codes, or the signal-to-noise ratio of latents by scheduler.
"""

import argparse
from pathlib import Path

import torch

from partita.core.contracts import StageBatch
from partita.data.examples import Collate
from partita.layers.noise_process import SCHEDULERS
from partita.recipe.plan import load_recipe
from partita.system.system import System
from partita.training.fit_data import FitData


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("run", type=Path, help="where its trained tokenizers are")
    parser.add_argument("--steps", type=int, default=500)
    options = parser.parse_args()
    # nothing is dropped: four clips are to be known by heart
    plan = load_recipe(options.recipe)
    for stage in plan.stages.values():
        stage.part.arguments["condition_dropout"] = {"together": 0.0}
    system = System(plan)
    system.source.setup()
    for name, tokenizer in system.tokenizers.items():
        tokenizer.load_weights(options.run / "tokenizers" / name)
        tokenizer.eval()
    prompts, made, longest = None, {}, max(plan.window for plan in system.plan.stages.values())
    for name, plan in system.plan.stages.items():
        data = FitData(system, f"stages/{name}")
        examples = [
            system.source.read(
                "train", i, seed=i, seconds=longest, sample_rate=data.sample_rate, channels=data.channels
            )
            for i in range(4)
        ]
        for example in examples:  # every stage knows the beginning of the same clip
            example.audio = example.audio[:, : int(plan.window * data.sample_rate)]
            example.num_samples = min(example.num_samples, example.audio.shape[1])
        prompts = [example.fields["text"] for example in examples]
        batch = data.on_after_batch_transfer(Collate(data.conditioners)(examples), 0)
        overfit(system.stages[name], batch, options.steps)
        for conditioner in system.stages[name].joint.values():  # later stages find it trained
            conditioner.eval().requires_grad_(False)
        with torch.no_grad():
            report(name, system.stages[name].eval(), batch)
        made[plan.target.source] = batch.target
    if len(made) > 1:
        frames = min(plan.window for plan in system.plan.stages.values())
        reconstructed = system.generate_representations(prompts, duration=frames, sampling=careful(system))
        for source, target in made.items():
            wanted = target[..., : reconstructed[source].values.shape[-1]]
            print(f"the chain, from its prompts: {source}: {likeness(reconstructed[source].values, wanted)}")


def overfit(stage, batch: StageBatch, steps: int) -> None:
    """Train on the same four clips; a stage of latents sees each twice a step, under other noise."""
    stage.train()
    copies = 1 if stage.discrete else 2
    steps = steps if stage.discrete else 3 * steps
    optimizer = torch.optim.AdamW(stage.parameters(), lr=2e-3, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps, pct_start=0.05)
    for step in range(steps):
        conditions = stage.resolve(batch)
        kept = {
            name: type(c)(c.values.repeat(copies, 1, 1), c.mask.repeat(copies, 1))
            for name, (c, _) in conditions.items()
        }
        target, mask = batch.target.repeat(copies, 1, 1), batch.mask.repeat(copies, 1)
        with torch.autocast("cpu", torch.bfloat16):
            loss = stage.loss(target, mask, kept)["loss"]
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(stage.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0 or step == steps - 1:
            print(f"  step {step + 1} of {steps}: loss {loss:.4f}", flush=True)


def report(name: str, stage, batch: StageBatch) -> None:
    pairs = stage.resolve(batch)
    for sampling in [{"temperature": 0.0}] if stage.discrete else [{"scheduler": s} for s in SCHEDULERS["flow"]]:
        drawn = stage.changed_sampling({**sampling, "guidance": 1.0})
        made = stage.generate(pairs, batch.target.shape[-1], seeds=range(4), sampling=drawn).values
        print(f"{name}, {next(iter(sampling.values()))}: {likeness(made, batch.target)}")


def careful(system: System) -> dict:
    """The likeliest, without guidance, in every stage."""
    greedy = {name for name, stage in system.stages.items() if stage.discrete}
    return {name: {"guidance": 1.0, **({"temperature": 0.0} if name in greedy else {})} for name in system.stages}


def likeness(made: torch.Tensor, target: torch.Tensor) -> str:
    if not made.is_floating_point():
        return f"{(made == target).float().mean():.2%} of the codes"
    signal = target - target.mean((0, 2), keepdim=True)
    # as standardized, so that no channel counts for more
    ratio = (signal / signal.std((0, 2), keepdim=True)).square().sum((1, 2)) / (
        (made - target) / signal.std((0, 2), keepdim=True)
    ).square().sum((1, 2))
    return "SNR " + ", ".join(f"{value:.1f}" for value in 10 * ratio.log10()) + " dB"


if __name__ == "__main__":
    main()
