"""Measuring a system: what it generates from the captions of test pieces, once, compared with those pieces."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from torch import Tensor

from ..core.contracts import Example, RepresentationSpec
from ..core.seeds import derive_seed
from ..core.version import __version__
from ..data.base import NAMES, Source
from ..data.examples import Examples
from ..data.overview import untold
from ..errors import PartitaError
from ..pages.page import clip_media, write_page
from ..recipe.compose import compose
from ..recipe.plan import check_recipe
from ..storage.audio_file import read_clip, write_audio
from ..storage.files import replacing_file
from ..storage.untrusted import read_json
from ..system.assembly import INDEX
from ..system.system import System, load
from ..training.condition_use import condition_use
from .continuations import training_clip
from .options import Evaluation
from .score_texts import DISTANCES
from .scores import Comparison, check_asked, read_embedders, reconstructed, score

SEED = 3
"""Of the test pieces that every evaluation compares with, so that systems can be compared with each other."""

RESULTS = "evaluation.json"

FEW = 50
"""Clips, generated or real, below which a Fréchet distance is mostly chance."""

CODEC_SECONDS = 10.0
"""Of each clip, where there is no stage whose window says it."""


def evaluate(
    model: str | Path,
    output: str | Path | None = None,
    *,
    data: Sequence[str] = (),
    options: Evaluation | None = None,
    device: str = "cpu",
    say: Callable[[str], None] = lambda line: None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Generate, score, and write ``evaluation.json``, ``evaluation.html`` and the clips. Run again to go on.

    Of a codec alone, what is scored is what it makes of the test pieces.

    Args:
        model: A run, an export, or a hub id.
        output: Folder; ``evaluation`` in the run or export unless given.
        data: Changes to the recipe's data, ``data=…`` or ``data.limit=…``.
        options: What is generated and compared.
        device: To generate on.
        say: Gets a line on each thing done.
        progress: Called with (clips generated, clips in all).

    Returns:
        What ``evaluation.json`` holds: ``request``, whose ``pieces`` are ``test`` ones unless others had to stand in;
        ``notes`` that every reader of the scores must know; and, by name, ``metrics``, the rows of
        :mod:`partita.evaluation.scores`: each with ``value``, ``better``, ``embedding`` and ``clips``, and where they
        are known ``low`` and ``high`` (95 %), ``real`` (what real test clips score), ``codec``, ``chance`` and
        ``reference_clips``. ``conditions`` holds, per stage and condition, what
        :class:`~partita.training.condition_use.ConditionUse` does.

    Raises:
        PartitaError: The folder holds an evaluation of something else, or the data cannot be used.
    """
    options = options or Evaluation()
    embedders = read_embedders(options)  # before anything slow
    system = load(model, device=device)
    check_asked(system, options)
    source = _source(system, model, data)
    notes = [note for note in [source.shortage("test")] if note is not None]
    for note in notes:
        say(note)
    folder = Path(output) if output else (Path(model) / "evaluation" if Path(model).is_dir() else None)
    if folder is None:
        raise PartitaError(f"{model} is not a folder: say with -o where its evaluation goes")
    spec = system.output.spec
    window = list(system.plan.stages.values())[-1].window if system.stages else CODEC_SECONDS
    seconds = window if options.duration is None else options.duration
    request = {
        "model": _fingerprint(system),
        "data": source.registered_name,
        "data_changes": list(data),
        "pieces": NAMES[source.stand_in("test")],
        # whatever a clip depends on: there can be more of them, and more scores, later
        "duration": seconds,
        "seed": options.seed,
    }
    request |= {"data_revision": source.revision} if source.revision else {}
    _claim(folder, request)
    pieces = _examples(source, spec, options.clips, seconds, SEED)
    if system.stages:
        notes += (unprompted := untold([piece.fields for piece in pieces], system.reads))
        for note in unprompted:
            say(note)
    audio = _generated(system, pieces, folder, options, seconds, say, progress)
    others = _examples(source, spec, options.reference_clips, seconds, SEED + 1)
    for embedder in embedders.values():
        embedder.part.to(system.device)
    if options.clips < FEW or options.reference_clips < FEW:
        say(f"fewer than {FEW} clips: distances between distributions say little, and real clips may be as far away")
    metrics = score(Comparison(system, audio, pieces, others, options, embedders, folder, say, progress))
    if any(stage.given for stage in system.stages.values()):
        say("what the stages listen to")
    uses = condition_use(system, split="test", clips=options.clips, source=source, seed=SEED, say=say)
    for use in uses:
        say(f"  {use}")
    request |= {"clips": options.clips, "reference_clips": options.reference_clips, "version": __version__}
    results = {"request": json.loads(json.dumps(request)), "notes": notes, "metrics": metrics}
    results["conditions"] = [use.as_row() for use in uses]
    with replacing_file(folder / RESULTS) as new:
        new.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    _page(folder, str(model), system, spec, audio, pieces, results)
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
    """Of all weights and the recipe's stages: another system has another one."""
    digest = hashlib.blake2b(digest_size=16)
    for folder, part in system.parts.items():
        for name, tensor in sorted(part.exported_state().items()):
            digest.update(f"{folder}/{name}".encode())
            digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    digest.update(repr(system.plan.values.get("stages")).encode())
    return digest.hexdigest()


def _claim(folder: Path, request: dict[str, Any]) -> None:
    """Make the folder this evaluation's, or see that it is: clips of another request must not be taken for its own."""
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
    examples = Examples.at(spec, source, "test", length, seconds, seed)
    return [examples[i] for i in range(length)]


@torch.inference_mode()
def _generated(
    system: System,
    pieces: Sequence[Example],
    folder: Path,
    options: Evaluation,
    seconds: float,
    say: Callable[[str], None],
    progress: Callable[[int, int], None] | None,
) -> Tensor:
    """Clips ``[N, C, T]`` from the captions of the pieces; those that are there already are read, not made again."""
    spec = system.output.spec
    paths = [folder / "clips" / f"{i:05d}.flac" for i in range(len(pieces))]
    missing = [i for i, path in enumerate(paths) if not path.is_file()]
    if len(missing) < len(paths):
        say(f"{len(paths) - len(missing)} of {len(paths)} clips are there already")
    (folder / "clips").mkdir(exist_ok=True)
    for start in range(0, len(missing), options.batch_size):
        batch = missing[start : start + options.batch_size]
        if system.stages:
            inputs = system.prompts_of([pieces[i].fields for i in batch])
            made = system.generate(inputs, duration=seconds, seed=[derive_seed(options.seed, i) for i in batch])
        else:
            made = reconstructed(system.output, torch.stack([pieces[i].audio for i in batch]), system.device)
        for i, clip in zip(batch, made.cpu(), strict=True):
            write_audio(paths[i], clip.numpy(), spec.sample_rate, bits=24)
        if progress is not None:
            progress(len(paths) - len(missing) + start + len(batch), len(paths))
    try:
        clips = [read_clip(path, 0.0, None, spec.sample_rate, spec.channels)[0] for path in paths]
    except PartitaError as error:
        raise PartitaError(f"{error}: delete this clip, and run the same command again") from None
    lengths = [clip.shape[1] for clip in clips]
    for path, length in zip(paths, lengths, strict=True):
        if length != max(lengths):
            raise PartitaError(f"{path} is shorter than the other clips: delete it, and run the same command again")
    return torch.from_numpy(np.stack(clips))


def _continued(folder: Path, memory: Mapping[str, Any]) -> Iterator[dict[str, str]]:
    """The training clips whose continuations are nearest to them, each followed by its continuation."""
    for near in memory["nearest"]:
        path = folder / f"{near['clip']:05d}.flac"
        how = "exactly" if near["exact"] else f"cost {near['cost']:.3g}, threshold {memory['threshold']:.3g}"
        shown = {training_clip(path): f"training clip ({near['piece']})", path: f"its continuation: {how}"}
        for file, caption in shown.items():
            audio, rate = soundfile.read(file, dtype="float32", always_2d=True)
            yield clip_media(torch.from_numpy(audio.T), rate, caption)


def _page(
    folder: Path,
    model: str,
    system: System,
    spec: RepresentationSpec,
    audio: Tensor,
    pieces: Sequence[Example],
    results: Mapping[str, Any],
    shown: int = 6,
) -> None:
    captions = [str(piece.fields.get("text") or piece.fields.get("id", "")) for piece in pieces]
    clips = []
    for clip, piece, caption in list(zip(audio, pieces, captions, strict=True))[:shown]:
        made = "generated" if system.stages else "after the codec"
        clips.append(clip_media(clip, spec.sample_rate, f"{made}: {caption}"))
        clips.append(clip_media(piece.audio, spec.sample_rate, "the piece itself"))
    memory = next((row for row in results["metrics"].values() if row["of"] == "memory"), None)
    values = {"model": model, "parts": system.summary(), "clips": clips, "memory": memory, "distances": DISTANCES}
    values["continued"] = [] if memory is None else list(_continued(folder / "memorization", memory))
    write_page(folder / "evaluation.html", "evaluation.html", **values, **results)
