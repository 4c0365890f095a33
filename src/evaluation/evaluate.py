"""Evaluating a system: clips generated once from the captions of test pieces, and their scores."""

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
"""Seed of the test pieces that every evaluation compares with, so that systems can be compared with each other."""

RESULTS = "evaluation.json"

FEW = 50
"""Number of clips, generated or real, below which a Fréchet distance is mostly chance."""

CODEC_SECONDS = 10.0
"""Length of each clip for a codec alone, which has no stage with a window."""

log = logging.getLogger(__name__)


def evaluate(
    model: str | Path,
    output: str | Path | None = None,
    *,
    data: Sequence[str] = (),
    options: Evaluation | None = None,
    device: str = "cpu",
) -> dict[str, Any]:
    """Generate, score, and write ``evaluation.json``, ``evaluation.html`` and the clips. Run it again to continue.

    A codec alone is scored on its reconstructions of the test pieces. What is done is logged (``partita.evaluation``,
    INFO), and its progress goes to :func:`partita.core.progress.reporting`.

    Args:
        model: A run, an export, or a hub id.
        output: Folder for the results; ``evaluation`` in the run or export if ``None``.
        data: Changes to the recipe's data, ``data=…`` or ``data.limit=…``.
        options: How many clips are generated, and which scores are measured.
        device: Device to generate on.

    Returns:
        The content of ``evaluation.json``: ``request``, whose ``pieces`` are ``test`` ones unless others had to stand
        in; ``notes`` that every reader of the scores must know; ``metrics``, the rows of all scores by name (see
        :mod:`partita.evaluation.rows`); ``reading``, how to read them; and ``conditions``, for each stage and
        condition a :class:`~partita.training.condition_use.ConditionUse`.

    Raises:
        PartitaError: The folder holds an evaluation of something else, the data cannot be used, or a score that was
            asked for cannot be measured.
    """
    options = options or Evaluation()
    scores, embedders = chosen_scores(options), Embedders()
    for score in scores.values():
        score.load(embedders)  # before anything slow
    system = load(model, device=device)
    scores = measurable(scores, options, system)
    source = _source(system, model, data)
    notes = [note for note in [source.fallback_warning("test")] if note is not None]
    for note in notes:
        log.info("%s", note)
    folder = Path(output) if output else (Path(model) / "evaluation" if Path(model).is_dir() else None)
    if folder is None:
        raise PartitaError(f"{model} is not a folder: say with -o where its evaluation goes")
    spec = system.output.spec
    window = system.plan.last_stage.window if system.stages else CODEC_SECONDS
    seconds = window if options.duration is None else options.duration
    request = {
        "model": _fingerprint(system),
        "data": source.registered_name,
        "data_changes": list(data),
        "pieces": SPLIT_NAMES[source.fallback_split("test")],
        # whatever a clip depends on: there can be more of them, and more scores, later
        "duration": seconds,
        "seed": options.seed,
    }
    request |= {"data_revision": source.revision} if source.revision else {}
    _claim(folder, request)
    pieces = _examples(source, spec, options.clips, seconds, SEED)
    if system.stages:
        notes += (unprompted := generation_gaps([piece.fields for piece in pieces], system.reads))
        for note in unprompted:
            log.info("%s", note)
    audio = _generated(system, pieces, folder, options, seconds)
    reference = _examples(source, spec, options.reference_clips, seconds, SEED + 1)
    for embedder in embedders.values():
        embedder.part.to(system.device)
    if options.clips < FEW or options.reference_clips < FEW:
        log.info("fewer than %d clips: distances between distributions say little, real clips may be as far away", FEW)
    comparison = Comparison(system, audio, pieces, reference, options, folder, embedders)
    metrics = measure(scores, comparison)
    if any(stage.given for stage in system.stages.values()):
        log.info("what the stages listen to")
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
    }
    with replacing_file(folder / RESULTS) as new:
        new.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    write_evaluation_page(folder, str(model), comparison, results, scores)
    return results


def _source(system: System, model: str | Path, data: Sequence[str]) -> Source:
    """The recipe's data, or what the changes make of it."""
    source = system.source
    if data:
        wrong = [change for change in data if not change.startswith("data")]
        if wrong:
            raise PartitaError(f"an evaluation changes data only: {wrong[0]!r} is not data=… or data.key=…")
        path = Path(model) / INDEX
        if not path.is_file():
            raise PartitaError(
                f"{model} is not a folder with a recipe, so its data cannot be changed here: pull it first"
            )
        source = System.outline(check_recipe(compose(path, data))).source
    source.setup()
    return source


def _fingerprint(system: System) -> str:
    """A digest of all weights and the recipe's stages, so that another system has another one."""
    digest = hashlib.blake2b(digest_size=16)
    for folder, part in system.parts.items():
        digest.update(f"{folder} {part.fingerprint()}".encode())
    digest.update(repr(system.plan.values.get("stages")).encode())
    return digest.hexdigest()


def _claim(folder: Path, request: dict[str, Any]) -> None:
    """Make the folder this evaluation's, or check that it is: clips of another request are never taken for its own."""
    path, text = folder / "request.json", json.dumps(request, indent=2) + "\n"
    if path.is_file():
        old = read_json(path)
        if wrong := [f"  {key}: {old.get(key)} → {request[key]}" for key in request if old.get(key) != request[key]]:
            raise PartitaError(
                f"{folder} holds an evaluation of something else: choose another folder with -o, or delete it. What "
                "differs:\n" + "\n".join(wrong)
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
    """Clips ``[N, C, T]`` from the captions of the pieces; those that are there already are read, not made again."""
    spec = system.output.spec
    paths = [folder / "clips" / f"{i:05d}.flac" for i in range(len(pieces))]
    missing = [i for i, path in enumerate(paths) if not path.is_file()]
    if len(missing) < len(paths):
        log.info("%d of %d clips are there already", len(paths) - len(missing), len(paths))
    (folder / "clips").mkdir(exist_ok=True)
    for start in range(0, len(missing), options.batch_size):
        batch = missing[start : start + options.batch_size]
        if system.stages:
            inputs = system.prompts_of([pieces[i].fields for i in batch])
            made = system.generate(
                inputs, duration=seconds, seed=[derive_seed(options.seed, i) for i in batch], progress=not listening()
            )
        else:
            made = reconstruct(system.output, torch.stack([pieces[i].audio for i in batch]), system.device)
        for i, clip in zip(batch, made.cpu(), strict=True):
            write_audio(paths[i], clip.numpy(), spec.sample_rate, bits=24)
        progress("clips", len(paths) - len(missing) + start + len(batch), len(paths))
    try:
        clips = [read_clip(path, 0.0, None, spec.sample_rate, spec.channels)[0] for path in paths]
    except PartitaError as error:
        raise PartitaError(f"{error}: delete this clip, and run the same command again") from None
    lengths = [clip.shape[1] for clip in clips]
    for path, length in zip(paths, lengths, strict=True):
        if length != max(lengths):
            raise PartitaError(f"{path} is shorter than the other clips: delete it, and run the same command again")
    return torch.from_numpy(np.stack(clips))
