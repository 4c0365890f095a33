"""Tables of an ablation's results: the scores of each variant over seeds, and its costs."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from itertools import product
from pathlib import Path
from typing import Any

import torch

from ..core.part_key import PartKey
from ..core.version import __version__
from ..metrics.significance import holm, p_text, paired_test
from ..pages.tables import Table, fitted
from ..system.adapters import read_adapters
from ..training.report import read_curves
from .ablation import Ablation
from .ablation_runs import Run, tokens_per_step, trained_parts
from .evaluate import RESULTS
from .tasks import DONE

LEVEL = 0.05
"""Significance level: differences with smaller p-values are marked with a star."""

COUNTS = ("parameters", "steps")
"""Suffixes of the names of costs that are whole numbers."""

ARROWS = {"higher": " ↑", "lower": " ↓"}

TITLES = {"system": "Scores", "codec": "Scores of the codec", "memorization": "Memorized training clips"}
"""Titles of the tables, by the subject of their scores."""

PartFolders = Mapping[str, Mapping[str, str]]
"""The folder in which each part was trained, by folder of the run and key of the part."""


@dataclass
class RunResult:
    """The results of one run.

    Args:
        run: The run.
        metrics: Rows of the evaluation by name; empty before the evaluation.
        request: The ``request`` of ``evaluation.json``; empty before the evaluation.
        figures: Costs and speeds, by name.
        device: Name of the device of the evaluation.
        notes: Warnings about the evaluation that readers of the rows must know.
    """

    run: Run
    metrics: dict[str, dict[str, Any]]
    request: dict[str, Any]
    figures: dict[str, float]
    device: str = ""
    notes: tuple[str, ...] = ()


@dataclass
class Cell:
    """A score or cost of one variant over its seeds.

    Args:
        mean: Mean over the seeds; NaN without seeds.
        deviation: Unbiased standard deviation over the seeds; NaN for one seed.
        seeds: Number of seeds.
        best: Whether the variant is significantly better than every other variant with as many seeds.
        p: P-value of the difference from the baseline, corrected for the number of variants; NaN if there is none.
    """

    mean: float
    deviation: float
    seeds: int
    best: bool = False
    p: float = math.nan

    @classmethod
    def of(cls, values: Iterable[float]) -> Cell:
        """Return the cell of one value for each seed."""
        values = list(values)
        mean = statistics.fmean(values) if values else math.nan
        return cls(mean, statistics.stdev(values) if len(values) > 1 else math.nan, len(values))

    def __str__(self) -> str:
        text = number(self.mean, self.deviation) + (" ± 0" if self.deviation == 0 else "")
        return f"**{text}**" if self.best else text

    @property
    def starred(self) -> str:
        """The text of the cell, with a star if it differs significantly from the baseline."""
        return f"{self} \\*" if self.p < LEVEL else str(self)


def number(mean: float, deviation: float = math.nan) -> str:
    """Format a mean and its deviation to two digits of the deviation, or a mean alone to four digits.

    >>> number(2.0, 0.4), number(1234.5, 0.25), number(0.00042), number(7.0), number(math.nan)
    ('2.00 ± 0.40', '1,234.50 ± 0.25', '0.00042', '7', '–')
    """
    if math.isnan(mean):
        return "–"
    if deviation > 0:
        digits = min(6, max(0, 1 - math.floor(math.log10(deviation))))
        return f"{mean:,.{digits}f} ± {deviation:,.{digits}f}"
    if mean == round(mean):
        return f"{mean:,.0f}"
    digits = min(6, max(0, 3 - math.floor(math.log10(abs(mean)))))
    return f"{mean:,.{digits}f}".rstrip("0")


def read_results(root: Path, requested: Sequence[Run], part_folders: PartFolders) -> list[RunResult]:
    """Return the result of each run; runs without an evaluation have costs only."""
    return [_result(root, run, part_folders.get(run.folder, {})) for run in requested]


def tables(ablation: Ablation, found: Sequence[RunResult]) -> list[Table]:
    """Return tables that fit on a screen: scores, the mean score of each choice, p-values and costs."""
    result: list[Table] = []
    better = {name: row["better"] for one in found for name, row in one.metrics.items()}
    subjects = {name: row["subject"] for one in found for name, row in one.metrics.items()}
    titles = list(dict.fromkeys(one.run.variant.title for one in found))
    done = [str(sum(bool(one.metrics) for one in found if one.run.variant.title == title)) for title in titles]
    for subject in dict.fromkeys(subjects.values()):
        names = [name for name, own in subjects.items() if own == subject]
        arrows = [name + ARROWS[better[name]] for name in names]
        scores = [
            compare(_by_variant(found, titles, name), better[name], _at_chance(found, titles, name)) for name in names
        ]
        rows = [[title, done[i], *(cells[i].starred for cells in scores)] for i, title in enumerate(titles)]
        rows += [[label, "", *cells] for label, cells in _reference_rows(found, names)]
        result += fitted(TITLES[subject], ["variant", "runs", *arrows], rows)
        for axis in ablation.axes if len(ablation.axes) > 1 else ():
            title = f"{TITLES[subject]}: mean for each choice of {axis}"
            result += fitted(title, [axis, *arrows], _effects(found, axis, names))
        if any(not math.isnan(cell.p) for cells in scores for cell in cells):
            ps = [[title, *(p_text(cells[i].p) for cells in scores)] for i, title in enumerate(titles)]
            result += fitted(
                f"{TITLES[subject]}: corrected p-values of the differences from the baseline", ["", *names], ps[1:]
            )
    figures = list(dict.fromkeys(name for one in found for name in one.figures))
    costs = {name: [Cell.of(one.values()) for one in _by_variant(found, titles, name)] for name in figures}
    rows = [[title, *(_cost(name, costs[name][i]) for name in figures)] for i, title in enumerate(titles)]
    return [*result, *fitted("Cost", ["variant", *figures], rows)]


def compare(values: Sequence[Mapping[int, float]], better: str, at_chance: Sequence[bool] | None = None) -> list[Cell]:
    """Compare the scores of variants over seeds with those of the first variant, the baseline.

    A variant is marked as best only if no variant has more seeds, it differs significantly from every other variant
    with as many seeds (Holm's correction), and it beats its chance level.

    Args:
        values: Scores of each variant by seed, with the baseline first.
        better: ``higher`` or ``lower``.
        at_chance: Whether each variant scores no better than chance.

    Example:
        >>> cells = compare([{0: 1.0, 1: 2.0, 2: 1.5}, {0: 4.0, 1: 5.1, 2: 4.4}], "higher")
        >>> [str(cell) for cell in cells]
        ['1.50 ± 0.50', '**4.50 ± 0.56**']
    """
    cells = [Cell.of(one.values()) for one in values]
    most = max((cell.seeds for cell in cells), default=0)
    rivals = [i for i, cell in enumerate(cells) if cell.seeds == most and most]
    if len(rivals) > 1:
        sign = 1 if better == "higher" else -1
        first = max(rivals, key=lambda i: sign * cells[i].mean)
        ps = [_paired(values[first], values[i]) for i in rivals if i != first]
        chance = at_chance is not None and at_chance[first]
        cells[first].best = not chance and not any(map(math.isnan, ps)) and max(holm(ps)) < LEVEL
    ps = [_paired(values[0], one) for one in values[1:]]
    known = [i for i, p in enumerate(ps) if not math.isnan(p)]
    for i, p in zip(known, holm([ps[i] for i in known]), strict=True):
        cells[1 + i].p = p
    return cells


def _paired(first: Mapping[int, float], second: Mapping[int, float]) -> float:
    """Return the p-value of the difference over the seeds that both variants have."""
    common = sorted(first.keys() & second.keys())
    return paired_test([first[seed] for seed in common], [second[seed] for seed in common])


def _at_chance(found: Sequence[RunResult], titles: Sequence[str], name: str) -> list[bool]:
    """Return for each variant whether one of its runs scores no better than chance."""
    losers = {one.run.variant.title for one in found if one.metrics.get(name, {}).get("beats_chance") is False}
    return [title in losers for title in titles]


def _reference_rows(found: Sequence[RunResult], names: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """Yield reference rows: the score of real clips, if all runs share it, and the mean chance level of all runs."""
    rows = {name: [one.metrics.get(name, {}) for one in found if one.metrics] for name in names}
    real = {name: _shared(row.get("real") for row in of) for name, of in rows.items()}
    chance = {name: [row["chance"] for row in of if "chance" in row] for name, of in rows.items()}
    if any(value is not None for value in real.values()):
        yield "real clips", ["–" if value is None else number(value) for value in real.values()]
    if any(chance.values()):
        yield "chance", [number(statistics.fmean(values)) if values else "–" for values in chance.values()]


def notes(ablation: Ablation, found: Sequence[RunResult]) -> list[str]:
    """Return notes on how to read the tables."""
    runs = [one.run for one in found]
    seeds = sorted({run.seed for run in runs})
    lines = [
        f"{len({run.variant.title for run in runs})} variants, seeds {', '.join(map(str, seeds))}; baseline: "
        f"{runs[0].variant.title}",
        f"{sum(bool(one.metrics) for one in found)} of {len(found)} runs are evaluated, each on "
        f"{ablation.evaluation.clips} clips"
        + ("" if ablation.evaluation.duration is None else f" of {ablation.evaluation.duration:g} s"),
    ]
    if len({json.dumps(run.plan.values.get("data"), default=str) for run in runs}) > 1:
        lines.append("the variants have different data and are evaluated on different pieces")
    rates = sorted({run.outline.output.spec.sample_rate for run in runs if run.outline.tokenizers})
    if len(rates) > 1:
        lines.append(
            f"the variants have sample rates of {' and '.join(f'{rate / 1000:g}' for rate in rates)} kHz, at which the "
            "distances of the codec are measured: they are comparable at the same rate only"
        )
    lines += dict.fromkeys(note for one in found for note in one.notes)
    if len(seeds) > 2:
        lines.append(
            "mean ± standard deviation over seeds; *: differs from the baseline with p < "
            f"{LEVEL:g} (paired t-test over seeds with Holm's correction for the number of variants); bold: differs "
            "significantly from every other variant and beats chance; if nothing is bold, no variant is "
            "significantly best"
        )
    elif len(seeds) > 1:
        lines.append("mean ± standard deviation over seeds; with fewer than three seeds, nothing is marked as best")
    else:
        lines.append("one seed: the significance of differences is unknown, so nothing is marked as best")
    for folder in dict.fromkeys(folder for run in runs for folder in trained_parts(run)):
        fits = {(p.fit_options.steps, p.fit_options.examples, p.fit_options.warmup_steps) for p in _parts(runs, folder)}
        if len({fit[:2] for fit in fits}) > 1:
            listed = " or ".join(f"{s:,} steps of {b}" for s, b in sorted({fit[:2] for fit in fits}))
            lines.append(f"{folder} is not trained equally in all variants: {listed}")
        if any(warmup > steps / 2 for steps, _, warmup in fits):
            lines.append(
                f"{folder} warms up for more than half of its training: its budget is too small for its preset"
            )
        doubts = dict.fromkeys(doubt for part in _parts(runs, folder) if (doubt := part.doubt()) is not None)
        lines += [f"{folder}: {doubt}" for doubt in doubts]
    if ablation.budget:
        amounts = (f"{group}: {v:g} {unit}" for group, amount in ablation.budget.items() for unit, v in amount.items())
        lines.append(f"budget: {', '.join(amounts)}")
    devices = sorted({one.device for one in found if one.device})
    lines.append(", ".join([f"Partita {__version__}", f"torch {torch.__version__}", *devices, str(date.today())]))
    lines.append(
        "training time counts training steps only; a shared part counts in full for each variant; parameters are those "
        "used in generation; tokens are codes of all codebooks, or frames of latents"
    )
    return lines


def _parts(runs: Sequence[Run], key: PartKey) -> list[Any]:
    return [part for run in runs if (part := trained_parts(run).get(key)) is not None]


def _result(root: Path, run: Run, part_folders: Mapping[str, str]) -> RunResult:
    """Read the result of a run from its files; without an evaluation, it holds the costs only."""
    evaluation, speed = root / run.folder / "evaluation" / RESULTS, root / run.folder / "evaluation" / DONE
    done, system = evaluation.is_file() and speed.is_file(), run.outline
    figures = {"parameters": float(sum(part.num_parameters for part in system.parts.values()))}
    for name, tokenizer in system.tokenizers.items():
        spec = tokenizer.spec
        if spec.discrete and spec.frame_rate is not None:
            bits = spec.frame_rate * sum(math.log2(cardinality) for cardinality in spec.cardinalities)
            figures[f"tokenizers/{name}: kbit/s"] = bits / 1000
    minutes, hours = 0.0, 0.0
    for key, part in trained_parts(run).items():
        fit = part.fit_options
        if not (root / part_folders.get(key, run.folder) / key / "model.safetensors").is_file():
            minutes = math.nan
            continue
        figures[f"{key}: steps"] = float(fit.steps)
        if system.adapter_of(key) is not None:
            adapters = read_adapters(root / part_folders.get(key, run.folder))
            size = sum(one.num_parameters for one in adapters if one.stage == key.name)
            figures[f"{key}: adapter parameters"] = float(size)
        if key.group != "conditioners":
            figures[f"{key}: million tokens"] = fit.steps * tokens_per_step(system, key) / 1e6
        curves = read_curves(root / part_folders.get(key, run.folder), key)
        _, steps_per_second = curves.get("speed/steps_per_second", ([], []))
        _, audio = curves.get("speed/audio_seconds_per_second", ([], []))
        if not steps_per_second:
            minutes = math.nan
            continue
        spent = fit.steps * statistics.fmean(1 / speed for speed in steps_per_second) / 60
        seconds = system.plan.stages[key.name].window if key.group == "stages" else fit.crop
        figures[f"{key}: minutes"] = spent
        figures[f"{key}: audio s/s in training"] = statistics.median(audio)
        minutes += spent
        hours += spent / 60 * max(1, round(audio[-1] / (steps_per_second[-1] * fit.examples * seconds)))
    if minutes > 0:
        figures |= {"training minutes": minutes, "device hours": hours}
    if not done:
        return RunResult(run, {}, {}, figures)
    fast = json.loads(speed.read_text(encoding="utf-8"))
    figures[f"audio s/s {'generated' if system.stages else 'reconstructed'}"] = fast["audio_seconds_per_second"]
    results = json.loads(evaluation.read_text(encoding="utf-8"))
    return RunResult(
        run, results["metrics"], results["request"], figures, fast["device"], tuple(results.get("notes", ()))
    )


def _by_variant(found: Sequence[RunResult], titles: Sequence[str], figure: str) -> list[dict[int, float]]:
    values: dict[str, dict[int, float]] = {title: {} for title in titles}
    for one in found:
        value = one.figures.get(figure, one.metrics.get(figure, {}).get("value", math.nan))
        if not math.isnan(value):
            values[one.run.variant.title][one.run.seed] = value
    return list(values.values())


def _effects(found: Sequence[RunResult], axis: str, metrics: Sequence[str]) -> list[list[str]]:
    """Return a row for every choice of an axis: means over seeds and all other axes.

    Only those combinations count in which every choice of the axis has a result.
    """
    choices = list(dict.fromkeys(one.run.variant.choices[axis] for one in found))
    cells: dict[tuple[Any, ...], RunResult] = {}
    for one in found:
        rest = tuple(label for key, label in one.run.variant.choices.items() if key != axis)
        cells[one.run.variant.choices[axis], rest, one.run.seed] = one
    rests, seeds = dict.fromkeys(key[1] for key in cells), dict.fromkeys(key[2] for key in cells)
    rows = []
    for choice in choices:
        row = [choice]
        for name in metrics:
            by_seed: dict[int, list[float]] = {}
            for rest, seed in product(rests, seeds):
                counterparts = [
                    cells[other, rest, seed].metrics.get(name) for other in choices if (other, rest, seed) in cells
                ]
                if len(counterparts) == len(choices) and all(counterparts):
                    by_seed.setdefault(seed, []).append(cells[choice, rest, seed].metrics[name]["value"])
            cell = Cell.of(statistics.fmean(values) for values in by_seed.values())
            row.append(number(cell.mean, cell.deviation))
        rows.append(row)
    return rows


def _cost(name: str, cell: Cell) -> str:
    whole = name.endswith(COUNTS) and not math.isnan(cell.mean)
    return f"{cell.mean:,.0f}" if whole else number(cell.mean, cell.deviation)


def _shared(values: Iterable[float | None]) -> float | None:
    """Return the value that all have in common, up to rounding; ``None`` if they differ or one is missing."""
    known = list(values)
    if not known or any(value is None or math.isnan(value) for value in known):
        return None
    low, high = min(known), max(known)  # type: ignore[type-var]
    return known[0] if high - low <= 1e-6 * max(1.0, abs(high)) else None  # type: ignore[operator, arg-type]
