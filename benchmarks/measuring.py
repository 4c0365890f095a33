"""What benchmarks share: contenders in turns, the memory's bandwidth, results that name commit and processor."""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from partita.layers.large_pages import LargePages

RESULTS = Path(__file__).parents[1] / "docs" / "performance"
"""Folder of the results that ``docs/performance.md`` is rendered from, one JSON file per benchmark and machine."""


def timed(run: Callable[[], object]) -> float:
    """Return the seconds that a function takes, including the work that a GPU still has to finish."""
    _finish()
    start = time.perf_counter()
    run()
    _finish()
    return time.perf_counter() - start


def in_turns(contenders: Mapping[str, Callable[[], object]], runs: int, warmups: int = 1) -> dict[str, list[float]]:
    """Return the seconds of each run by contender. They take turns, so that their ratios hold on a busy machine."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for run in range(-warmups, runs):
        for name, contender in contenders.items():
            seconds = timed(contender)
            if run >= 0:
                times[name].append(seconds)
    return times


def median_ratio(reference: list[float], times: list[float]) -> float:
    """Return how many times as fast as a reference something is: the median over the pairs of turns."""
    return statistics.median(slow / fast for slow, fast in zip(reference, times, strict=True))


def bandwidth(device: str = "cpu") -> float:
    """Return the bytes per second that the device reads from its memory, the best of several passes over 1 GiB.

    On a CPU, the memory lies in large pages, as rounded weights do.
    """
    size = 1 << 28
    large = LargePages().empty(size, dtype=torch.float32) if device == "cpu" else torch.empty(size, device=device)
    large.fill_(1)
    large.max()  # of all operations that read a tensor once, the fastest on CPUs
    return large.nbytes / min(timed(large.max) for _ in range(7))


def machine() -> dict[str, Any]:
    """Return what a figure depends on: processor, GPU, threads, versions and commit."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    flags = next((line.split(":")[1].split() for line in lines if line.startswith("flags")), [])
    notable = [flag for flag in ("avx2", "avx512f", "avx512_vnni", "amx_int8") if flag in flags]
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent, check=False
    )
    return {
        "processor": f"{names[0] if names else platform.processor()} ({', '.join(notable)})",
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "commit": commit.stdout.strip(),
    }


def add_save(parser: argparse.ArgumentParser) -> None:
    """Add the option that stores the results."""
    parser.add_argument("--save", action="store_true", help="Store the results in docs/performance.")


def save(benchmark: str, rows: list[dict[str, Any]], **facts: Any) -> None:
    """Write the rows of a benchmark, with its description, the machine and other facts, and print where.

    Args:
        benchmark: Name of the file, without the device.
        rows: One mapping per row of the table.
        facts: What holds for all rows. ``plot`` names the columns of a plot: across, up, and one line for each value.
    """
    RESULTS.mkdir(parents=True, exist_ok=True)
    device = "gpu" if torch.cuda.is_available() else "cpu"
    path = RESULTS / f"{benchmark}-{device}.json"
    about = {
        "about": sys.modules["__main__"].__doc__,
        "command": " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
    }
    path.write_text(json.dumps(about | machine() | facts | {"rows": rows}, indent=2) + "\n")
    print(f"results: {path}")


def _finish() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
