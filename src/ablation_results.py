"""What an ablation found: every variant's scores over seeds, what they cost, and what they sound like, on one page."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import soundfile
import torch
import yaml

from .ablation import Ablation, Run, tokens_per_step, trained
from .data.examples import Examples
from .evaluate import RESULTS, SEED
from .page import clip_media, data_uri, write_page
from .plots import bands_figure, png
from .report import read_curves
from .schema import plain
from .significance import holm, paired_test
from .tables import markdown, write_csv, write_text
from .tasks import DONE

LEVEL = 0.05
"""P-values below it are marked."""

FIRST = ("val/loss", "val/mel_distance", "train/loss")
"""The curves that are looked at first."""

Places = Mapping[str, Mapping[str, str]]
"""By run, where each of its parts was trained."""


@dataclass
class Found:
    """What one run found.

    Args:
        run: It is of.
        metrics: Rows of its evaluation by name; empty where it has none.
        figures: What it cost and how fast it is, by name.
    """

    run: Run
    metrics: dict[str, dict[str, Any]]
    figures: dict[str, float]


@dataclass
class Cell:
    """A figure of one variant over its seeds.

    Args:
        mean: Of the seeds.
        deviation: Between them (unbiased); nan for one.
        best: Whether no variant's mean is better.
        p: Of the difference from the baseline, corrected for the number of variants; nan where there is none.
    """

    mean: float
    deviation: float
    best: bool = False
    p: float = math.nan

    def __str__(self) -> str:
        if math.isnan(self.mean):
            return "–"
        digits = 0 if self.mean == round(self.mean) or abs(self.mean) >= 1000 else 1 if abs(self.mean) >= 100 else 3
        text = f"{self.mean:,.{digits}f}"
        if self.deviation > 0:
            text += f" ± {self.deviation:,.{digits}f}"
        return text + (" *" if self.p < LEVEL else "")


def write_results(
    root: Path, ablation: Ablation, wanted: Sequence[Run], places: Places, problems: Mapping[str, str]
) -> None:
    """Write ``ablation.html``, ``ablation.md`` and ``ablation.csv``.

    Args:
        root: Folder of the ablation.
        ablation: What was compared.
        wanted: Its runs, done or not.
        places: Of their parts.
        problems: By what has no result, why.
    """
    found = [_found(root, run, places[run.folder]) for run in wanted]
    names = list(dict.fromkeys(run.variant.name for run in wanted))
    better = {name: row["better"] for one in found for name, row in one.metrics.items()}
    scores = {name: compare(_by_variant(found, names, name), better[name]) for name in better}
    figures = {name: compare(_by_variant(found, names, name), "") for one in found for name in one.figures}
    real = {
        name: statistics.fmean(values)
        for name in better
        if (values := [v for one in found if not math.isnan(v := one.metrics.get(name, {}).get("real", math.nan))])
    }
    _csv(root / "ablation.csv", ablation, found, list(better), list(figures))
    notes = _notes(ablation, wanted, found, names)
    effects = {axis: _effects(found, axis, better) for axis in ablation.axes if len(ablation.axes) > 1}
    tables = [
        ("Scores", *_score_table(names, scores, better, real)),
        *((f"Every {axis}, over all the rest", *table) for axis, table in effects.items()),
        (
            "Cost",
            ["variant", *figures],
            [[name, *(str(figures[f][i]) for f in figures)] for i, name in enumerate(names)],
        ),
    ]
    lines = [f"# Ablation of {ablation.recipe}", *(f"- {note}" for note in notes)]
    lines += [f"- not there: {name}: {reason}" for name, reason in problems.items()]
    parts = [f"## {title}\n\n{markdown(columns, rows)}" for title, columns, rows in tables]
    write_text(root / "ablation.md", "\n".join(lines).replace("\n", "\n\n", 1) + "\n\n" + "\n\n".join(parts) + "\n")
    write_page(
        root / "ablation.html",
        "ablation.html",
        title=f"Ablation of {ablation.recipe}",
        notes=notes,
        problems=problems,
        tables=tables,
        scores=scores,
        names=names,
        clips=_clips(root, found, names),
        curves=_curves(root, wanted, places),
        request=yaml.safe_dump(plain(ablation), sort_keys=False, allow_unicode=True),
    )


def compare(values: Sequence[Mapping[int, float]], better: str) -> list[Cell]:
    """Variants' figures over seeds, compared with the first one's.

    Args:
        values: Of each variant, by seed; the baseline first.
        better: ``higher``, ``lower``, or nothing where neither is.

    Example:
        >>> cells = compare([{0: 1.0, 1: 2.0}, {0: 1.5, 1: 2.25}], "higher")
        >>> [str(cell) for cell in cells], [cell.best for cell in cells]
        (['1.500 ± 0.707', '1.875 ± 0.530'], [False, True])
    """
    cells = [
        Cell(
            statistics.fmean(one.values()) if one else math.nan,
            statistics.stdev(one.values()) if len(one) > 1 else math.nan,
        )
        for one in values
    ]
    means = [cell.mean for cell in cells if not math.isnan(cell.mean)]
    if better and means:
        winner = max(means) if better == "higher" else min(means)
        for cell in cells:
            cell.best = cell.mean == winner and len(set(means)) > 1
        ps = []
        for one in values[1:]:
            common = sorted(values[0].keys() & one.keys())
            ps.append(paired_test([values[0][seed] for seed in common], [one[seed] for seed in common]))
        known = [i for i, p in enumerate(ps) if not math.isnan(p)]
        for i, p in zip(known, holm([ps[i] for i in known]), strict=True):
            cells[1 + i].p = p
    return cells


def _found(root: Path, run: Run, places: Mapping[str, str]) -> Found:
    """What a run's files say; of one without an evaluation, what can be known without."""
    evaluation, speed = root / run.folder / "evaluation" / RESULTS, root / run.folder / "evaluation" / DONE
    done = evaluation.is_file() and speed.is_file()
    system = run.outline
    figures = {"parameters": float(sum(part.num_parameters for part in system.parts.values()))}
    for name, tokenizer in system.tokenizers.items():
        facts = tokenizer.representation
        if facts.num_codebooks and facts.cardinality:
            bits = facts.frame_rate * facts.num_codebooks * math.log2(facts.cardinality)
            figures[f"tokenizers/{name}: kbit/s"] = bits / 1000
    minutes, devices = 0.0, 0.0
    for folder, part in trained(run).items():
        curves = read_curves(root / places.get(folder, run.folder), folder)
        _, steps_per_second = curves.get("speed/steps_per_second", ([], []))
        _, audio = curves.get("speed/audio_seconds_per_second", ([], []))
        fit, (group, name) = part.fit_options, folder.split("/")
        figures[f"{folder}: steps"] = float(fit.steps)
        if group != "conditioners":
            figures[f"{folder}: million tokens"] = fit.steps * tokens_per_step(system, folder) / 1e6
        if not steps_per_second:
            minutes = math.nan
            continue
        spent = fit.steps * statistics.fmean(1 / speed for speed in steps_per_second) / 60
        seconds = system.plan.stages[name].window if group == "stages" else fit.crop
        figures[f"{folder}: minutes"] = spent
        figures[f"{folder}: audio s/s in training"] = statistics.median(audio)
        minutes += spent
        devices += spent * max(1, round(audio[-1] / (steps_per_second[-1] * fit.batch_size * seconds)))
    if minutes > 0:
        figures |= {"training minutes": minutes, "device hours": devices / 60}
    if done:
        figures["audio s/s generated"] = json.loads(speed.read_text(encoding="utf-8"))["audio_seconds_per_second"]
    metrics = json.loads(evaluation.read_text(encoding="utf-8"))["metrics"] if done else {}
    return Found(run, metrics, figures)


def _by_variant(found: Sequence[Found], names: Sequence[str], figure: str) -> list[dict[int, float]]:
    values: dict[str, dict[int, float]] = {name: {} for name in names}
    for one in found:
        value = one.figures.get(figure, one.metrics.get(figure, {}).get("value", math.nan))
        if value is not None and not math.isnan(value):
            values[one.run.variant.name][one.run.seed] = value
    return list(values.values())


def _score_table(
    names: Sequence[str], scores: Mapping[str, Sequence[Cell]], better: Mapping[str, str], real: Mapping[str, float]
) -> tuple[list[str], list[list[str]]]:
    arrows = {"higher": " ↑", "lower": " ↓"}
    rows = [
        [name, *(f"**{cells[i]}**" if cells[i].best else str(cells[i]) for cells in scores.values())]
        for i, name in enumerate(names)
    ]
    rows.append(["real clips", *(f"{real[name]:.3f}" if name in real else "–" for name in scores)])
    return ["variant", *(name + arrows.get(better[name], "") for name in scores)], rows


def _effects(found: Sequence[Found], axis: str, metrics: Mapping[str, str]) -> tuple[list[str], list[list[str]]]:
    """What each choice scores on average over everything else that is varied."""
    rows = []
    for choice in dict.fromkeys(one.run.variant.choices[axis] for one in found):
        mine = [one for one in found if one.run.variant.choices[axis] == choice]
        cells = []
        for name in metrics:
            values = [one.metrics[name]["value"] for one in mine if name in one.metrics]
            deviation = statistics.stdev(values) if len(values) > 1 else math.nan
            cells.append(str(Cell(statistics.fmean(values) if values else math.nan, deviation)))
        rows.append([choice, *cells, str(sum(bool(one.metrics) for one in mine))])
    return [axis, *metrics, "runs"], rows


def _csv(
    path: Path, ablation: Ablation, found: Sequence[Found], metrics: Sequence[str], figures: Sequence[str]
) -> None:
    """A row for each run."""
    bounds = [f"{name} {bound}" for name in metrics for bound in ("value", "low", "high")]
    rows = []
    for one in found:
        scores = [one.metrics.get(name, {}).get(bound, "") for name in metrics for bound in ("value", "low", "high")]
        choices = [one.run.variant.choices[axis] for axis in ablation.axes]
        costs = [one.figures.get(name, "") for name in figures]
        rows.append([one.run.variant.name, *choices, one.run.seed, one.run.folder, *scores, *costs])
    write_csv(path, ["variant", *ablation.axes, "seed", "folder", *bounds, *figures], rows)


def _notes(ablation: Ablation, wanted: Sequence[Run], found: Sequence[Found], names: Sequence[str]) -> list[str]:
    seeds = sorted({run.seed for run in wanted})
    notes = [
        f"{len(names)} variants, seeds {', '.join(map(str, seeds))}; baseline: {names[0]}",
        f"{sum(bool(one.metrics) for one in found)} of {len(found)} runs are evaluated, each on "
        f"{ablation.evaluation.clips} clips, from the same captions",
    ]
    if len(seeds) > 1:
        notes.append(
            "mean ± standard deviation over seeds; bold: best; *: differs from the baseline with p < "
            f"{LEVEL:g} (paired t-test over seeds, corrected for the number of variants after Holm)"
        )
    else:
        notes.append("one seed: nothing is known of how much chance there is in a difference; bold: best")
    for folder in dict.fromkeys(folder for run in wanted for folder in trained(run)):
        steps = {
            (part.fit_options.steps, part.fit_options.batch_size)
            for run in wanted
            if (part := trained(run).get(folder)) is not None
        }
        if len(steps) > 1:
            listed = ", ".join(f"{s:,} steps of {b}" for s, b in sorted(steps))
            notes.append(f"{folder} is not trained alike in all variants: {listed}")
    if ablation.budget:
        amounts = (f"{group}: {v:g} {unit}" for group, amount in ablation.budget.items() for unit, v in amount.items())
        notes.append(f"budget: {', '.join(amounts)}")
    notes.append("training time is that of the steps; what variants share counts in full for each")
    return notes


def _clips(root: Path, found: Sequence[Found], names: Sequence[str], most: int = 48) -> list[dict[str, Any]]:
    """For a few captions, the real piece and what each variant made of them with its first seed."""
    first = {one.run.variant.name: one.run for one in reversed(found) if one.metrics}
    if not first:
        return []
    run = next(iter(first.values()))
    facts = run.outline.output.representation
    paths = {name: sorted((root / first[name].folder / "evaluation" / "clips").glob("*.flac")) for name in first}
    shown = min(4, *(len(of) for of in paths.values()), max(1, most // (len(first) + 1)))
    request = json.loads((root / run.folder / "evaluation" / RESULTS).read_text(encoding="utf-8"))["request"]
    run.outline.source.setup()
    pieces = Examples.at(
        facts, run.outline.source, "test", request["options"]["clips"], request["options"]["duration"], SEED
    )
    rows = []
    for i in range(shown):
        media = [clip_media(pieces[i].audio, facts.sample_rate, "the piece itself")]
        for name in (name for name in names if name in paths):
            audio, rate = soundfile.read(paths[name][i], dtype="float32", always_2d=True)
            media.append(clip_media(torch.from_numpy(audio.T), rate, name))
        rows.append({"caption": str(pieces[i].fields.get("text") or pieces[i].fields.get("id", "")), "clips": media})
    return rows


def _curves(root: Path, wanted: Sequence[Run], places: Places) -> list[dict[str, Any]]:
    """Of every part that is trained, validation and training losses of all variants in one picture each."""
    groups = []
    for folder in dict.fromkeys(folder for run in wanted for folder in trained(run)):
        lines: dict[str, dict[str, dict[int, Any]]] = {}
        for label, runs in _sharing(wanted, places, folder).items():
            for run in runs:
                for name, series in read_curves(root / places[run.folder][folder], folder).items():
                    if name == "train/loss" or name.startswith("val/"):
                        lines.setdefault(name, {}).setdefault(label, {})[run.seed] = series
        images = [
            (name, data_uri(png(bands_figure({k: list(v.values()) for k, v in by_label.items()}, name)), "image/png"))
            for name, by_label in sorted(lines.items(), key=lambda line: (line[0] not in FIRST, line[0]))
        ]
        groups.append({"folder": folder, "images": images})
    return [group for group in groups if group["images"]]


def _sharing(wanted: Sequence[Run], places: Places, folder: str) -> dict[str, list[Run]]:
    """The runs by what matters for a part: one for each training, under the choices that all who share it have."""
    sharing: dict[str, list[Run]] = {}
    for run in wanted:
        if folder in places[run.folder]:
            sharing.setdefault(places[run.folder][folder], []).append(run)
    labelled: dict[str, list[Run]] = {}
    for runs in sharing.values():
        choices = [set(run.variant.choices.items()) for run in runs]
        common = set.intersection(*choices)
        label = " + ".join(v for k, v in runs[0].variant.choices.items() if (k, v) in common) or "all variants"
        labelled.setdefault(label, []).append(runs[0])
    return labelled
