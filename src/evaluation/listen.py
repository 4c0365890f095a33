"""Blind listening tests: the clips, and the page that asks which of two clips is better.

The human evaluation of MusicLM (arXiv 2301.11325, §5.2) is the model: pairs of clips for one prompt, wins per system.
"""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..core.seeds import derive_seed
from ..data.examples import Examples
from ..errors import PartitaError
from ..pages.page import template_text
from ..recipe.recipe_files import recipes
from ..storage.audio_file import SUFFIXES, flac, inspect_audio, read_clip
from ..storage.files import kind, replacing_file
from ..system.assembly import INDEX
from ..system.mastering import Mastering, loudness
from ..system.system import load

PAGE, KEY = "listen.html", "key.json"
"""The files of a test: what listeners get, and what they must not."""

ORDERS = 24
"""Different orders of the trials. An even number: every second one has the sides of the one before swapped."""

log = logging.getLogger(__name__)

_FORMAT = 1
_BATCH = 8
_PEAK = -1.0


class Clip(NamedTuple):
    """Audio ``[C, T]`` at a rate."""

    audio: np.ndarray
    sample_rate: int


@dataclass(frozen=True)
class Material:
    """What is compared.

    Args:
        clips: For each system, one clip for each item, in the same order.
        items: Names of the items.
        prompts: For each item, the text that listeners see; ``None`` to show no text.

    Raises:
        PartitaError: There is nothing to compare.
    """

    clips: Mapping[str, Sequence[Clip]]
    items: Sequence[str]
    prompts: Sequence[str | None]

    def __post_init__(self) -> None:
        if len(self.clips) < 2:
            raise PartitaError("a listening test compares two systems or more: name another run or folder")
        if not self.items:
            raise PartitaError("a listening test needs at least one prompt")


def gather_clips(
    sources: Sequence[str],
    *,
    prompts: str = "10",
    duration: float | None = None,
    seed: int = 0,
    device: str = "cpu",
) -> Material:
    """Take or generate the clips of a test.

    Where one of the sources is a folder of audio files, its file names are the items; a system is then given the
    captions beside the files (``song.txt`` beside ``song.wav``).

    Args:
        sources: Runs, exports, hub ids or recipes with weights; or folders of audio with the same file names.
        prompts: A number of test pieces of the first system's data, or a file with a prompt on each line.
        duration: Seconds of every clip; that of the first system's window, or of the files, unless given.
        seed: Seed of the first clip of each system; the next ones count up.
        device: Device to generate on.

    Raises:
        PartitaError: A source is nothing of the kind, holds other files than the rest, or cannot be given the prompts.
    """
    if duration is not None and not 0 < duration < float("inf"):
        raise PartitaError(f"duration must be a positive number of seconds, not {duration:g}")
    labels = _labels(sources)
    if len(labels) < 2:
        raise PartitaError("a listening test compares two systems or more: name another run or folder")
    for source in sources:  # before minutes of generating
        if not kind(source) and source not in recipes() and not re.fullmatch(r"[\w.-]+/[\w.-]+", source):
            raise PartitaError(f"{source} is neither a folder, nor a hub id (user/name), nor a recipe")
    folders = {source: _audio_files(Path(source)) for source in sources if _is_audio_folder(source)}
    items = _common_names(folders)
    texts = _prompt_lines(Path(prompts)) if not prompts.isdigit() else None
    if items and texts and len(texts) != len(items):
        raise PartitaError(f"{prompts} holds {len(texts)} prompts, but the folders hold {len(items)} files each")
    shown: list[str | None] = [_caption(name, folders) for name in items] if texts is None else [*texts]
    inputs: dict[str, list[Any]] | None = {"text": shown} if shown and None not in shown else None
    clips: dict[str, list[Clip]] = {}
    for source, label in zip(sources, labels, strict=True):
        if source in folders:
            clips[label] = [_clip(folders[source][name], duration) for name in items]
            log.info("%s: %d clips from %s", label, len(items), source)
            continue

        system = load(source, device=device)
        if inputs is None:
            if items:
                bare = next(name for name, text in zip(items, shown, strict=True) if text is None)
                raise PartitaError(
                    f"{source} needs prompts for the files it is compared with: put {bare}.txt beside the audio file "
                    f"{bare} (and so for each), or give --prompts a file with a line for each"
                )
            inputs = _test_inputs(system, int(prompts))
            shown = inputs["text"]
        count = len(shown)
        items = items or [f"{i + 1:03}" for i in range(count)]
        if duration is None:
            duration = system.plan.last_stage.window if system.stages else None
        clips[label] = _generate(system, label, inputs, count, duration, seed)
        log.info("%s: %d clips generated", label, count)
    return Material(clips, items, shown)


def check_listening_test(folder: Path, systems: int, *, trials: int | None, catch: int, level: float) -> None:
    """Check the arguments of :func:`write_listening_test` before anything is generated.

    Raises:
        PartitaError: One of them is out of range, or there is a test in the folder already.
    """
    if (folder / KEY).exists():
        raise PartitaError(f"{folder} holds a listening test already, and answers belong to it: choose another folder")
    pairs = systems * (systems - 1) // 2
    if trials is not None and trials < pairs:
        raise PartitaError(f"every listener must hear every pair of systems once: {pairs} trials or more")
    if catch < 0:
        raise PartitaError(f"the number of catch trials cannot be {catch}")
    Mastering(level, _PEAK)


def write_listening_test(
    material: Material,
    folder: Path,
    *,
    question: str = "Which one do you prefer?",
    trials: int | None = None,
    catch: int = 0,
    level: float = -23.0,
    seed: int = 0,
) -> tuple[Path, list[str]]:
    """Write the page for listeners and the key to it.

    Args:
        material: What is compared.
        folder: Must not hold a test yet.
        question: What listeners are asked.
        trials: Most pairs for one listener, without catch trials; every pair of every item unless given.
        catch: Trials for each listener in which a clip meets a degraded copy of itself; one for each item at most.
        level: Loudness of all clips, in LUFS.
        seed: Seed of names and orders.

    Returns:
        The path of the page, and what should be known of it (silent clips, lowered peaks, fewer catch trials).

    Raises:
        PartitaError: There is a test already, or a number is out of range.
    """
    systems, count = list(material.clips), len(material.items)
    check_listening_test(folder, len(systems), trials=trials, catch=catch, level=level)
    finish, notes, finished = Mastering(level, _PEAK), [], {}
    for system, clips in material.clips.items():
        for item, clip in enumerate(clips):
            done = finish(clip.audio, clip.sample_rate)
            finished[system, item] = Clip(done.audio, clip.sample_rate)
            if done.loudness is None or done.reduction:
                notes.append(f"{system}, {material.items[item]}: {done}")
    caught = _catch_clips(finished, systems, count, catch, finish, seed)
    if len(caught) < catch:
        notes.append(f"catch trials: {len(caught)} instead of {catch}, one for each item that can be heard")
    content = {(*at, ""): clip for at, clip in finished.items()}
    content |= {(*at, "degraded"): clip for at, clip in caught.items()}
    names = {at: f"{derive_seed(seed, 'clip', *at):014x}" for at in content}
    shown = sorted(names.values())
    at = {name: place for place, name in names.items()}
    encoded = {name: flac(content[at[name]].audio, content[at[name]].sample_rate) for name in shown}
    test = hashlib.blake2b("".join(shown).encode() + b"".join(encoded.values()), digest_size=8).hexdigest()
    orders = [
        [[shown.index(names[systems[s], item, kind]) for s, item, kind in sides] for sides in order]
        for order in make_orders(len(systems), count, trials, [(systems.index(s), item) for s, item in caught], seed)
    ]
    page_data = {
        "test": test,
        "question": question,
        "clips": [
            {"id": name, "prompt": material.prompts[at[name][1]], "audio": base64.b64encode(encoded[name]).decode()}
            for name in shown
        ],
        "orders": orders,
    }
    key = {
        "format": _FORMAT,
        "test": test,
        "question": question,
        "systems": systems,
        "items": list(material.items),
        "prompts": list(material.prompts),
        "loudness": level,
        "catch": len(caught),
        "trials": len(orders[0]),
        "clips": {
            name: {"system": at[name][0], "item": material.items[at[name][1]], "degraded": bool(at[name][2])}
            for name in shown
        },
    }
    template = template_text("listen.html")
    # In a script element nothing but "</script" and "<!--" means anything to a browser.
    text = json.dumps(page_data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    with replacing_file(folder / PAGE) as new:
        new.write_text(template.replace("@DATA@", text), encoding="utf-8")
    with replacing_file(folder / KEY) as new:
        new.write_text(json.dumps(key, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return folder / PAGE, notes


def make_orders(
    num_systems: int, num_items: int, trials: int | None, catches: Sequence[tuple[int, int]], seed: int
) -> list[list[tuple[tuple[int, int, str], tuple[int, int, str]]]]:
    """What listeners hear: for each order, trials of a left and a right clip (system, item, ``degraded`` or nothing).

    In every order each pair of systems comes up equally often (once more or less where ``trials`` cannot be divided),
    and either system of a pair is on the left as often as on the right (to two). Over the orders, items are used
    equally, too; where every order has all trials, the second of two has the sides of the first swapped.

    Args:
        num_systems: Number of systems.
        num_items: Number of items for each system.
        trials: Most trials of an order, without catch trials.
        catches: (system, item) of the clips that meet a degraded copy of themselves.
        seed: Seed of everything random.
    """
    draw = np.random.default_rng(derive_seed(seed, "orders"))
    pairs = list(combinations(range(num_systems), 2))
    total = min(trials or len(pairs) * num_items, len(pairs) * num_items)
    item_orders = [draw.permutation(num_items) for _ in pairs]
    used, orders = [0] * len(pairs), []
    for order in range(ORDERS):
        chosen = []
        for number, (a, b) in enumerate(pairs):
            # Which pairs come up once more goes round.
            extra = (number - order * (total % len(pairs))) % len(pairs) < total % len(pairs)
            for _ in range(total // len(pairs) + extra):
                position, times = used[number] % num_items, used[number] // num_items
                item = int(item_orders[number][position])
                sides = ((a, item, ""), (b, item, ""))
                chosen.append(sides[::-1] if (position + times + number) % 2 else sides)
                used[number] += 1
        for number, (system, item) in enumerate(catches):
            sides = ((system, item, ""), (system, item, "degraded"))
            chosen.append(sides[::-1] if (number + order) % 2 else sides)
        orders.append([chosen[i] for i in draw.permutation(len(chosen))])
    return orders


def degraded(clip: Clip, seed: int) -> Clip:
    """A clip that anybody hears is worse: without what is above 1 kHz, in noise as loud as itself."""
    spectrum = np.fft.rfft(clip.audio, axis=1)
    spectrum[:, np.fft.rfftfreq(clip.audio.shape[1], 1 / clip.sample_rate) > 1000] = 0
    dull = np.fft.irfft(spectrum, clip.audio.shape[1], axis=1)
    noise = np.random.default_rng(seed).standard_normal(clip.audio.shape) * np.sqrt(np.mean(dull**2))
    return Clip((dull + noise).astype(np.float32), clip.sample_rate)


def _catch_clips(
    clips: Mapping[tuple[str, int], Clip], systems: Sequence[str], items: int, catch: int, finish: Mastering, seed: int
) -> dict[tuple[str, int], Clip]:
    """Degraded copies of audible clips, equally loud, taken from one system after the other."""
    caught: dict[tuple[str, int], Clip] = {}
    draw = np.random.default_rng(derive_seed(seed, "catch"))
    for item in draw.permutation(items):
        at = (systems[len(caught) % len(systems)], int(item))
        if len(caught) < catch and loudness(*clips[at]) is not None:
            worse = degraded(clips[at], derive_seed(seed, "noise", *at))
            caught[at] = Clip(finish(*worse).audio, worse.sample_rate)
    return caught


def _labels(sources: Sequence[str]) -> list[str]:
    """The last part of each path, or all of it where that would name two of them."""
    twice = {source for source in sources if list(sources).count(source) > 1}
    if twice:
        raise PartitaError(f"{', '.join(sorted(twice))} is named twice: a system cannot be compared with itself")
    short = [Path(source).name or source for source in sources]
    return list(sources) if len(set(short)) < len(short) else short


def _is_audio_folder(source: str) -> bool:
    return kind(source) == "folder" and not (Path(source) / INDEX).is_file()


def _audio_files(folder: Path) -> dict[str, Path]:
    """The audio files of a folder by their names without endings."""
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in SUFFIXES and path.is_file():
            if path.stem in found:
                raise PartitaError(f"{folder} holds two files of one name: {found[path.stem].name} and {path.name}")
            found[path.stem] = path
    if not found:
        raise PartitaError(f"{folder} holds neither a system nor audio files")
    return found


def _common_names(folders: Mapping[str, Mapping[str, Path]]) -> list[str]:
    every = sorted({name for found in folders.values() for name in found})
    missing = [
        f"{folder} has no {', '.join(lacking[:5])}{' …' if len(lacking) > 5 else ''}"
        for folder, found in folders.items()
        if (lacking := [name for name in every if name not in found])
    ]
    if missing:
        raise PartitaError("the folders must hold files of the same names (endings aside): " + "; ".join(missing))
    return every


def _caption(name: str, folders: Mapping[str, Mapping[str, Path]]) -> str | None:
    for found in folders.values():
        beside = found[name].with_suffix(".txt")
        if beside.is_file():
            return _text(beside).strip()
    return None


def _prompt_lines(path: Path) -> list[str]:
    if not path.is_file():
        raise PartitaError(f"prompts are a number or a file with one on each line; there is no file {path}")
    lines = [line.strip() for line in _text(path).splitlines() if line.strip()]
    if not lines:
        raise PartitaError(f"{path} holds no prompts")
    return lines


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise PartitaError(f"cannot read {path} as text: {error}") from None


def _clip(path: Path, duration: float | None) -> Clip:
    try:
        info = inspect_audio(path)
    except PartitaError as error:
        raise PartitaError(f"{path}: {error}") from None
    seconds = None if duration is None else min(duration, info.seconds)
    return Clip(read_clip(path, 0, seconds, info.sample_rate, info.channels)[0], info.sample_rate)


def _test_inputs(system: Any, count: int) -> dict[str, list[Any]]:
    """What is known of test pieces, by the inputs of a system; ``text`` even where it takes none."""
    if count < 1:
        raise PartitaError("a listening test needs at least one prompt")
    spec = system.output.spec
    system.source.setup()
    examples = Examples.for_spec(spec, system.source, "test", count, 1.0, 0)
    known = [examples[i].fields for i in range(count)]
    names = {"text", *system.inputs}
    return {name: [fields.get(name) for fields in known] for name in sorted(names)}


def _generate(
    system: Any, label: str, inputs: Mapping[str, list[Any]], count: int, duration: float | None, seed: int
) -> list[Clip]:
    """A clip for each prompt, of whatever the system takes of it; the others' prompts must do for it."""
    for conditioner in system.conditioners.values():
        if not inputs.keys() & set(conditioner.inputs):
            raise PartitaError(f"{label} takes {', '.join(conditioner.inputs)}, which the prompts do not hold")
    taken = inputs.keys() & set(system.inputs)
    clips = []
    for start in range(0, count, _BATCH):
        part = range(start, min(start + _BATCH, count))
        given = {name: [inputs[name][i] for i in part] for name in taken}
        audio = system.generate(given or None, duration=duration, seed=[seed + i for i in part])
        clips += [Clip(clip.float().cpu().numpy(), system.sample_rate) for clip in audio]
    return clips
