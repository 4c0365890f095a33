"""Writes a page that compares codecs, with tables, spectrograms and clips to listen to, from their runs.

    python benchmarks/codec_page.py runs/spectral-tiny runs/dac-tiny -o docs/codecs.md
    python benchmarks/codec_page.py runs/spectral-tiny/seed-* runs/dac-tiny/seed-* -o docs/codecs.md
    python benchmarks/codec_page.py --train runs --codecs dac-tiny --bottlenecks rvq-tiny fsq-1024 --seeds 0 1 -o a.md

A run is a folder of ``partita train`` with a single tokenizer, trained or pretrained. A run without an evaluation is
evaluated first; all evaluations must be of the same clips. Runs in the folders ``seed-*`` of one folder are of one
codec: the page has the mean of their scores. With ``--train``, every codec is trained with every bottleneck and seed
first, unless its run is there; ``--set`` changes all of them.

If the page exists, only its blocks between ``<!-- NAME -->`` and ``<!-- end NAME -->`` are replaced: ``measured``,
``codecs``, ``learning``, ``scores``, ``codebooks`` and ``clips``. What is written around them stays.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
from partita.pages.plots import bands_figure, png, spectrogram_figure
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
        ("", "learning"),
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
        folder: Folder of the run.
        system: The system, without weights.
        results: Content of its ``evaluation.json``.
    """

    folder: Path
    system: System
    results: dict[str, Any]

    @cached_property
    def key(self) -> Any:
        """Key of the tokenizer."""
        return next(key for key in self.system.parts if key.name in self.system.tokenizers)

    @property
    def tokenizer(self) -> Any:
        """The codec, without weights."""
        return self.system.tokenizers[self.key.name]

    def curve(self, name: str) -> tuple[list[float], list[float]]:
        """Steps and values of a curve of the training; both are empty if there is none."""
        return read_curves(self.folder, self.key).get(name, ([], []))

    def clip(self, number: int) -> tuple[Tensor, int]:
        """A reconstruction ``[C, T]``, and its sample rate in Hz."""
        path = self.folder / "evaluation" / "clips" / f"{number:05}.flac"
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
        return torch.from_numpy(samples.T), rate


@dataclass(frozen=True)
class Codec:
    """A codec, with a run for each of its seeds.

    Args:
        label: Name of the codec on the page.
        runs: Its runs, one or more.
    """

    label: str
    runs: list[Run]

    def score(self, name: str) -> tuple[float, float, float] | None:
        """The mean of a score, and its lowest and highest value of the seeds, or the 95 % interval of a single run."""
        rows = [run.results["metrics"][name] for run in self.runs if name in run.results["metrics"]]
        if len(rows) < len(self.runs):
            return None
        values = [row["value"] for row in rows]
        if len(rows) > 1:
            return statistics.fmean(values), min(values), max(values)
        return values[0], rows[0].get("low", math.nan), rows[0].get("high", math.nan)


def grouped(runs: Sequence[Run]) -> list[Codec]:
    """Runs by codec: those in folders ``seed-*`` of the same folder are of one."""
    codecs: dict[Path, list[Run]] = {}
    for run in runs:
        codecs.setdefault(run.folder.parent if run.folder.name.startswith("seed-") else run.folder, []).append(run)
    named = len({folder.name for folder in codecs}) == len(codecs)
    return [Codec(folder.name if named else str(folder), of_it) for folder, of_it in codecs.items()]


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
        runs.append(Run(folder, system, results))
    for run in runs[1:]:
        first, other = (each.results["request"] for each in (runs[0], run))
        if wrong := [
            f"{name} {first.get(name)} and {other.get(name)}" for name in SAME if first.get(name) != other.get(name)
        ]:
            raise SystemExit(f"{runs[0].folder} and {run.folder} are evaluated differently: {'; '.join(wrong)}")
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
        f"`{request['data']}`, and {request['reference_clips']} other clips; Partita {request['version']}."
    ]
    counts = sorted({len(codec.runs) for codec in grouped(runs)})
    if counts[-1] > 1:
        lines.append(
            f"Scores are means of {' or '.join(map(str, counts))} seeds; in brackets are the lowest and the highest."
        )
    if counts[0] == 1:
        lines.append(f"In brackets{' of single runs' if counts[-1] > 1 else ''} are 95 % intervals over pieces.")
    if where:
        lines.append(f"Speeds are those of {' and '.join(where)}, one clip at a time, in seconds of audio per second.")
    if len(rates) > 1:
        lines.append("Distances are measured at the sample rate of each codec: compare them at the same rate only.")
    return " ".join(lines)


def table_of(codecs: Sequence[Codec]) -> str:
    """What the codecs are, and how long they were trained."""
    rows = []
    for codec in codecs:
        run = codec.runs[0]
        speeds = [speed for each in codec.runs for speed in each.curve("speed/steps_per_second")[1]]
        training = ["pretrained", ""]
        if run.key in run.system.training_order:
            steps = run.tokenizer.fit_options.steps
            minutes = steps * statistics.fmean(1 / speed for speed in speeds) / 60 if speeds else None
            training = [f"{steps:,}", "" if minutes is None else f"{minutes:.1f}"]
        made = [
            f"`{getattr(run.tokenizer, name).registered_name}`"
            for name in ("autoencoder", "bottleneck")
            if hasattr(run.tokenizer, name)
        ]
        kind = ", ".join([f"`{run.tokenizer.registered_name}`", *made])
        size = f"{run.tokenizer.num_parameters / 1e6:.1f} M"
        rows.append([codec.label, kind, str(run.tokenizer.spec), size, str(len(codec.runs)), *training])
    return markdown(["codec", "made of", "representation", "parameters", "seeds", "steps", "minutes"], rows)


def learning(codecs: Sequence[Codec], folder: Path) -> str:
    """A plot of the mel distance of validation in training."""
    curves = {codec.label: [run.curve("val/mel_distance") for run in codec.runs] for codec in codecs}
    curves = {label: found for label, found in curves.items() if all(steps for steps, _ in found)}
    if not curves:
        return ""
    image = folder / "learning.png"
    image.write_bytes(png(bands_figure(curves, "mel distance of validation")))
    return f"![Mel distance of validation in training]({folder.name}/{image.name})"


def scores(codecs: Sequence[Codec]) -> str:
    """Tables of all scores, each with its interval; the best value of each is bold."""
    rows = {name: row for codec in codecs for run in codec.runs for name, row in run.results["metrics"].items()}
    names, tables = list(rows), []
    for start in range(0, len(names), MOST_SCORES):
        part = names[start : start + MOST_SCORES]
        arrows = [f"{name} {'↑' if rows[name]['better'] == 'higher' else '↓'}" for name in part]
        best = {name: _best(name, rows[name]["better"], codecs) for name in part}
        cells = [[codec.label, *(_score(name, codec, best[name]) for name in part)] for codec in codecs]
        tables.append(markdown(["codec", *arrows], cells))
    meanings = [f"- {name}: {row['about']}" for name, row in rows.items()]
    return "\n\n".join([*tables, "\n".join(meanings)])


def _best(name: str, better: str, codecs: Sequence[Codec]) -> float | None:
    """The best value of a score, unless it is that of all codecs."""
    values = {score[0] for codec in codecs if (score := codec.score(name))}
    return (max if better == "higher" else min)(values) if len(values) > 1 else None


def _score(name: str, codec: Codec, best: float | None) -> str:
    score = codec.score(name)
    if score is None:
        return ""
    value, low, high = (f"{number:,.{DIGITS.get(name, 3)}f}" for number in score)
    text = f"**{value}**" if score[0] == best else value
    return text if math.isnan(score[1]) or low == high else f"{text} [{low}, {high}]"


def codebooks(codecs: Sequence[Codec]) -> str:
    """Entries in use and perplexity of each codebook, by seed."""
    rows = []
    for codec in codecs:
        for number, run in enumerate(codec.runs):
            metrics = run.results["metrics"]
            if "codebook usage" not in metrics:
                continue
            used, perplexity = (metrics[f"codebook {name}"]["codebooks"] for name in ("usage", "perplexity"))
            rows.append(
                [
                    codec.label if not number else "",
                    run.folder.name.removeprefix("seed-") if len(codec.runs) > 1 else "",
                    " ".join(f"{size:,}" for size in run.tokenizer.spec.cardinalities),
                    " ".join(f"{value:.0%}" for value in used),
                    " ".join(f"{value:,.0f}" for value in perplexity),
                ]
            )
    return (
        markdown(["codec", "seed", "entries", "in use", "perplexity"], rows) if rows else "None of them has codebooks."
    )


def clips(codecs: Sequence[Codec], count: int, seconds: float, folder: Path) -> str:
    """Recordings at equal distances in the evaluation, and what each codec, with its first seed, makes of them."""
    runs = [codec.runs[0] for codec in codecs]
    first, request = runs[0], runs[0].results["request"]
    spec = first.system.output.spec
    first.system.source.setup()
    pieces = Examples.for_spec(spec, first.system.source, "test", request["clips"], request["duration"], SEED)
    lines = []
    for number in range(min(count, request["clips"])):
        place = number * request["clips"] // count
        lines += [f"### {first.results['captions'][place] or f'Clip {number + 1}'}", ""]
        sounds = [("recording", pieces[place].audio, spec.sample_rate)]
        sounds += [(codec.label, *codec.runs[0].clip(place)) for codec in codecs]
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


def trained(root: Path, options: argparse.Namespace) -> list[Path]:
    """Folders of the runs of all codecs with all bottlenecks, or with their own, trained where they are not."""
    folders = []
    for codec, bottleneck, seed in itertools.product(options.codecs, options.bottlenecks or [""], options.seeds):
        folder = root / "-".join(filter(None, (codec, bottleneck))) / f"seed-{seed}"
        folder.parent.mkdir(parents=True, exist_ok=True)
        recipe = folder.parent / "recipe.yaml"
        recipe.write_text(f"tokenizers: {{acoustic: {codec}}}\ndata: corpus\n", encoding="utf-8")
        own = [f"tokenizers.acoustic.bottleneck={bottleneck}"] if bottleneck else []
        print(f"{folder}: training")
        train(load_recipe(recipe, [*own, f"seed={seed}", *options.set]), folder)
        folders.append(folder)
    return folders


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="*", help="folders of runs with a single tokenizer")
    parser.add_argument("-o", "--output", type=Path, required=True, help="the page, such as docs/codecs.md")
    parser.add_argument("--train", type=Path, help="folder in which runs of codecs with bottlenecks are trained first")
    parser.add_argument("--codecs", nargs="+", default=["spectral-tiny"], help="presets of tokenizers to train")
    parser.add_argument("--bottlenecks", nargs="+", default=[], help="presets of bottlenecks; by default, their own")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="seeds of their trainings")
    parser.add_argument("--set", nargs="+", default=[], help="changes of all trained recipes, such as data=folder")
    parser.add_argument("--clips", type=int, default=64, help="clips of an evaluation that is not there")
    parser.add_argument("--shown", type=int, default=2, help="recordings to listen to")
    parser.add_argument("--seconds", type=float, default=6.0, help="seconds of them")
    parser.add_argument("--device", default="cpu", help="device of evaluations that are not there")
    options = parser.parse_args(arguments)
    folders = [*options.runs]
    if options.train:
        folders += trained(options.train, options)
    if not folders:
        raise SystemExit("there is nothing to compare: give folders of runs, or train some with --train")
    evaluation = Evaluation(clips=options.clips, reference_clips=options.clips)
    runs = read_runs(folders, evaluation, options.device)
    of_page = grouped(runs)
    folder = options.output.with_suffix("")
    folder.mkdir(parents=True, exist_ok=True)
    blocks: Mapping[str, str] = {
        "measured": measured(runs),
        "codecs": table_of(of_page),
        "learning": learning(of_page, folder),
        "scores": scores(of_page),
        "codebooks": codebooks(of_page),
        "clips": clips(of_page, options.shown, options.seconds, folder),
    }
    text = options.output.read_text(encoding="utf-8") if options.output.is_file() else f"{PAGE}\n"
    options.output.write_text(filled(text, blocks), encoding="utf-8")
    print(options.output)


if __name__ == "__main__":
    main()
