"""Writes a page that compares codecs, with tables, spectrograms and clips to listen to, from their runs.

    python benchmarks/codec_page.py runs/spectral-tiny runs/dac-tiny -o docs/codecs.md
    python benchmarks/codec_page.py --train runs/codecs --codecs spectral-tiny --bottlenecks rvq-tiny lfq-tiny -o a.md

A run is a folder of ``partita train`` with a single tokenizer, trained or pretrained. A run without an evaluation is
evaluated first; all evaluations must be of the same clips. With ``--train``, every codec is trained with every
bottleneck first, unless its run is there; ``--set`` changes all of them.

If the page exists, only its blocks between ``<!-- NAME -->`` and ``<!-- end NAME -->`` are replaced: ``measured``,
``codecs``, ``scores``, ``codebooks`` and ``clips``. What is written around them stays.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import soundfile
import torch
from system_page import MOST_BYTES, filled
from torch import Tensor

from partita.data.examples import Examples
from partita.evaluation.evaluate import RESULTS, SEED, evaluate
from partita.evaluation.evaluation_options import Evaluation
from partita.pages.plots import png, spectrogram_figure
from partita.pages.tables import markdown
from partita.recipe.plan import load_recipe
from partita.storage.audio_file import write_audio
from partita.system.assembly import INDEX
from partita.system.system import System, load
from partita.training.report import read_curves
from partita.training.training import train

PAGE = "# Codecs\n\n" + "\n\n".join(
    text
    for title, name in [
        ("", "measured"),
        ("## The codecs", "codecs"),
        ("## Scores", "scores"),
        ("## Use of the codebooks", "codebooks"),
        ("## Clips", "clips"),
    ]
    for text in (title, f"<!-- {name} -->\n<!-- end {name} -->")
    if text
)
"""A page with all blocks, each of them empty."""

SAME = ("data", "data_changes", "pieces", "duration", "clips", "reference_clips")
"""What must be equal in the requests of all evaluations."""

DIGITS = {"SI-SDR": 1, "bitrate": 2, "codebook perplexity": 0, "encoding speed": 0, "decoding speed": 0}
"""Decimals of scores, if other than three."""

MOST_SCORES = 6
"""Largest number of scores in a table."""


@dataclass(frozen=True)
class Run:
    """A run of a single tokenizer, and its evaluation.

    Args:
        label: Name of the codec on the page.
        folder: Folder of the run.
        system: The system, without weights.
        results: Content of its ``evaluation.json``.
    """

    label: str
    folder: Path
    system: System
    results: dict[str, Any]

    @cached_property
    def key(self) -> Any:
        """Key of the tokenizer."""
        return next(key for key in self.system.parts if key.name in self.system.tokenizers)

    def clip(self, number: int) -> tuple[Tensor, int]:
        """A reconstruction ``[C, T]``, and its sample rate in Hz."""
        path = self.folder / "evaluation" / "clips" / f"{number:05}.flac"
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
        return torch.from_numpy(samples.T), rate


def read_runs(folders: Sequence[Path], options: Evaluation, device: str) -> list[Run]:
    """The runs in folders, evaluated where they are not."""
    runs = []
    for folder in folders:
        if not (folder / INDEX).is_file():
            raise SystemExit(f"{folder} is no run: there is no {INDEX}")
        system = load(folder, device="cpu")
        if system.stages or len(system.tokenizers) != 1:
            raise SystemExit(f"{folder} holds more than a tokenizer: give runs of recipes with a single tokenizer")
        if not (folder / "evaluation" / RESULTS).is_file():
            print(f"{folder}: evaluation")
            evaluate(folder, options=options, device=device)
        results = json.loads((folder / "evaluation" / RESULTS).read_text(encoding="utf-8"))
        label = folder.parent.name if folder.name.startswith("seed-") else folder.name
        runs.append(Run(label, folder, system, results))
    for run in runs[1:]:
        first, other = (each.results["request"] for each in (runs[0], run))
        if wrong := [
            f"{name} {first.get(name)} and {other.get(name)}" for name in SAME if first.get(name) != other.get(name)
        ]:
            raise SystemExit(f"{runs[0].folder} and {run.folder} are evaluated differently: {'; '.join(wrong)}")
    if len({run.label for run in runs}) < len(runs):
        runs = [replace(run, label=str(run.folder)) for run in runs]
    return runs


def measured(runs: Sequence[Run]) -> str:
    """What the scores were measured on."""
    request = runs[0].results["request"]
    where = dict.fromkeys(
        row["embedding"].removeprefix("time on ").rpartition(", ")[0]
        for run in runs
        for name, row in run.results["metrics"].items()
        if name.endswith(" speed")
    )
    rates = {run.system.sample_rate for run in runs}
    lines = [
        f"Measured on {request['clips']} clips of {request['duration']:g} s from {request['pieces']} pieces of "
        f"`{request['data']}`, and {request['reference_clips']} other clips; Partita {request['version']}. In brackets "
        "are 95 % intervals over pieces."
    ]
    if where:
        lines.append(f"Speeds are those of {' and '.join(where)}, one clip at a time, in seconds of audio per second.")
    if len(rates) > 1:
        lines.append("Distances are measured at the sample rate of each codec: compare them at the same rate only.")
    return " ".join(lines)


def codecs(runs: Sequence[Run]) -> str:
    """What the codecs are, and how long they were trained."""
    rows = []
    for run in runs:
        tokenizer = run.system.tokenizers[run.key.name]
        _, speeds = read_curves(run.folder, run.key).get("speed/steps_per_second", ([], []))
        training = ["pretrained", ""]
        if run.key in run.system.training_order:
            steps = tokenizer.fit_options.steps
            minutes = steps * statistics.fmean(1 / speed for speed in speeds) / 60 if speeds else None
            training = [f"{steps:,}", "" if minutes is None else f"{minutes:.1f}"]
        made = [
            f"`{getattr(tokenizer, name).registered_name}`"
            for name in ("autoencoder", "bottleneck")
            if hasattr(tokenizer, name)
        ]
        kind = ", ".join([f"`{tokenizer.registered_name}`", *made])
        rows.append([run.label, kind, str(tokenizer.spec), f"{tokenizer.num_parameters / 1e6:.1f} M", *training])
    return markdown(["codec", "made of", "representation", "parameters", "steps", "minutes"], rows)


def scores(runs: Sequence[Run]) -> str:
    """Tables of all scores, each with its interval; the best value of each is bold."""
    rows = {name: row for run in runs for name, row in run.results["metrics"].items()}
    names, tables = list(rows), []
    for start in range(0, len(names), MOST_SCORES):
        part = names[start : start + MOST_SCORES]
        arrows = [f"{name} {'↑' if rows[name]['better'] == 'higher' else '↓'}" for name in part]
        cells = [[run.label, *(_score(name, run, runs) for name in part)] for run in runs]
        tables.append(markdown(["codec", *arrows], cells))
    meanings = [f"- {name}: {row['about']}" for name, row in rows.items()]
    return "\n\n".join([*tables, "\n".join(meanings)])


def _score(name: str, run: Run, runs: Sequence[Run]) -> str:
    row = run.results["metrics"].get(name)
    if row is None:
        return ""
    digits = DIGITS.get(name, 3)
    text = f"{row['value']:,.{digits}f}"
    values = [other.results["metrics"][name]["value"] for other in runs if name in other.results["metrics"]]
    if len(set(values)) > 1 and row["value"] == (max if row["better"] == "higher" else min)(values):
        text = f"**{text}**"
    return text + (f" [{row['low']:,.{digits}f}, {row['high']:,.{digits}f}]" if "low" in row else "")


def codebooks(runs: Sequence[Run]) -> str:
    """Entries in use and perplexity of each codebook."""
    rows = []
    for run in runs:
        metrics = run.results["metrics"]
        if "codebook usage" in metrics:
            used, perplexity = (metrics[f"codebook {name}"]["codebooks"] for name in ("usage", "perplexity"))
            sizes = run.system.tokenizers[run.key.name].spec.cardinalities
            rows.append(
                [
                    run.label,
                    " ".join(f"{size:,}" for size in sizes),
                    " ".join(f"{value:.0%}" for value in used),
                    " ".join(f"{value:,.0f}" for value in perplexity),
                ]
            )
    return markdown(["codec", "entries", "in use", "perplexity"], rows) if rows else "None of them has codebooks."


def clips(runs: Sequence[Run], count: int, seconds: float, folder: Path) -> str:
    """Recordings at equal distances in the evaluation, and what each codec makes of them."""
    first, request = runs[0], runs[0].results["request"]
    spec = first.system.output.spec
    first.system.source.setup()
    pieces = Examples.for_spec(spec, first.system.source, "test", request["clips"], request["duration"], SEED)
    lines = []
    for number in range(min(count, request["clips"])):
        place = number * request["clips"] // count
        lines += [f"### {first.results['captions'][place] or f'Clip {number + 1}'}", ""]
        sounds = [("recording", pieces[place].audio, spec.sample_rate)]
        sounds += [(run.label, *run.clip(place)) for run in runs]
        for label, audio, rate in sounds:
            name = "".join(letter if letter.isalnum() or letter in "-_" else "-" for letter in label)
            sound, image = folder / f"clip-{number}-{name}.ogg", folder / f"clip-{number}-{name}.png"
            short = audio[:, : round(seconds * rate)]
            write_audio(sound, short.numpy(), rate)
            if sound.stat().st_size > MOST_BYTES:
                raise SystemExit(f"{sound} has {sound.stat().st_size:,} bytes: show less of each clip with --seconds")
            image.write_bytes(png(spectrogram_figure(short, rate), dpi=60))
            lines += [f"*{label}* ([listen]({folder.name}/{sound.name}))", ""]
            lines += [f"![Spectrogram of {label}]({folder.name}/{image.name})", ""]
    return "\n".join(lines).rstrip()


def trained(root: Path, chosen: Sequence[str], bottlenecks: Sequence[str], changes: Sequence[str]) -> list[Path]:
    """Folders of the runs of all codecs with all bottlenecks, or with their own, trained where they are not."""
    root.mkdir(parents=True, exist_ok=True)
    folders = []
    for codec in chosen:
        for bottleneck in bottlenecks or [""]:
            folder = root / "-".join(filter(None, (codec, bottleneck)))
            recipe = root / f"{folder.name}.yaml"
            recipe.write_text(f"tokenizers: {{acoustic: {codec}}}\ndata: chorales\n", encoding="utf-8")
            own = [f"tokenizers.acoustic.bottleneck={bottleneck}"] if bottleneck else []
            print(f"{folder}: training")
            train(load_recipe(recipe, [*own, *changes]), folder)
            folders.append(folder)
    return folders


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="*", help="folders of runs with a single tokenizer")
    parser.add_argument("-o", "--output", type=Path, required=True, help="the page, such as docs/codecs.md")
    parser.add_argument("--train", type=Path, help="folder in which runs of codecs with bottlenecks are trained first")
    parser.add_argument("--codecs", nargs="+", default=["spectral-tiny"], help="presets of tokenizers to train")
    parser.add_argument("--bottlenecks", nargs="+", default=[], help="presets of bottlenecks; by default, their own")
    parser.add_argument("--set", nargs="+", default=[], help="changes of all trained recipes, such as data=folder")
    parser.add_argument("--clips", type=int, default=64, help="clips of an evaluation that is not there")
    parser.add_argument("--shown", type=int, default=2, help="recordings to listen to")
    parser.add_argument("--seconds", type=float, default=6.0, help="seconds of them")
    parser.add_argument("--device", default="cpu", help="device of evaluations that are not there")
    options = parser.parse_args(arguments)
    folders = [*options.runs]
    if options.train:
        folders += trained(options.train, options.codecs, options.bottlenecks, options.set)
    if not folders:
        raise SystemExit("there is nothing to compare: give folders of runs, or train some with --train")
    evaluation = Evaluation(clips=options.clips, reference_clips=options.clips)
    runs = read_runs(folders, evaluation, options.device)
    folder = options.output.with_suffix("")
    folder.mkdir(parents=True, exist_ok=True)
    blocks: Mapping[str, str] = {
        "measured": measured(runs),
        "codecs": codecs(runs),
        "scores": scores(runs),
        "codebooks": codebooks(runs),
        "clips": clips(runs, options.shown, options.seconds, folder),
    }
    text = options.output.read_text(encoding="utf-8") if options.output.is_file() else f"{PAGE}\n"
    options.output.write_text(filled(text, blocks), encoding="utf-8")
    print(options.output)


if __name__ == "__main__":
    main()
