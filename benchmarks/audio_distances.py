"""How far distances of few real clips are from those of many, and how often their intervals hold them.

    python benchmarks/audio_distances.py --draws 24 --clips 64

As `partita evaluate` does, clips of the test pieces of the corpus are compared with a fixed reference of other clips of
the same pieces, in log-mel spectra. Beside the distances of Partita stand two other ways to take the bias of few clips
off the Fréchet distance: FAD∞ of single frames, as published (arXiv 2311.01616), and twice the distance less the mean
distance of clips drawn with replacement.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from scipy.stats import linregress
from torch import Tensor

from partita.data.arrangement import Arrangements
from partita.data.corpus import Corpus
from partita.data.examples import Examples
from partita.evaluation.embedders import read_embedder
from partita.metrics.frechet import ClipSets, FrechetDistance, FrechetInfinity
from partita.metrics.gaussian import Gaussian, frechet_distance
from partita.metrics.kernel import KernelDistance, Sample

SLOW = 1000
"""Clips whose kernel distance, which takes all pairs, stands for that of all there could be."""

INSTRUMENTS = ("church organ", "strings", "brass", "harpsichord", "flute", "choir")


def frames_of(clips: int, seconds: float, seed: int) -> tuple[Tensor, list[str]]:
    """Log-mel frames ``[N, S, D]`` of test clips, and their pieces."""
    source, embed = (
        Corpus(arrangements=Arrangements(instruments=INSTRUMENTS, mixed=0.0, tempo=(60, 120))),
        read_embedder("log-mel-16khz"),
    )
    source.setup()
    examples = Examples(source, "test", length=clips, seconds=seconds, sample_rate=16000, channels=1, seed=seed)
    found = [examples[i] for i in range(clips)]
    frames = [embed(clip.audio[None], 16000)[0] for clip in found]
    return torch.stack(frames), [clip.fields["id"] for clip in found]


def published(frames: Tensor, reference: Gaussian, generator: torch.Generator) -> tuple[float, float]:
    """FAD∞ of frames ``[N, D]`` drawn with replacement, and the R² of its line."""
    counts = np.linspace(500, len(frames), 25).astype(int)
    drawn = [frames[torch.randint(len(frames), (int(n),), generator=generator)] for n in counts]
    fit = linregress(1 / counts, [float(frechet_distance(reference, Gaussian.of(some))) for some in drawn])
    return fit.intercept, fit.rvalue**2


def resampled(frames: Tensor, reference: Gaussian, generator: torch.Generator, times: int = 200) -> float:
    """Twice the distance of clips ``[N, S, D]`` less the mean distance of as many drawn with replacement."""
    clips = len(frames)
    sets = ClipSets(frames.flatten(0, 1), torch.full((clips,), frames.shape[1]), reference)
    drawn = torch.randint(clips, (times, clips), generator=generator)
    weights = torch.zeros(times, clips, dtype=torch.float64).scatter_add_(1, drawn, torch.ones(drawn.shape).double())
    return float(2 * sets.distances(torch.ones(1, clips)) - sets.distances(weights).mean())


def compare(draws: int, clips: int, seconds: float, population: int) -> None:
    """Print means over draws, what the clips of all draws and more have, and how often intervals hold that."""
    known, known_pieces = frames_of(256, seconds, 4)
    everything, pieces = frames_of(max(population, draws * clips), seconds, 1000)
    gaussian, sample = FrechetDistance(known.shape[2]), Sample.of(known.flatten(0, 1), sizes(known), known_pieces)
    gaussian.update(known.flatten(0, 1), reference=True)
    reference = gaussian.reference_statistics
    truth = fad_of(everything, pieces, reference) | kad_of(everything[-SLOW:], pieces[-SLOW:], sample)
    print(f"{len(everything)} clips: FAD {truth['frechet']:.3f}, FAD∞ {truth['limit']:.3f}, KAD {truth['kad']:.3f}")
    generator, found = torch.Generator().manual_seed(0), []
    for start in range(0, draws * clips, clips):
        frames, names = everything[start : start + clips], pieces[start : start + clips]
        row = fad_of(frames, names, reference) | kad_of(frames, names, sample)
        row["published"], row["r2"] = published(frames.flatten(0, 1), reference, generator)
        found.append(row | {"resampled": resampled(frames, reference, generator)})
    for title, name, target in (
        ("FAD", "frechet", "limit"),
        ("FAD∞ of frames, as published", "published", "limit"),
        ("FAD without the bias of resampled clips", "resampled", "limit"),
        ("FAD∞", "limit", "limit"),
        ("KAD", "kad", "kad"),
    ):
        values, bounds = np.array([row[name] for row in found]), ""
        if f"{name}_low" in found[0]:
            held = np.mean([row[f"{name}_low"] <= truth[target] <= row[f"{name}_high"] for row in found])
            width = np.mean([row[f"{name}_high"] - row[f"{name}_low"] for row in found])
            bounds = f"; 95 % intervals, {width:.2f} wide, hold it in {held:.1%}"
        print(
            f"{title}: mean {values.mean():.2f} ± {values.std(ddof=1) / len(values) ** 0.5:.2f}, deviation "
            f"{values.std(ddof=1):.2f}, of {truth[target]:.2f}{bounds}"
        )
    drift = np.array([abs(row["drift"]) for row in found])
    print(f"limits that drift too far to be shown: {np.mean(drift > 1):.1%}; median drift {np.median(drift):.2f}")
    print(f"R² of the published form: {np.mean([row['r2'] for row in found]):.2f} on average")


def fad_of(frames: Tensor, names: list[str], reference: Gaussian) -> dict[str, float]:
    """What is found of the Fréchet distance of clips ``[N, S, D]``."""
    metric = FrechetInfinity(frames.shape[2], reference=reference)
    metric.update(frames.flatten(0, 1), sizes=sizes(frames), pieces=names)
    return {name: float(value) for name, value in metric.compute().items()}


def kad_of(frames: Tensor, names: list[str], reference: Sample) -> dict[str, float]:
    """What is found of the kernel distance of clips ``[N, S, D]``."""
    metric = KernelDistance(frames.shape[2], reference=reference)
    metric.update(frames.flatten(0, 1), sizes(frames), pieces=names)
    return {name: float(value) for name, value in metric.compute().items()}


def sizes(frames: Tensor) -> Tensor:
    """The number of frames of each clip."""
    return torch.full((len(frames),), frames.shape[1])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=24, help="how many sets of clips")
    parser.add_argument("--clips", type=int, default=64, help="in each")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each clip")
    parser.add_argument("--population", type=int, default=3000, help="clips that stand for all there could be")
    options = parser.parse_args()
    compare(options.draws, options.clips, options.seconds, options.population)
