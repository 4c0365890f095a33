"""The results of an ablation to read, look at and listen to: a page, Markdown and CSV."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import soundfile
import torch
import yaml

from ..core.part_key import PartKey
from ..core.schema import plain
from ..data.examples import Examples
from ..pages.page import clip_media, data_uri, write_page
from ..pages.plots import bands_figure, png
from ..pages.tables import markdown, write_csv, write_text
from ..training.report import read_curves
from .ablation import Ablation
from .ablation_results import Places, RunResult, notes, read_results, tables
from .ablation_runs import Run, trained
from .evaluate import SEED

FIRST = ("val/loss", "val/mel_distance", "train/loss")
"""The curves that come first."""

PLAYED, CAPTIONS = 10, 4
"""Largest numbers of variants and of captions whose clips are on the page."""


def write_results(
    root: Path, ablation: Ablation, wanted: Sequence[Run], places: Places, problems: Mapping[str, str]
) -> None:
    """Write ``ablation.html``, ``ablation.md`` and ``ablation.csv``.

    Args:
        root: Folder of the ablation.
        ablation: What was compared.
        wanted: Its runs, done or not, the baseline first.
        places: Where their parts were trained.
        problems: By title of a run without a result, the reason.
    """
    found = read_results(root, wanted, places)
    lines, tabled = notes(ablation, found), tables(ablation, found)
    _csv(root / "ablation.csv", ablation, found)
    listed = [*lines, *(f"no result of {name}: {' '.join(reason.split())}" for name, reason in problems.items())]
    text = [f"# Ablation of {ablation.recipe}", "\n".join(f"- {line}" for line in listed)]
    about = {name: row["about"] for one in found for name, row in one.metrics.items() if row.get("about")}
    text += [f"## {title}\n\n{markdown(columns, rows)}" for title, columns, rows in tabled]
    if about:
        text += ["## What the scores mean\n\n" + "\n".join(f"- {name}: {said}" for name, said in about.items())]
    write_text(root / "ablation.md", "\n\n".join(text) + "\n")
    write_page(
        root / "ablation.html",
        "ablation.html",
        title=f"Ablation of {ablation.recipe}",
        notes=lines,
        problems=problems,
        tables=tabled,
        about=about,
        clips=_clips(root, found),
        folders={one.run.variant.title: f"variants/{one.run.variant.name}" for one in found},
        curves=_curves(root, wanted, places),
        request=yaml.safe_dump(plain(ablation), sort_keys=False, allow_unicode=True),
    )


def _csv(path: Path, ablation: Ablation, found: Sequence[RunResult]) -> None:
    """A row for each run."""
    metrics = list(dict.fromkeys(name for one in found for name in one.metrics))
    figures = list(dict.fromkeys(name for one in found for name in one.figures))
    columns = [(name, bound) for name in metrics for bound in ("value", "low", "high")]
    rows = []
    for one in found:
        run = one.run
        scores = [one.metrics.get(name, {}).get(bound, "") for name, bound in columns]
        costs = [one.figures.get(name, "") for name in figures]
        rows.append([*run.variant.choices.values(), run.seed, run.folder, *scores, *costs])
    write_csv(path, [*ablation.axes, "seed", "folder", *(" ".join(column) for column in columns), *figures], rows)


def _clips(root: Path, found: Sequence[RunResult]) -> list[dict[str, Any]]:
    """For a few captions, the real piece and the clips of the first variants, each with its first seed."""
    first: dict[str, RunResult] = {}
    for one in found:
        if one.metrics:
            first.setdefault(one.run.variant.title, one)
    if not first:
        return []
    shown = dict(list(first.items())[:PLAYED])
    paths = {t: sorted((root / one.run.folder / "evaluation" / "clips").glob("*.flac")) for t, one in shown.items()}
    leading = next(iter(shown.values()))
    system, options = leading.run.outline, leading.request
    spec = system.output.spec
    system.source.setup()
    pieces = Examples.for_spec(spec, system.source, "test", options["clips"], options["duration"], SEED)
    rows = []
    for i in range(min(CAPTIONS, *(len(of) for of in paths.values()))):
        media = [clip_media(pieces[i].audio, spec.sample_rate, "the piece itself")]
        for title, of in paths.items():
            audio, rate = soundfile.read(of[i], dtype="float32", always_2d=True)
            media.append(clip_media(torch.from_numpy(audio.T), rate, title))
        rows.append({"caption": str(pieces[i].fields.get("text") or pieces[i].fields.get("id", "")), "clips": media})
    return rows


def _curves(root: Path, wanted: Sequence[Run], places: Places) -> list[dict[str, Any]]:
    """For every trained part, plots of its validation and training losses in all variants."""
    groups = []
    for key in dict.fromkeys(key for run in wanted for key in trained(run)):
        lines: dict[str, dict[str, list[Any]]] = {}
        for label, trainings in _trainings(wanted, places, key).items():
            for place in trainings:
                for name, series in read_curves(root / place, key).items():
                    if name == "train/loss" or name.startswith("val/"):
                        lines.setdefault(name, {}).setdefault(label, []).append(series)
        images = [
            (name, data_uri(png(bands_figure(by_label, name)), "image/png"))
            for name, by_label in sorted(lines.items(), key=lambda line: (line[0] not in FIRST, line[0]))
        ]
        groups.append({"key": key, "images": images})
    return [group for group in groups if group["images"]]


def _trainings(wanted: Sequence[Run], places: Places, key: PartKey) -> dict[str, list[str]]:
    """The folders in which a part was trained, one for each seed, by the choices that the variants sharing it have."""
    sharing: dict[str, list[Run]] = {}
    for run in wanted:
        if key in places.get(run.folder, {}):
            sharing.setdefault(places[run.folder][key], []).append(run)
    everybody = {run.variant.title for runs in sharing.values() for run in runs}
    labeled: dict[str, list[str]] = {}
    shared_by: dict[str, frozenset[str]] = {}
    for place, runs in sharing.items():
        titles = frozenset(run.variant.title for run in runs)
        common = set.intersection(*(set(run.variant.choices.items()) for run in runs))
        label = " + ".join(v for k, v in runs[0].variant.choices.items() if (k, v) in common)
        if titles == everybody:
            label = "all variants"
        if not label or shared_by.setdefault(label, titles) != titles:
            label = ", ".join(sorted(titles))
        labeled.setdefault(label, []).append(place)
    return labeled
