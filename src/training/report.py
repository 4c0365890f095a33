"""The report of a run: one self-contained page with curves, figures, spectrograms and players."""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..core.contracts import Generated, RepresentationSpec
from ..core.part_key import PartKey
from ..core.reference import Reference
from ..core.resample import convert
from ..data.base import SPLIT_NAMES, Split
from ..data.clips import tokenizer_audio
from ..data.examples import Examples
from ..data.overview import overview, provenance, training_gaps
from ..metrics.codec import CodebookUsage, ConstantSpectrum, MelDistance
from ..pages.page import clip_media, data_uri, write_page
from ..pages.plots import curves_figure, png
from ..system.adapters import read_adapters
from ..system.assembly import index_yaml
from ..system.request import Story
from ..system.system import System, load
from ..tokenizers.base import LatentView, Tokenizer
from .condition_use import condition_use

SPLITS: tuple[Split, ...] = ("validation", "test")
"""The splits that are held out of training."""

SEED = 2
"""Seed of the test clips in every report."""


def write_report(system: System, run: Path, *, title: str, clips: int = 3, measured: int = 48) -> Path:
    """Write ``report.html`` into the run folder.

    Args:
        system: A trained system, with its source set up.
        run: The run folder, with its logs.
        title: Title of the page.
        clips: Number of reconstructions and of generated clips to show.
        measured: Number of test clips for codecs, and of validation clips for the use of conditions.
    """
    codecs = [_codec(system, reference, clips, measured) for reference in _references(system)]
    generated, followed = _generated(system, clips)
    path = run / "report.html"
    write_page(
        path,
        "report.html",
        title=title,
        subtitle=system.plan.values.get("description", ""),
        data=[*overview(system.source), *provenance(system.source)],
        parts=[(summary, _last_validation(run, summary.key)) for summary in system.summary()],
        generated=generated,
        adapters=_adapters(system, run),
        followed=followed,
        codecs=codecs,
        conditions=[use.as_row() for use in condition_use(system, clips=measured)],
        watched=SPLIT_NAMES[system.source.fallback_split("validation")],
        pieces=SPLIT_NAMES[system.source.fallback_split("test")],
        warnings=[
            *(s for split in SPLITS if (s := system.source.fallback_warning(split)) is not None),
            *training_gaps(system.source, system.reads),
        ],
        curves=[group for key in system.training_order if (group := _curves(run, key))["images"]],
        notes=system.source.report,
        recipe=index_yaml(system.plan),
    )
    return path


def measure_codec(
    system: System, tokenizer: Tokenizer | LatentView, examples: int, reads: str | None = None
) -> dict[str, Any]:
    """Measure a tokenizer on test pieces, in comparison with the best constant spectrum.

    Args:
        system: The system with the data.
        tokenizer: The tokenizer.
        examples: Number of clips.
        reads: The field that the tokenizer encodes. ``None`` encodes the mix.

    Returns:
        ``mel_distance``, ``constant_distance`` and their ``ratio``, if the tokenizer can decode; ``usage`` and
        ``perplexity`` of each codebook, if it is discrete. Empty if no test piece has audio.
    """
    spec = tokenizer.spec
    distance, constant = MelDistance(spec.sample_rate), ConstantSpectrum(spec.sample_rate)
    usage = CodebookUsage(len(spec.cardinalities), max(spec.cardinalities)) if spec.discrete else None
    for batch in _batches(_clips(system, spec, "train", examples, 4.0), reads):
        constant.fit(batch)
    for batch in _batches(_clips(system, spec, "test", examples, 4.0), reads):
        encoded = tokenizer.encode(batch.to(system.device))
        if usage is not None:
            usage.update(encoded.cpu())
        constant.update(batch)
        with suppress(NotImplementedError):
            distance.update(tokenizer.decode(encoded).cpu()[..., : batch.shape[-1]], batch)
    figures: dict[str, Any] = {}
    if distance.update_called:
        figures = {"mel_distance": float(distance.compute()), "constant_distance": float(constant.compute())}
        figures["ratio"] = figures["mel_distance"] / figures["constant_distance"]
    if usage is not None and usage.update_called:
        figures |= {name: value.reshape(-1).tolist() for name, value in usage.compute().items()}
    return figures


def _references(system: System) -> list[Reference]:
    """Return references to all tokenizers, and to the latents that stages generate or are given."""
    named = [r for stage in system.plan.stages.values() for r in (*stage.targets, *stage.references.values())]
    latents = dict.fromkeys(Reference(r.tokenizer, latents=True) for r in named if r.latents)
    return [*(Reference(name) for name in system.tokenizers), *latents]


def _clips(system: System, spec: RepresentationSpec, split: Split, length: int, seconds: float) -> Examples:
    return Examples.for_spec(spec, system.source, split, length, seconds, SEED)


def _batches(examples: Examples, reads: str | None, size: int = 16) -> Any:
    for start in range(0, len(examples), size):
        stop = min(start + size, len(examples))
        found = [tokenizer_audio(examples[i], reads, examples.sample_rate) for i in range(start, stop)]
        recordings = [one for one in found if one is not None]
        if recordings:
            yield torch.stack(recordings)


@torch.inference_mode()
def _codec(system: System, reference: Reference, clips: int, measured: int) -> dict[str, Any]:
    system.tokenizers[reference.tokenizer].eval()
    tokenizer = system.tokenizer_of(reference)
    reads = system.plan.reads(reference)
    spec, figures = tokenizer.spec, measure_codec(system, tokenizer, measured, reads)
    rows, media = [], []
    # reconstruction quality matters only for the tokenizers whose audio is the output, not for semantic tokens
    is_output = not system.stages or reference.tokenizer in {end.tokenizer for end in system.plan.ends}
    if "ratio" in figures and is_output:
        rows += [
            ("log-mel distance", f"{figures['mel_distance']:.3f}"),
            ("log-mel distance of the best constant spectrum", f"{figures['constant_distance']:.3f}"),
            ("ratio (100 %: no better than a sound that never changes)", f"{figures['ratio']:.1%}"),
        ]
    if "usage" in figures:
        rows += [
            ("codes in use, by codebook", "  ".join(f"{v:.0%}" for v in figures["usage"])),
            ("perplexity, by codebook", "  ".join(f"{v:.0f}" for v in figures["perplexity"])),
        ]
    shown = _clips(system, spec, "test", clips, 5.0)
    for example in (shown[i] for i in range(clips) if "ratio" in figures):
        audio = tokenizer_audio(example, reads, spec.sample_rate)
        if audio is None:
            continue
        reconstructed = tokenizer.decode(tokenizer.encode(audio[None].to(system.device)))[0, :, : audio.shape[-1]].cpu()
        caption = example.fields.get("text") or example.fields.get("id", "")
        media += [
            clip_media(audio, spec.sample_rate, f"original: {caption}"),
            clip_media(
                reconstructed, spec.sample_rate, "reconstruction" if is_output else "decoded from these codes alone"
            ),
        ]
    return {"title": f"tokenizers/{reference}", "figures": rows, "clips": media}


def _generated(system: System, clips: int) -> tuple[list[dict[str, str]], list[tuple[str, str]]]:
    """Return clips generated from captions of test pieces, the last from a story, and the agreement of stages."""
    if not system.stages:
        return [], []
    spec = system.output.spec
    examples = _clips(system, spec, "test", clips, 1.0)
    known = [examples[i].fields for i in range(clips)]
    inputs = system.prompts_of(known)
    captions = [str(f.get("text") or "") if system.conditioners else "unconditional" for f in known]
    generated = system.generate_representations(inputs, seed=list(range(clips)))
    audio = system.decode(generated)
    titles = [f"{text} (with the adapter)" if system.adapters else text for text in captions]
    media = [clip_media(clip, spec.sample_rate, text) for clip, text in zip(audio.cpu(), titles, strict=True)]
    if system.adapters:
        before = load(system.plan.values["finetune"], device=system.device)
        same = before.generate(inputs, seed=list(range(clips))).cpu()
        others = [
            clip_media(clip, spec.sample_rate, f"{text} (without it)")
            for clip, text in zip(same, captions, strict=True)
        ]
        media = [clip for pair in zip(media, others, strict=True) for clip in pair]
    if inputs and "text" in inputs and len(set(captions[:2])) == 2:
        change = max(stage.window for stage in system.plan.stages.values())
        stories = {name: [Story([(0, values[0]), (change, values[1])])] for name, values in inputs.items()}
        clip = system.generate(stories, duration=2 * change)[0].cpu()
        media.append(clip_media(clip, spec.sample_rate, f"{captions[0]} … from {change:g} s: {captions[1]}"))
    return media, _code_agreement(system, generated, audio)


def _adapters(system: System, run: Path) -> list[str]:
    """Return a sentence for each adapter of a run: its size, its share of the stage, and the layers that it changes."""
    lines = []
    for saved in read_adapters(run) if system.adapters else ():
        size, whole = saved.num_parameters, system.stages[saved.stage].num_own_parameters
        bytes_ = sum(file.stat().st_size for file in saved.folder.iterdir())
        lines.append(
            f"The {saved.adapter.registered_name} adapter of {saved.stage} has {size:,} parameters, {size / whole:.1%} "
            f"of those of the stage, in {bytes_ / 1e6:.2g} MB, and changes {len(saved.adapter.arguments['layers'])} "
            f"linear layers; all else is as in {saved.base}"
        )
    return lines


@torch.inference_mode()
def _code_agreement(system: System, generated: Mapping[str, Generated], audio: Tensor) -> list[tuple[str, str]]:
    """Return how many codes given to later stages equal those of the re-encoded result, and those of other clips."""
    rows, spec = [], system.output.spec
    named = {str(r): r for stage in system.plan.stages.values() for r in stage.references.values()}
    for name, reference in named.items():
        tokenizer = system.tokenizer_of(reference)
        own, reads = tokenizer.spec, system.plan.reads(reference)
        if not own.discrete or reads or reference.tokenizer in {end.tokenizer for end in system.plan.ends}:
            continue
        given = reference.take(generated[reference.source].values)
        reconstructed = reference.take(
            tokenizer.encode(convert(audio, spec.sample_rate, own.sample_rate, own.channels))
        )
        frames = min(given.shape[-1], reconstructed.shape[-1])
        same = (given[..., :frames] == reconstructed[..., :frames]).float().mean()
        other = (given[..., :frames] == reconstructed.roll(1, 0)[..., :frames]).float().mean()
        rows.append(
            (f"codes of {name} that the generated audio has, too", f"{same:.0%} (those of another clip: {other:.0%})")
        )
    return rows


def read_curves(run: Path, key: PartKey) -> dict[str, tuple[list[float], list[float]]]:
    """Return every logged scalar of a part as (steps, values). A resumed run overrides earlier values."""
    points: dict[str, dict[float, float]] = defaultdict(dict)
    versions = sorted((run / "logs" / key / "csv").glob("version_*"), key=lambda p: int(p.name.split("_")[1]))
    for version in versions:
        if not (version / "metrics.csv").is_file():
            continue
        with (version / "metrics.csv").open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                for name, value in row.items():
                    if value and name not in ("step", "epoch") and row.get("step"):
                        points[name][float(row["step"])] = float(value)
    return {name: tuple(map(list, zip(*sorted(series.items()), strict=True))) for name, series in points.items()}  # type: ignore[misc]


def _last_validation(run: Path, key: PartKey) -> str:
    """Return the loss of the last validation of a part, as text."""
    curves = read_curves(run, key)
    found = [name for name in ("val/loss", "val/mel_distance") if name in curves]
    return f"{found[0].partition('/')[2].replace('_', ' ')} {curves[found[0]][1][-1]:.3f}" if found else ""


def _curves(run: Path, key: PartKey) -> dict[str, Any]:
    groups: dict[str, dict[str, tuple[Sequence[float], Sequence[float]]]] = defaultdict(dict)
    for name, series in read_curves(run, key).items():
        split, _, term = name.rpartition("/")
        stem, _, number = term.rpartition("_")  # ce_0, ce_1 … share a plot
        groups[stem if number.isdigit() else term][f"{split} {term}".strip()] = series
    ordered = sorted(groups.items(), key=lambda item: (item[0] not in ("loss", "mel_distance"), item[0]))
    images = [(title, data_uri(png(curves_figure(group, title)), "image/png")) for title, group in ordered]
    return {"key": key, "images": images}
