"""The result files of an ablation: an HTML page with players and plots, Markdown and CSV."""

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
from .ablation_results import PartFolders, RunResult, notes, read_results, tables
from .ablation_runs import Run, trained_parts
from .evaluate import SEED

LEADING_CURVES = ("val/loss", "val/mel_distance", "train/loss")
"""Curves that are shown before all others."""

MAX_VARIANTS, MAX_CAPTIONS = 10, 4
"""Largest numbers of variants and of captions whose clips are on the page."""


def write_results(
    root: Path, ablation: Ablation, requested: Sequence[Run], part_folders: PartFolders, problems: Mapping[str, str]
) -> None:
    """Write ``ablation.html``, ``ablation.md`` and ``ablation.csv``.

    Args:
        root: Folder of the ablation.
        ablation: The description of the ablation.
        requested: All runs of the ablation, finished or not, with the baseline first.
        part_folders: Folder in which each part of each run was trained.
        problems: The reason for each run without a result, by the title of the run.
    """
    found = read_results(root, requested, part_folders)
    lines, tabled = notes(ablation, found), tables(ablation, found)
    _csv(root / "ablation.csv", ablation, found)
    listed = [*lines, *(f"no result for {name}: {' '.join(reason.split())}" for name, reason in problems.items())]
    text = [f"# Ablation of {ablation.recipe}", "\n".join(f"- {line}" for line in listed)]
    about = {name: row["about"] for one in found for name, row in one.metrics.items() if row.get("about")}
    text += [f"## {title}\n\n{markdown(columns, rows)}" for title, columns, rows in tabled]
    if about:
        text += ["## What the scores mean\n\n" + "\n".join(f"- {name}: {meaning}" for name, meaning in about.items())]
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
        reconstructed=not requested[0].outline.stages,
        folders={one.run.variant.title: f"variants/{one.run.variant.name}" for one in found},
        curves=_curves(root, requested, part_folders),
        request=yaml.safe_dump(plain(ablation), sort_keys=False, allow_unicode=True),
    )


def _csv(path: Path, ablation: Ablation, found: Sequence[RunResult]) -> None:
    """Write a CSV file with one row for each run."""
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
    """Return a few captions with the real clip and the clips of the first variants, each from its first seed."""
    first: dict[str, RunResult] = {}
    for one in found:
        if one.metrics:
            first.setdefault(one.run.variant.title, one)
    if not first:
        return []
    shown = dict(list(first.items())[:MAX_VARIANTS])
    paths = {t: sorted((root / one.run.folder / "evaluation" / "clips").glob("*.flac")) for t, one in shown.items()}
    leading = next(iter(shown.values()))
    system, options = leading.run.outline, leading.request
    spec = system.output.spec
    system.source.setup()
    pieces = Examples.for_spec(spec, system.source, "test", options["clips"], options["duration"], SEED)
    rows = []
    for i in range(min(MAX_CAPTIONS, *(len(of) for of in paths.values()))):
        media = [clip_media(pieces[i].audio, spec.sample_rate, "real clip")]
        for title, of in paths.items():
            audio, rate = soundfile.read(of[i], dtype="float32", always_2d=True)
            media.append(clip_media(torch.from_numpy(audio.T), rate, title))
        rows.append({"caption": str(pieces[i].fields.get("text") or pieces[i].fields.get("id", "")), "clips": media})
    return rows


def _curves(root: Path, requested: Sequence[Run], part_folders: PartFolders) -> list[dict[str, Any]]:
    """Return, for every trained part, plots of its validation and training losses in all variants."""
    groups = []
    for key in dict.fromkeys(key for run in requested for key in trained_parts(run)):
        lines: dict[str, dict[str, list[Any]]] = {}
        for label, trainings in _trainings(requested, part_folders, key).items():
            for place in trainings:
                for name, series in read_curves(root / place, key).items():
                    if name == "train/loss" or name.startswith("val/"):
                        lines.setdefault(name, {}).setdefault(label, []).append(series)
        images = [
            (name, data_uri(png(bands_figure(by_label, name)), "image/png"))
            for name, by_label in sorted(lines.items(), key=lambda line: (line[0] not in LEADING_CURVES, line[0]))
        ]
        groups.append({"key": key, "images": images})
    return [group for group in groups if group["images"]]


def _trainings(requested: Sequence[Run], part_folders: PartFolders, key: PartKey) -> dict[str, list[str]]:
    """Return the folders in which a part was trained, one for each seed, by a label of the variants that share it.

    The label consists of the choices that these variants have in common.
    """
    sharing: dict[str, list[Run]] = {}
    for run in requested:
        if key in part_folders.get(run.folder, {}):
            sharing.setdefault(part_folders[run.folder][key], []).append(run)
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
