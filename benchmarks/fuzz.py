"""Attack everything that reads strangers' files: thousands of spoiled recipes, folders, audio files and requests.

Usage: python benchmarks/fuzz.py [--kinds recipes,audio] [--count 100] [--seed 0] [--jobs 2] [--only recipes:17]

Each batch of cases runs in a process of its own, under bounds of time and memory, so that one that dies is known by its
case. The result is a table; what fails is listed with how to repeat it.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

BATCH = 25
PATIENCE = 400
"""Seconds of silence after which a process is taken to hang."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kinds", default="recipes,ablations,folders,audio,requests")
    parser.add_argument(
        "--count", type=int, help="cases of each kind; 1,000 recipes and 100 of the others unless given"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--only", help="one case, kind:index, with all that it says; its folder is kept")
    parser.add_argument("--output", type=Path, help="outcomes, a JSON object on each line")
    parser.add_argument("--batch", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.batch:
        perform(options.batch, options.seed)
    elif options.only:
        repeat(options.only, options.seed)
    else:
        attack(options)


def perform(batch: str, seed: int) -> None:
    """Run some cases, and say of each on a line that it begins, and how it ended."""
    from fuzzing.harness import run_case
    from fuzzing.place import World

    kind, first, last = batch.split(":")
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    with tempfile.TemporaryDirectory() as folder:
        world = World.made(Path(folder))
        for index in range(int(first), int(last)):
            answers.write(json.dumps({"begins": index}) + "\n")
            outcome = run_case(world, kind, index, seed)
            told = {"kind": kind, "index": index, "verdict": outcome.verdict, "failures": outcome.failures}
            told |= {"seconds": outcome.seconds, "memory": outcome.memory, "commands": outcome.commands}
            answers.write(json.dumps(told) + "\n")


def repeat(only: str, seed: int) -> None:
    """Run one case, show all of it, and keep its folder."""
    from fuzzing.harness import run_case
    from fuzzing.place import World

    kind, index = only.split(":")
    world = World.made(Path(tempfile.mkdtemp()))
    outcome = run_case(world, kind, int(index), seed, keep=True)
    for command, status, said in zip(outcome.commands, outcome.statuses, outcome.said, strict=True):
        print(f"partita {json.dumps(command)[:2000]}\nstatus {status}\n{said[:20_000]}\n")
    print(f"{outcome.verdict}, {outcome.seconds:.1f} s, {outcome.memory / 1e6:.0f} MB, in {world.home / 'cases'}")
    for failure in outcome.failures:
        print(f"FAILED {failure}")


def attack(options: argparse.Namespace) -> None:
    """All cases, in processes, and a table."""
    from fuzzing import COUNTS

    began = time.time()
    batches = []
    for kind in options.kinds.split(","):
        count = options.count or COUNTS[kind]
        batches += [(kind, first, min(first + BATCH, count)) for first in range(0, count, BATCH)]
    with ThreadPoolExecutor(options.jobs) as pool:
        outcomes = [
            outcome for found in pool.map(lambda batch: judged(*batch, options.seed), batches) for outcome in found
        ]
    if options.output:
        options.output.write_text("".join(json.dumps(outcome) + "\n" for outcome in outcomes), encoding="utf-8")
    print(f"{'kind':<12}{'cases':>7}{'done':>7}{'refused':>9}{'failed':>8}{'slowest':>24}{'most memory':>24}")
    for kind in options.kinds.split(","):
        own = [outcome for outcome in outcomes if outcome["kind"] == kind]
        counts = Counter(outcome["verdict"] for outcome in own)
        slow, big = (max(own, key=lambda outcome: outcome[key]) for key in ("seconds", "memory"))
        print(
            f"{kind:<12}{len(own):>7}{counts['done']:>7}{counts['refused']:>9}{counts['failed']:>8}"
            f"{slow['seconds']:>14.1f} s ({slow['index']:>5}){big['memory'] / 1e6:>13.0f} MB ({big['index']:>5})"
        )
    for outcome in outcomes:
        for failure in outcome["failures"]:
            print(f"--seed {options.seed} --only {outcome['kind']}:{outcome['index']}: {failure}\n")
    print(f"{sum(bool(outcome['failures']) for outcome in outcomes)} failed, {time.time() - began:.0f} s in all")


def judged(kind: str, first: int, last: int, seed: int) -> list[dict[str, Any]]:
    """The outcomes of a batch; a case at which the process died is a failure, and the next ones run in another."""
    outcomes: list[dict[str, Any]] = []
    while first < last:
        command = [sys.executable, __file__, "--batch", f"{kind}:{first}:{last}", "--seed", str(seed)]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        try:
            output, errors = process.communicate(timeout=PATIENCE * 3)
        except subprocess.TimeoutExpired:
            process.kill()
            output, errors = process.communicate()
        lines = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
        outcomes += [line for line in lines if "verdict" in line]
        begun = [line["begins"] for line in lines if "begins" in line]
        if process.returncode == 0:
            break
        failures = [f"the process died ({process.returncode}): {errors[-2000:]}"]
        if not begun:
            raise SystemExit(f"no case begins: {errors}")
        outcomes.append(
            {"kind": kind, "index": begun[-1], "verdict": "failed", "failures": failures, "seconds": 0.0, "memory": 0}
        )
        first = begun[-1] + 1
    return outcomes


if __name__ == "__main__":
    main()
