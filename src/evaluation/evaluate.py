"""Evaluation of a system: clips are generated from the captions of test pieces and scored."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..core.contracts import Example, RepresentationSpec
from ..core.progress import listening, progress
from ..core.seeds import derive_seed
from ..core.version import __version__
from ..data.base import SPLIT_NAMES, Source
from ..data.examples import Examples
from ..data.overview import generation_gaps
from ..errors import PartitaError
from ..recipe.compose import compose
from ..recipe.plan import check_recipe
from ..storage.audio_file import read_clip, write_audio
from ..storage.files import replacing_file
from ..storage.untrusted import read_json
from ..system.assembly import INDEX
from ..system.system import System, load
from ..training.condition_use import condition_use
from .comparison import Comparison, reconstruct
from .embedders import Embedders
from .evaluation_options import Evaluation
from .evaluation_page import write_evaluation_page
from .scoring import chosen_scores, measurable, measure

SEED = 3
"""Seed of the choice of test clips, which is the same in every evaluation so that systems are comparable."""

RESULTS = "evaluation.json"

FEW = 50
"""Number of generated or real clips below which a Fréchet distance is mostly noise."""

CODEC_SECONDS = 10.0
"""Length of each clip for a system that is only a codec and has no window."""

log = logging.getLogger(__name__)


def evaluate(
    model: str | Path,
    output: str | Path | None = None,
    *,
    data: Sequence[str] = (),
    options: Evaluation | None = None,
    device: str = "cpu",
) -> dict[str, Any]:
    """Generate clips, score them, and write ``evaluation.json``, ``evaluation.html`` and the clips.

    Call it again to continue after an interruption. A codec alone is scored on its reconstructions of the test pieces.
    Messages are logged to ``partita.evaluation`` (INFO), and progress is reported to
    :func:`partita.core.progress.reporting`.

    Args:
        model: A run, an export, or a Hub id.
        output: Folder for the results. ``None`` takes ``evaluation`` in the folder of the run or export.
        data: Overrides of the recipe's data, such as ``data=…`` or ``data.limit=…``.
        options: Number of clips, choice of scores, and other options. ``None`` takes the defaults.
        device: Device to generate on.

    Returns:
        The content of ``evaluation.json``. ``request`` describes the clips; its ``pieces`` name the split, which is not
        ``test`` if the data has no test pieces. ``notes`` are warnings that readers of the scores must know.
        ``metrics`` holds the rows of all scores by name (see :mod:`partita.evaluation.rows`), and ``reading`` explains
        them. ``conditions`` holds a :class:`~partita.training.condition_use.ConditionUse` for each stage and condition,
        and ``captions`` the text of each clip, in the order of the clips.

    Raises:
        PartitaError: The folder holds a different evaluation, the data cannot be used, or a requested score cannot be
            measured.
    """
    options = options or Evaluation()
    scores, embedders = chosen_scores(options), Embedders()
    for score in scores.values():
        score.load(embedders)  # errors appear before slow steps
    system = load(model, device=device)
    scores = measurable(scores, options, system)
    source = _source(system, model, data)
    notes = [note for note in [source.fallback_warning("test")] if note is not None]
    for note in notes:
        log.info("%s", note)
    folder = Path(output) if output else (Path(model) / "evaluation" if Path(model).is_dir() else None)
    if folder is None:
        raise PartitaError(f"{model} is not a local folder: name a folder for the results with -o")
    spec = system.output.spec
    window = system.plan.window if system.stages else CODEC_SECONDS
    seconds = window if options.duration is None else options.duration
    request = {
        "model": _fingerprint(system),
        "data": source.registered_name,
        "data_changes": list(data),
        "pieces": SPLIT_NAMES[source.fallback_split("test")],
        # options that clips depend on; numbers of clips and scores can still change later
        "duration": seconds,
        "seed": options.seed,
        "precision": options.precision,
    }
    request |= {"data_revision": source.revision} if source.revision else {}
    _claim_folder(folder, request)
    examples = system.examples("test", options.clips, SEED, seconds)
    pieces = [examples[i] for i in range(options.clips)]
    if system.stages:
        notes += (unprompted := generation_gaps([piece.fields for piece in pieces], system.reads))
        for note in unprompted:
            log.info("%s", note)
    audio = _generated(system, pieces, folder, options, seconds)
    reference = _examples(source, spec, options.reference_clips, seconds, SEED + 1)
    for embedder in embedders.values():
        embedder.part.to(system.device)
    if options.clips < FEW or options.reference_clips < FEW:
        log.info(
            "fewer than %d clips: distances between distributions are unreliable; compare those of real clips", FEW
        )
    comparison = Comparison(system, audio, pieces, reference, options, folder, embedders, source)
    metrics = measure(scores, comparison)
    if any(stage.given for stage in system.stages.values()):
        log.info("use of conditions")
    uses = condition_use(system, split="test", clips=options.clips, source=source, seed=SEED)
    for use in uses:
        log.info("  %s", use)
    request |= {"clips": options.clips, "reference_clips": options.reference_clips, "version": __version__}
    own = {name: {label: row for label, row in metrics.items() if row["score"] == name} for name in scores}
    results = {
        "request": json.loads(json.dumps(request)),
        "notes": notes,
        "metrics": metrics,
        "reading": [text for name, rows in own.items() if rows and (text := scores[name].explanation(rows))],
        "conditions": [use.as_row() for use in uses],
        "captions": [str(piece.fields.get("text") or "") for piece in pieces],
    }
    with replacing_file(folder / RESULTS) as new:
        new.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    write_evaluation_page(folder, str(model), comparison, results, scores)
    return results


def _source(system: System, model: str | Path, data: Sequence[str]) -> Source:
    """Return the data source of the recipe, with overrides applied."""
    source = system.source
    if data:
        wrong = [change for change in data if not change.startswith("data")]
        if wrong:
            raise PartitaError(f"an evaluation changes data only, with data=… or data.key=…, not {wrong[0]!r}")
        path = Path(model) / INDEX
        if not path.is_file():
            raise PartitaError(
                f"{model} is not a folder with a recipe, so its data cannot be changed: pull the system first"
            )
        source = System.outline(check_recipe(compose(path, data))).source
    source.setup()
    if not source.carries_audio:
        raise PartitaError(
            "the data of this system are stored tokens, and an evaluation compares audio: name the data with the "
            "audio, such as data={name: folder, path: /music}"
        )
    return source


def _fingerprint(system: System) -> str:
    """Return a digest of all weights and of the recipe's stages, which identifies the system."""
    digest = hashlib.blake2b(digest_size=16)
    for folder, part in system.parts.items():
        digest.update(f"{folder} {part.fingerprint()}".encode())
    digest.update(repr(system.plan.values.get("stages")).encode())
    return digest.hexdigest()


def _claim_folder(folder: Path, request: dict[str, Any]) -> None:
    """Claim the folder for this evaluation, or check that its clips were generated for the same request."""
    path, text = folder / "request.json", json.dumps(request, indent=2) + "\n"
    if path.is_file():
        old = read_json(path)
        if wrong := [f"  {key}: {old.get(key)} → {request[key]}" for key in request if old.get(key) != request[key]]:
            raise PartitaError(
                f"{folder} holds a different evaluation: choose another folder with -o, or delete it. "
                "Differences:\n" + "\n".join(wrong)
            )
        return
    if folder.exists() and any(folder.iterdir()):
        raise PartitaError(f"{folder} is not empty and holds no evaluation: choose another folder with -o")
    folder.mkdir(parents=True, exist_ok=True)
    with replacing_file(path) as new:
        new.write_text(text, encoding="utf-8")


def _examples(source: Source, spec: RepresentationSpec, length: int, seconds: float, seed: int) -> list[Example]:
    examples = Examples.for_spec(spec, source, "test", length, seconds, seed)
    return [examples[i] for i in range(length)]


@torch.inference_mode()
def _generated(system: System, pieces: Sequence[Example], folder: Path, options: Evaluation, seconds: float) -> Tensor:
    """Return clips ``[N, C, T]`` conditioned on the fields of the pieces; existing clips are read, not generated."""
    spec = system.output.spec
    paths = [folder / "clips" / f"{i:05d}.flac" for i in range(len(pieces))]
    missing = [i for i, path in enumerate(paths) if not path.is_file()]
    if len(missing) < len(paths):
        log.info("%d of %d clips exist already", len(paths) - len(missing), len(paths))
    (folder / "clips").mkdir(exist_ok=True)
    for start in range(0, len(missing), options.batch_size):
        batch = missing[start : start + options.batch_size]
        if system.stages:
            inputs = system.prompts_of([pieces[i].fields for i in batch])
            seeds = [derive_seed(options.seed, i) for i in batch]
            made = system.generate(
                inputs, duration=seconds, seed=seeds, precision=options.precision, progress=not listening()
            )
        else:
            made = reconstruct(system.output, torch.stack([pieces[i].audio for i in batch]), system.device)
        for i, clip in zip(batch, made.cpu(), strict=True):
            write_audio(paths[i], clip.numpy(), spec.sample_rate, bits=24)
        progress("clips", len(paths) - len(missing) + start + len(batch), len(paths))
    try:
        clips = [read_clip(path, 0.0, None, spec.sample_rate, spec.channels)[0] for path in paths]
    except PartitaError as error:
        raise PartitaError(f"{error}: delete this clip and run the same command again") from None
    lengths = [clip.shape[1] for clip in clips]
    for path, length in zip(paths, lengths, strict=True):
        if length != max(lengths):
            raise PartitaError(f"{path} is shorter than the other clips: delete it and run the same command again")
    return torch.from_numpy(np.stack(clips))
