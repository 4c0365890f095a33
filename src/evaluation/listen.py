"""Blind listening tests: a page that presents pairs of clips and asks which clip is better.

The design follows the human evaluation of MusicLM (arXiv 2301.11325 §5.2): listeners compare pairs of clips for the
same prompt, and wins are counted for each system.
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
from ..errors import PartitaError
from ..pages.page import template_text
from ..recipe.recipe_files import recipes
from ..storage.audio_file import SUFFIXES, flac, inspect_audio, read_clip
from ..storage.files import kind, replacing_file
from ..system.assembly import INDEX
from ..system.mastering import Mastering, loudness
from ..system.system import load

PAGE, KEY = "listen.html", "key.json"
"""The files of a test: the page for listeners, and the secret key that says which system each clip is from."""

ORDERS = 24
"""Number of orders of the trials. It is even because every second order swaps the sides of the previous one."""

log = logging.getLogger(__name__)

_FORMAT = 1
_BATCH = 8
_PEAK = -1.0


class Clip(NamedTuple):
    """Audio ``[C, T]`` and its sample rate in Hz."""

    audio: np.ndarray
    sample_rate: int


@dataclass(frozen=True)
class Material:
    """The clips that a listening test compares.

    Args:
        clips: One clip for each item, in the order of ``items``, by name of the system.
        items: Names of the items. Clips of the same item are compared.
        prompts: Text that listeners see for each item; ``None`` shows no text.

    Raises:
        PartitaError: There are fewer than two systems, or no items.
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
    """Read or generate the clips of a listening test.

    If a source is a folder of audio files, the file names are the items, and systems are prompted with the captions
    beside the files (``song.txt`` beside ``song.wav``).

    Args:
        sources: Runs, exports, Hub ids or recipes with weights; or folders of audio files with the same names.
        prompts: Number of test pieces of the first system's data whose captions are the prompts, or path of a text
            file with one prompt per line.
        duration: Length of each clip in seconds. ``None`` takes the first system's window, or whole files.
        seed: Seed of the first clip of each system. It increases by one for each further clip.
        device: Device to generate on.

    Raises:
        PartitaError: A source is neither a system nor a folder of audio, folders hold files of different names, or a
            system cannot be conditioned on the prompts.
    """
    if duration is not None and not 0 < duration < float("inf"):
        raise PartitaError(f"duration must be a positive number of seconds, not {duration:g}")
    labels = _labels(sources)
    if len(labels) < 2:
        raise PartitaError("a listening test compares two systems or more: name another run or folder")
    for source in sources:  # before the slow generation
        if not kind(source) and source not in recipes() and not re.fullmatch(r"[\w.-]+/[\w.-]+", source):
            raise PartitaError(f"{source} is neither a folder, nor a Hub id (user/name), nor a recipe")
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
                    f"{source} needs a prompt for each audio file that it is compared with: put {bare}.txt beside "
                    f"{bare}, and likewise for the others, or name a file with one prompt per line with --prompts"
                )
            inputs = _test_inputs(system, int(prompts))
            shown = inputs["text"]
        count = len(shown)
        items = items or [f"{i + 1:03}" for i in range(count)]
        if duration is None:
            duration = system.plan.window if system.stages else None
        clips[label] = _generate(system, label, inputs, count, duration, seed)
        log.info("%s: %d clips generated", label, count)
    return Material(clips, items, shown)


def check_listening_test(folder: Path, systems: int, *, trials: int | None, catch: int, level: float) -> None:
    """Check the arguments of :func:`write_listening_test` before anything is generated.

    Raises:
        PartitaError: An argument is out of range, or the folder already holds a test.
    """
    if (folder / KEY).exists():
        raise PartitaError(
            f"{folder} already holds a listening test, whose answers need its key: choose another folder"
        )
    pairs = systems * (systems - 1) // 2
    if trials is not None and trials < pairs:
        raise PartitaError(f"trials must be at least {pairs}, so that every listener hears every pair of systems")
    if catch < 0:
        raise PartitaError(f"the number of catch trials must be at least 0, not {catch}")
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
    """Write the page for listeners, and the key with which answers are evaluated.

    Args:
        material: The clips to compare.
        folder: Folder for both files, which must not hold a test yet.
        question: Question that listeners answer.
        trials: Largest number of trials for one listener, without catch trials. ``None`` compares every pair of systems
            for every item.
        catch: Number of catch trials for each listener, in which a clip is compared with a degraded copy of itself. At
            most one catch trial is made for each item.
        level: Loudness of all clips in LUFS.
        seed: Seed of the names of clips and of the orders.

    Returns:
        The path of the page, and warnings about silent clips, lowered peaks and missing catch trials.

    Raises:
        PartitaError: The folder already holds a test, or a number is out of range.
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
        notes.append(f"catch trials: {len(caught)} instead of {catch}, one for each item that is not silent")
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
    # Inside a script element, browsers interpret only "</script" and "<!--".
    text = json.dumps(page_data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    with replacing_file(folder / PAGE) as new:
        new.write_text(template.replace("@DATA@", text), encoding="utf-8")
    with replacing_file(folder / KEY) as new:
        new.write_text(json.dumps(key, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return folder / PAGE, notes


def make_orders(
    num_systems: int, num_items: int, trials: int | None, catches: Sequence[tuple[int, int]], seed: int
) -> list[list[tuple[tuple[int, int, str], tuple[int, int, str]]]]:
    """Return the orders of trials; each trial is a left and a right clip: (system, item, ``degraded`` or ``""``).

    In every order, each pair of systems appears equally often (with a difference of at most one if ``trials`` is not
    divisible), and each system of a pair is on the left as often as on the right (with a difference of at most two).
    Over all orders, items are used equally often, too. If every order has all trials, every second order has the sides
    of the previous one swapped.

    Args:
        num_systems: Number of systems.
        num_items: Number of items for each system.
        trials: Largest number of trials in an order, without catch trials. ``None`` sets no limit.
        catches: (system, item) of each clip that is compared with a degraded copy of itself.
        seed: Seed of all random choices.
    """
    draw = np.random.default_rng(derive_seed(seed, "orders"))
    pairs = list(combinations(range(num_systems), 2))
    total = min(trials or len(pairs) * num_items, len(pairs) * num_items)
    item_orders = [draw.permutation(num_items) for _ in pairs]
    used, orders = [0] * len(pairs), []
    for order in range(ORDERS):
        chosen = []
        for number, (a, b) in enumerate(pairs):
            # The pairs with one more trial rotate from order to order.
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
    """Return an audibly worse copy of a clip: low-passed at 1 kHz, with white noise of the same power."""
    spectrum = np.fft.rfft(clip.audio, axis=1)
    spectrum[:, np.fft.rfftfreq(clip.audio.shape[1], 1 / clip.sample_rate) > 1000] = 0
    dull = np.fft.irfft(spectrum, clip.audio.shape[1], axis=1)
    noise = np.random.default_rng(seed).standard_normal(clip.audio.shape) * np.sqrt(np.mean(dull**2))
    return Clip((dull + noise).astype(np.float32), clip.sample_rate)


def _catch_clips(
    clips: Mapping[tuple[str, int], Clip], systems: Sequence[str], items: int, catch: int, finish: Mastering, seed: int
) -> dict[tuple[str, int], Clip]:
    """Return degraded copies of audible clips at equal loudness, by system and item; systems take turns."""
    caught: dict[tuple[str, int], Clip] = {}
    draw = np.random.default_rng(derive_seed(seed, "catch"))
    for item in draw.permutation(items):
        at = (systems[len(caught) % len(systems)], int(item))
        if len(caught) < catch and loudness(*clips[at]) is not None:
            worse = degraded(clips[at], derive_seed(seed, "noise", *at))
            caught[at] = Clip(finish(*worse).audio, worse.sample_rate)
    return caught


def _labels(sources: Sequence[str]) -> list[str]:
    """Return the last component of each source, or whole sources if the last components are not unique."""
    twice = {source for source in sources if list(sources).count(source) > 1}
    if twice:
        raise PartitaError(f"{', '.join(sorted(twice))} is named twice, but a system cannot be compared with itself")
    short = [Path(source).name or source for source in sources]
    return list(sources) if len(set(short)) < len(short) else short


def _is_audio_folder(source: str) -> bool:
    return kind(source) == "folder" and not (Path(source) / INDEX).is_file()


def _audio_files(folder: Path) -> dict[str, Path]:
    """Return the audio files of a folder by their names without suffixes."""
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in SUFFIXES and path.is_file():
            if path.stem in found:
                raise PartitaError(
                    f"{folder} holds two files of the same name: {found[path.stem].name} and {path.name}"
                )
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
        raise PartitaError("the folders must hold files of the same names without suffixes: " + "; ".join(missing))
    return every


def _caption(name: str, folders: Mapping[str, Mapping[str, Path]]) -> str | None:
    for found in folders.values():
        caption_file = found[name].with_suffix(".txt")
        if caption_file.is_file():
            return _text(caption_file).strip()
    return None


def _prompt_lines(path: Path) -> list[str]:
    if not path.is_file():
        raise PartitaError(f"prompts must be a number or a file with one prompt per line; there is no file {path}")
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
    """Return the fields of test pieces that are inputs of the system, and always ``text``."""
    if count < 1:
        raise PartitaError("a listening test needs at least one prompt")
    system.source.setup()
    examples = system.examples("test", count, 0)
    known = [examples[i].fields for i in range(count)]
    names = {"text", *system.inputs}
    return {name: [fields.get(name) for fields in known] for name in sorted(names)}


def _generate(
    system: Any, label: str, inputs: Mapping[str, list[Any]], count: int, duration: float | None, seed: int
) -> list[Clip]:
    """Generate a clip for each prompt, conditioned on those inputs that the system reads."""
    for conditioner in system.conditioners.values():
        if not inputs.keys() & set(conditioner.inputs):
            raise PartitaError(f"{label} needs {', '.join(conditioner.inputs)}, which the prompts do not contain")
    taken = inputs.keys() & set(system.inputs)
    clips = []
    for start in range(0, count, _BATCH):
        part = range(start, min(start + _BATCH, count))
        given = {name: [inputs[name][i] for i in part] for name in taken}
        audio = system.generate(given or None, duration=duration, seed=[seed + i for i in part])
        clips += [Clip(clip.float().cpu().numpy(), system.sample_rate) for clip in audio]
    return clips
