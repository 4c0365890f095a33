"""A training step of MusicGen-small's shape, here and in transformers: seconds and peak memory.

    python benchmarks/train_step.py
    python benchmarks/train_step.py --depth 4 --runs 2     # a quick try

Both models have the same weights, codes, text and precision, and a step is the forward pass, the loss, the backward
pass and an update by AdamW with the learning rate and weight decay of MusicGen. They take turns in one process each,
so that each has a peak memory of its own; the processes wait for one another, so that only one of them computes.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import statistics
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import torch
from decode import CARDINALITY, CODEBOOKS, models
from measuring import add_save, median_ratio, save, timed
from torch import Tensor

from partita.core.contracts import Condition
from partita.core.fit import Fit

os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # of the processes, as in the command line: idle threads yield

FIT = Fit(lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1)


def batch(options: argparse.Namespace) -> tuple[Tensor, Tensor]:
    """Codes ``[B, K, T]`` and embeddings ``[B, L, width]`` of a text."""
    generator = torch.Generator().manual_seed(1)
    codes = torch.randint(CARDINALITY, (options.batch, CODEBOOKS, options.frames), generator=generator)
    return codes, torch.randn(options.batch, options.tokens, options.width, generator=generator)


def ours(options: argparse.Namespace) -> Callable[[], float]:
    stage, _ = models(options.width, options.depth, options.heads)
    stage.tail = False  # as in transformers' labels below
    stage.backbone.layers.checkpointing = options.checkpointing
    stage.train().to(options.device)
    optimizer = FIT.make_optimizer(stage.parameters())
    codes, text = (values.to(options.device) for values in batch(options))
    mask = torch.ones(len(codes), options.frames, dtype=torch.bool, device=options.device)
    present = torch.ones(text.shape[:2], dtype=torch.bool, device=options.device)

    def step() -> float:
        with autocast(options):
            loss = stage.loss(codes, mask, {"text": Condition(text, present)})["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step


def theirs(options: argparse.Namespace) -> Callable[[], float]:
    _, reference = models(options.width, options.depth, options.heads)
    reference.train().to(options.device)
    reference.config.use_cache = False
    for module in reference.modules():  # ours has none
        if hasattr(module, "dropout"):
            module.dropout = 0.0
    optimizer = torch.optim.AdamW(
        reference.parameters(), lr=FIT.lr, betas=FIT.betas, eps=FIT.eps, weight_decay=FIT.weight_decay
    )
    codes, text = batch(options)
    # The delay pattern, as audiocraft trains it: codes after the last frame are left out, and empty places not counted.
    inputs = torch.full((len(codes), CODEBOOKS, options.frames), CARDINALITY)
    labels = torch.full_like(inputs, CARDINALITY)  # not counted, as it is the padding
    for k in range(CODEBOOKS):
        labels[:, k, k:] = codes[:, k, : options.frames - k]
        inputs[:, k, k + 1 :] = codes[:, k, : options.frames - k - 1]
    ids = inputs.flatten(0, 1).to(options.device)
    answers, encoded = labels.mT.contiguous().to(options.device), text.to(options.device)

    def step() -> float:
        with autocast(options):
            loss = reference(input_ids=ids, encoder_hidden_states=encoded, labels=answers).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step


def autocast(options: argparse.Namespace) -> Any:
    return torch.autocast(torch.device(options.device).type, torch.bfloat16, enabled=options.precision == "bf16-mixed")


CONTENDERS = {"partita": ours, "transformers": theirs}


def contend(name: str, options: argparse.Namespace, turns: Connection) -> None:
    """Take a step whenever asked to, and answer with its seconds, loss and the peak memory so far in bytes."""
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    step = CONTENDERS[name](options)
    if options.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    turns.send(None)
    while turns.recv():
        losses: list[float] = []
        seconds = timed(lambda losses=losses: losses.append(step()))
        if options.device == "cuda":
            peak = torch.cuda.max_memory_allocated()
        else:
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        turns.send((seconds, losses[0], peak))


def compare(options: argparse.Namespace) -> dict[str, Any]:
    """Measure both contenders in turns."""
    context = multiprocessing.get_context("spawn")
    ends, processes = {}, []
    for name in CONTENDERS:
        here, there = context.Pipe()
        process = context.Process(target=contend, args=(name, options, there))
        process.start()
        here.recv()  # builds its weights before the next one does
        ends[name] = here
        processes.append(process)
    times: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    losses: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    peaks: dict[str, int] = {}
    for run in range(options.runs + 1):
        for name, turns in ends.items():
            turns.send(True)
            seconds, loss, peaks[name] = turns.recv()
            losses[name].append(loss)
            if run:
                times[name].append(seconds)
            print(
                f"{options.precision} {name}: {seconds:.2f} s, loss {loss:.4f}, peak {peaks[name] / 1e9:.2f} GB",
                flush=True,
            )
    for turns in ends.values():
        turns.send(False)
    for process in processes:
        process.join()
    return {
        "precision": options.precision,
        "batch": options.batch,
        "frames": options.frames,
        "depth": options.depth,
        "checkpointing": options.checkpointing,
        "partita_seconds": statistics.median(times["partita"]),
        "transformers_seconds": statistics.median(times["transformers"]),
        "ratio": median_ratio(times["transformers"], times["partita"]),
        "partita_gibibytes": peaks["partita"] / 2**30,
        "transformers_gibibytes": peaks["transformers"] / 2**30,
        "memory": peaks["partita"] / peaks["transformers"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--depth", type=int, default=24)
    parser.add_argument("--heads", type=int, default=16)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--frames", type=int, default=500, help="10 s at 50 Hz")
    parser.add_argument("--tokens", type=int, default=32, help="length of the text")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--precision", choices=["32-true", "bf16-mixed"], nargs="+", default=["bf16-mixed", "32-true"])
    parser.add_argument("--checkpointing", action="store_true", help="recompute the blocks of ours")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add_save(parser)
    options = parser.parse_args()
    rows = []
    for precision in options.precision:
        row = compare(argparse.Namespace(**vars(options) | {"precision": precision}))
        print(f"{precision}: {row['ratio']:.2f} times as fast, at {row['memory']:.2f} of the memory")
        rows.append(row)
        if options.save:
            save("train_step", rows, width=options.width, heads=options.heads)


if __name__ == "__main__":
    main()
