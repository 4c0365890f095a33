"""The files of a published system: weights, recipe, and a model card with audio examples."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import yaml

from ..data.base import SPLIT_NAMES
from ..data.overview import overview, training_gaps
from ..errors import PartitaError
from ..evaluation.rows import clips_text
from ..limits import LARGEST_RESULTS
from ..pages.plots import png, spectrogram_figure
from ..storage.audio_file import flac
from ..storage.files import kind
from ..storage.saved_format import numbered
from ..storage.untrusted import own_file, read_json
from ..system.assembly import INDEX, PART_ON_HUB
from ..system.system import System, load
from .known import CHECKPOINTS, license_of
from .private import Owner, publishable

EVALUATION = "evaluation.json"
EVALUATED = f"evaluation/{EVALUATION}"
"""Path of the results of ``partita evaluate`` in a run: metrics by name, each a number or a mapping with ``value``,
``low`` and ``high``."""

SEED = 2
"""Seed of the choice of test pieces for the audio examples."""

REPORT_WARNING = (
    "report.html contains audio of test pieces and their reconstructions: publish it only if you have the right to "
    "publish these pieces"
)


def collect(
    run: str | Path, repo_id: str, *, license: str | None = None, examples: int = 3, report: bool = False
) -> dict[str, Path | bytes]:
    """Return all files of a trained system that are published, by their path in the repository.

    Paths and names that identify this machine or its user are removed from all files.

    Args:
        run: A run folder, or a folder that ``system.save`` wrote.
        repo_id: Hub id ``user/name``, which the model card names.
        license: Identifier of the license on the Hub.
        examples: Number of clips to generate, if the data of the run is available.
        report: Whether to include ``report.html``, which contains audio of test pieces that others may own.

    Raises:
        PartitaError: The system is not fully trained, or private data cannot be removed from a file.
    """
    folder = Path(run)
    if not (folder / INDEX).is_file():
        raise PartitaError(f"{run} holds no system: name the folder of a run or an export")
    system = load(folder)
    owner = Owner.here(folder, system.plan.values, repo_id)
    system.plan.values = owner.value(system.plan.values)
    found: dict[str, Path | bytes] = {INDEX: yaml.safe_dump(numbered(system.plan.values), sort_keys=False).encode()}
    for name in system.parts:
        for path in sorted(p for p in (folder / name).rglob("*") if p.is_file()):
            file = path.relative_to(folder).as_posix()
            found[file] = own_file(folder, file).resolve()
    metrics, notes, reading = {}, [], []
    if (folder / EVALUATED).is_file():
        found[EVALUATION] = own_file(folder, EVALUATED)
        evaluation = read_json(folder / EVALUATED)
        metrics, notes = evaluation.get("metrics", {}), evaluation.get("notes", [])
        reading = evaluation.get("reading", [])
    if report and (folder / "report.html").is_file():
        page = found["report.html"] = own_file(folder, "report.html", LARGEST_RESULTS)
        if b"data:audio/" in page.read_bytes():
            warnings.warn(REPORT_WARNING, stacklevel=2)
    own = (folder / "logs").is_dir()
    media = dict(_examples(system, examples)) if own else {}
    found |= {f"samples/{i}.{kind}": clip[kind] for i, clip in media.items() for kind in ("flac", "png")}
    captions = {i: clip["caption"].decode() for i, clip in media.items()}
    found["README.md"] = model_card(
        system, repo_id, license, metrics, captions, notes, data_overview(system) if own else (), reading
    ).encode()
    return publishable(found, owner)


def model_card(
    system: System,
    repo_id: str,
    license: str | None = None,
    metrics: Mapping[str, Any] | None = None,
    captions: Mapping[int, str] | None = None,
    notes: Sequence[str] = (),
    data: Sequence[str] = (),
    reading: Sequence[str] = (),
) -> str:
    """Return the model card, which is the README of a repository: YAML metadata followed by a description.

    Args:
        system: The system, with the recipe that is published.
        repo_id: Hub id ``user/name``.
        license: Identifier of the license on the Hub.
        metrics: Metrics of ``evaluation.json``.
        captions: Captions of the examples in ``samples/``, by number.
        notes: Notes of ``evaluation.json``.
        data: Sentences that describe the data.
        reading: Explanations of the metrics in ``evaluation.json``.
    """
    rows = list(_metrics(metrics or {}, ()))
    prompt = next(filter(None, (captions or {}).values()), "a slow piece for flute")
    quoted = json.dumps(one_line(prompt), ensure_ascii=False)
    texts = bool(system.stages) and "text" in system.inputs
    no_caption = "no prompt" if texts else "no text input"
    values = {
        "metadata": yaml.safe_dump(_metadata(system, repo_id, license, rows), sort_keys=False, allow_unicode=True),
        "title": repo_id.split("/")[-1],
        "repo_id": repo_id,
        "description": one_line(system.plan.values.get("description") or ""),
        "generates": bool(system.stages),
        "what": _what(system),
        "first_part": next((f'codec = system.tokenizers["{name}"]' for name in system.tokenizers), "")
        or next((f'conditioner = system.conditioners["{name}"]' for name in system.conditioners), ""),
        "sample_rate": system.sample_rate if system.stages else 0,
        "call": f"[{quoted}], duration={system.plan.window:g}" if texts else "",
        "quoted_prompt": f"{quoted} " if texts else "",
        "diagram": diagram(system),
        "parts": [part._replace(spec=one_line(part.spec)) for part in system.summary()],
        "training": (training := list(trainings(system))),
        "trained": any(row["start"] not in ("pretrained", "no weights") for row in training),
        "data": " ".join(
            [
                f"The data is `{system.source.registered_name}`{data_settings(system)}.",
                *(f"{one_line(line)}." for line in data),
            ]
        ),
        "origins": [one_line(f"{origin.what}: {origin.license}") for origin in system.source.origins],
        "metrics": rows,
        "reading": [one_line(str(text)) for text in reading],
        "pieces": SPLIT_NAMES[system.source.fallback_split("test")] if captions else "",
        "notes": [one_line(str(note)) for note in notes],
        "examples": [
            {"caption": one_line(text) or no_caption, "audio": f"samples/{i}.flac", "image": f"samples/{i}.png"}
            for i, text in (captions or {}).items()
        ],
        "windows": " or ".join(dict.fromkeys(f"{stage.window:g} s" for stage in system.plan.stages.values())),
        "codec": _codec(system),
    }
    text = (files(__package__) / "card.md").read_text(encoding="utf-8")
    return (
        jinja2.Environment(
            undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
        )
        .from_string(text)
        .render(values)
    )


def _what(system: System) -> str:
    """Return one sentence that says what the system does."""
    if system.stages:
        return "This system generates audio" + (" from text." if "text" in system.inputs else ".")
    if system.tokenizers:
        return "This system turns audio into tokens and back."
    return f"This system turns {' and '.join(system.inputs)} into conditions, such as embeddings, for other systems."


def _codec(system: System) -> str:
    """Return the representation that is decoded to audio. Empty for a system of conditioners alone."""
    tokenizers = [system.output] if system.stages else list(system.tokenizers.values())
    return one_line(str(tokenizers[0].spec)) if tokenizers else ""


def diagram(system: System) -> str:
    """Return the chain as a Mermaid flowchart: the conditions of each stage, its target, and the decoders."""
    nodes, arrows = [], []

    def box(kind: str, name: str, part: Any) -> None:
        nodes.append(f'  {_id(kind, name)}["{name}: {part.registered_name}"]')

    for name, conditioner in system.conditioners.items():
        box("conditioner", name, conditioner)
        for field in conditioner.inputs:
            arrows.append(f'  {_id("input", field)}(["{field}"]) --> {_id("conditioner", name)}')
    makers: dict[str, list[str]] = {}
    for name, stage in system.plan.stages.items():
        box("stage", name, system.stages[name])
        for given, how in system.stages[name].given.items():
            sources = [_id("conditioner", given)]
            if given in stage.references:
                sources = [_id("stage", maker) for maker in makers.get(stage.references[given].source, [])]
            elif given in stage.outputs:
                sources = [_id("stage", stage.outputs[given].stage)]
            arrows += [f'  {source} -->|"{given}, {how.fusion}"| {_id("stage", name)}' for source in sources]
        for target in stage.targets:
            makers.setdefault(target.source, []).append(name)
    for end in system.plan.ends:
        decoder = _id("tokenizer", end.tokenizer)
        box("tokenizer", end.tokenizer, system.tokenizers[end.tokenizer])
        for maker in makers[end.source]:
            made = next(target for target in system.plan.stages[maker].targets if target.source == end.source)
            arrows.append(f'  {_id("stage", maker)} -->|"{made}"| {decoder}')
        arrows.append(f'  {decoder} --> audio(["audio"])')
    if not system.plan.stages:
        for name, tokenizer in system.tokenizers.items():
            box("tokenizer", name, tokenizer)
            arrows.append(f'  audio(["audio"]) <--> {_id("tokenizer", name)}')
    return "\n".join(["flowchart LR", *nodes, *arrows])


def _metadata(system: System, repo_id: str, license: str | None, rows: list[dict[str, Any]]) -> dict[str, Any]:
    kinds = [part.registered_name for part in system.parts.values()]
    task = "text-to-audio" if system.stages else "audio-to-audio" if system.tokenizers else "feature-extraction"
    origin = system.plan.values.get("imported", "")
    license = license or license_of(origin)
    metadata: dict[str, Any] = {} if license is None else {"license": license}
    plans = [system.part_plan(key) for key in system.parts if key.group == "stages"]
    started = dict.fromkeys(filter(None, (_repository(plan.init) for plan in plans)))
    if origin in CHECKPOINTS or started:
        metadata["base_model"] = [*started] if origin not in CHECKPOINTS else origin
    metadata |= {
        "library_name": "partita",
        "pipeline_tag": task,
        "tags": list(dict.fromkeys(["partita", "music", "music-generation", "audio", *kinds])),
    }
    if rows:
        data = {"type": system.source.registered_name, "name": system.source.registered_name}
        results = [{"type": row["name"], "name": row["name"], "value": row["number"]} for row in rows]
        title = repo_id.split("/")[-1]
        metadata["model-index"] = [
            {
                "name": title,
                "results": [{"task": {"type": task, "name": "Music generation"}, "dataset": data, "metrics": results}],
            }
        ]
    return metadata


def trainings(system: System) -> Iterator[dict[str, str]]:
    """Yield a row for each part: start, steps, batch size, clip length, audio and learning rate of its training."""
    for key, part in system.training_order.items():
        plan, fit = system.part_plan(key), part.fit_options
        row = dict.fromkeys(("start", "steps", "batch", "clip", "seen", "rate"), "–") | {"key": key}
        pretrained = plan.weights is not None or (plan.init and plan.init == system.plan.values.get("imported"))
        if system.adapter_of(key) is not None:
            pretrained = False
        if pretrained or part.weightless:
            row["start"] = "pretrained" if pretrained else "no weights"
        elif getattr(part, "trained_with_stage", False):
            row["steps"] = "with its stage"
        else:
            seconds = system.plan.stages[key.name].window if key.group == "stages" else fit.crop
            seen = fit.steps * fit.examples * seconds
            row |= {"start": _start(plan.init), "steps": f"{fit.steps:,}", "batch": f"{fit.examples}"}
            row["clip"] = f"{seconds:g} s"
            row |= {"seen": f"{seen:,.0f} s" if seen < 7200 else f"{seen / 3600:,.0f} h", "rate": f"{fit.lr:g}"}
        yield row


def _start(init: str | None) -> str:
    """The weights from which a training started: those of a repository on the Hub by its id."""
    if init is None:
        return "random"
    return f"`{_repository(init)}`" if _repository(init) else "trained weights"


def _repository(source: str | None) -> str | None:
    """The hub id of the system or model that weights are of; ``None`` if they are on this machine only."""
    if source is None or kind(Path(source)):
        return None
    found = PART_ON_HUB.fullmatch(source) or re.fullmatch(r"([\w.-]+/[\w.-]+)", source)
    return found[1] if found else None


def _metrics(values: Mapping[str, Any], at: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """Yield a row for every number, and for every mapping with ``value``, ``low`` and ``high``."""
    for name, value in values.items():
        path = (*at, str(name))
        if isinstance(value, Mapping) and not isinstance(value.get("value"), int | float):
            yield from _metrics(value, path)
            continue
        number = value["value"] if isinstance(value, Mapping) else value
        if not isinstance(number, int | float) or isinstance(number, bool):
            continue
        low, high = (value.get("low"), value.get("high")) if isinstance(value, Mapping) else (None, None)
        known = isinstance(low, int | float) and isinstance(high, int | float)
        interval = f"{low:.4g} to {high:.4g}" if known else "–"
        more = dict.fromkeys(("real", "chance", "clips", "embedding"), "–") | {"subject": "system"}
        if isinstance(value, Mapping):
            present = {k: v for k in more if (v := value.get(k)) is not None}
            more |= {k: one_line(f"{v:.4g}" if isinstance(v, float) else str(v)) for k, v in present.items()}
            more |= {"clips": one_line(clips_text(value))} if "clips" in value else {}
        yield {
            "name": one_line(" ".join(path)),
            "number": number,
            "value": f"{number:.4g}",
            "interval": interval,
            **more,
        }


def _examples(system: System, count: int) -> Iterator[tuple[int, dict[str, bytes]]]:
    """Yield FLAC, spectrogram and caption of clips generated from captions of test pieces, if there is data."""
    if not system.stages or count < 1:
        return
    try:
        system.source.setup()
        pieces = system.examples("test", count, SEED)
        known = [pieces[i].fields for i in range(count)]
        audio = system.generate(system.prompts_of(known), seed=list(range(count))).cpu()
    except (PartitaError, OSError):
        return
    for i, (clip, fields) in enumerate(zip(audio, known, strict=True), 1):
        caption = str(fields.get("text", ""))
        image = png(spectrogram_figure(clip, system.sample_rate))
        yield i, {"flac": flac(clip.numpy(), system.sample_rate), "png": image, "caption": caption.encode()}


def data_overview(system: System) -> list[str]:
    """Return sentences that describe the data; empty if the data is not available."""
    try:
        system.source.setup()
    except (PartitaError, OSError):
        return []
    return [*overview(system.source), *training_gaps(system.source, system.reads, advise=False)]


def _id(kind: str, name: str) -> str:
    return f"{kind}_{re.sub(r'[^A-Za-z0-9]', '_', name)}"


def data_settings(system: System) -> str:
    """Return the options of the data sources in parentheses; empty if there are none."""
    data = system.plan.values.get("data")
    sources = data if isinstance(data, list) else [data] if isinstance(data, dict) else []
    given = [", ".join(f"{k}: {v}" for k, v in source.items() if k != "name" or len(sources) > 1) for source in sources]
    return f" ({one_line('; '.join(given))})" if any(given) else ""


def one_line(text: str) -> str:
    """Return a text that cannot break out of its table cell and line."""
    return " ".join(text.split()).replace("|", "¦").replace('"', "'").replace("<", "‹").replace(">", "›")
