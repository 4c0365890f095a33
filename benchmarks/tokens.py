"""Steps per second of a stage that trains on the fly and from shards, and the share of a step spent waiting for data.

    python benchmarks/tokens.py [--steps 60] [--pieces 24] [--codec RUN/tokenizers/acoustic]

The stage is that of chorales-tiny, on clips of five seconds of rendered chorales. Waiting is the time between asking
the loader for a batch and getting it; the rest of a step is encoding, if any, and the update of the weights. Processor
seconds are those of the training process, also on a machine that is busy with other work. Without
a trained codec, it has random weights, which does not change the time.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import lightning as L
import torch
from measuring import add_save, save

import partita
from partita.core.part_key import PartKey
from partita.data.shards import Shards
from partita.recipe.plan import load_recipe
from partita.recipe.token_options import TokenOptions
from partita.system.system import System
from partita.training.fit_data import FitData
from partita.training.run_log import quiet
from partita.training.trainer import make_trainer

STAGE = PartKey.of("stages", "acoustic")


class Stopwatch(L.Callback):
    """Takes the time of each step, and of each wait for a batch."""

    def __init__(self) -> None:
        self.ends: list[float] = []
        self.busy: list[float] = []
        self.waits: list[float] = []
        self.encodings: list[float] = []

    def on_train_batch_end(self, *_: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.ends.append(time.perf_counter())
        self.busy.append(time.process_time())


def watch(data: FitData, watcher: Stopwatch) -> None:
    """Take the time of every wait for a batch, and of every encoding."""
    make, encode = data._loader, data.on_after_batch_transfer

    class Watched:
        def __init__(self, loader: Any) -> None:
            self.loader = loader

        def __len__(self) -> int:
            return len(self.loader)

        def __iter__(self) -> Any:
            batches = iter(self.loader)
            while True:
                begun = time.perf_counter()
                try:
                    batch = next(batches)
                except StopIteration:
                    return
                watcher.waits.append(time.perf_counter() - begun)
                yield batch

    def timed(batch: Any, index: int) -> Any:
        begun = time.perf_counter()
        found = encode(batch, index)
        watcher.encodings.append(time.perf_counter() - begun)
        return found

    data._loader = lambda *args: Watched(make(*args))  # type: ignore[method-assign,assignment,return-value]
    data.on_after_batch_transfer = timed  # type: ignore[method-assign]


def measure(recipe: str, overrides: list[str], steps: int, workers: int) -> dict[str, float]:
    """Train the stage for some steps, and return the medians of its times in seconds."""
    fit = "stages.acoustic.generator.fit.{}={}"
    plan = load_recipe(recipe, [*overrides, fit.format("steps", steps), fit.format("num_workers", workers)])
    system = System(plan)
    system.tokenizers["acoustic"].load_weights(str(plan.tokenizers["acoustic"].weights))
    system.tokenizers["acoustic"].eval().requires_grad_(False)
    system.source.setup()
    part, watcher = system.parts[STAGE], Stopwatch()
    part.train()
    with tempfile.TemporaryDirectory() as run, quiet():
        data = FitData(system, STAGE)
        watch(data, watcher)
        trainer = make_trainer(
            plan,
            part,
            STAGE,
            Path(run),
            data,
            logger=False,
            limit_val_batches=0,
            callbacks=[watcher],
            enable_progress_bar=False,
        )
        trainer.fit(part, datamodule=data)
    first = steps // 4
    durations = [b - a for a, b in pairwise(watcher.ends[first:])]
    whole = watcher.ends[-1] - watcher.ends[first]
    waiting = sum(watcher.waits[first + 1 : len(watcher.ends)])
    return {
        "seconds_per_step": statistics.median(durations),
        "steps_per_second": len(durations) / whole,
        "processor_seconds_per_step": statistics.median(b - a for a, b in pairwise(watcher.busy[first:])),
        "waiting_share": waiting / whole,
        "encoding_share": sum(watcher.encodings[first + 1 : len(watcher.ends)]) / whole,
    }


def reading(folder: Path, clips: int = 2000) -> dict[str, float]:
    """Return the size of shards and the speed of reading random crops of five seconds from them."""
    source = Shards(str(folder))
    source.setup()
    seconds, examples = 0.0, 0
    for split, reader in source._readers.items():
        for number in range(int(source._starts[split][-1])):
            tensors, _ = reader[number]
            seconds += next(iter(tensors.values())).shape[-1] / next(iter(source.catalog.representations.values()))
            examples += 1
    size = sum(path.stat().st_size for path in folder.glob("*/shard-*.bin"))
    tokens, begun = 0, time.perf_counter()
    for clip in range(clips):
        index, seed = source.draw("train", clip, 0)
        example = source.read("train", index, seed=seed, seconds=5.0, sample_rate=16000, channels=1)
        tokens += sum(values.numel() for values in example.representations.values())
    took = time.perf_counter() - begun
    return {
        "seconds_of_audio": seconds,
        "bytes_per_second_of_audio": size / seconds,
        "tokens_read_per_second": tokens / took,
        "milliseconds_per_clip": 1000 * took / clips,
    }


def main() -> None:
    """Print the table, and save it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--pieces", type=int, default=24, help="scores of the corpus that are used")
    parser.add_argument("--versions", type=int, default=1)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--codec", help="folder of a trained codec")
    add_save(parser)
    options = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        codec = options.codec
        if codec is None:
            codec = f"{folder}/codec"
            System(load_recipe("chorales-tiny")).tokenizers["acoustic"].save(codec)
        shared = [f"tokenizers.acoustic={{weights: {codec}, fit: null}}"]
        live = [*shared, f"data.limit={options.pieces}"]
        begun = time.perf_counter()
        plan = load_recipe("chorales-tiny", live)
        partita.tokenize(plan, f"{folder}/shards", options=TokenOptions(options.versions), progress=False)
        stored = time.perf_counter() - begun
        kept = [*shared, f"data={{name: shards, path: {folder}/shards}}"]
        contenders = {
            "on the fly": (live, 0),
            "on the fly, 2 workers": (live, 2),
            "shards": (kept, 0),
            "shards, 1 worker": (kept, 1),
        }
        found: dict[str, list[dict[str, float]]] = {name: [] for name in contenders}
        for _ in range(options.turns):
            for name, (overrides, workers) in contenders.items():
                found[name].append(measure("chorales-tiny", overrides, options.steps, workers))
        rows = [
            {"training": name} | {key: statistics.median(turn[key] for turn in turns) for key in turns[0]}
            for name, turns in found.items()
        ]
        base = [turn["steps_per_second"] for turn in found["on the fly"]]
        for row in rows:
            own = [turn["steps_per_second"] for turn in found[str(row["training"])]]
            row["speedup"] = statistics.median(a / b for a, b in zip(own, base, strict=True))
            print("  ".join(f"{k} {value:.4g}" if isinstance(value, float) else str(value) for k, value in row.items()))
        figures = reading(Path(folder) / "shards")
        figures["seconds_of_audio_stored_per_second"] = figures["seconds_of_audio"] / stored
        for key, value in figures.items():
            print(f"{key}: {value:,.4g}")
        next(row for row in rows if row["training"] == "shards").update(figures)
        if options.save:
            save("tokens", rows)


if __name__ == "__main__":
    main()
