"""Chords, tempo, key and beats of a request as inputs of the conditioners that read them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from ..core.chord_names import parse_key
from ..core.excerpt import Excerpt, excerpt_of
from ..data.chord_files import SUFFIXES, ChordRows, read_chords, spread
from ..data.fields.base import parse_value
from ..errors import PartitaError
from ..metrics.rhythm import estimate_beats
from ..storage.files import kind
from .assembly import Assembly
from .request import Request

FIELDS = {"chords": "chords", "bpm": "tempo", "key": "key", "beats": "beats"}
"""The input that each option of a request becomes."""

SLOWEST, FASTEST = 1.0, 1000.0
"""Tempi that can be asked for, in beats per minute."""

_BEAT_RATE = 22050
_SLACK = 0.1
"""Seconds by which chords may be longer than a clip without a warning, as rounding makes them."""


class Structure(NamedTuple):
    """Options of one clip: chords, beats per minute, key and beats, each ``None`` if it is not given."""

    chords: Any = None
    bpm: Any = None
    key: Any = None
    beats: Any = None


def structures_of(request: Request, clips: int) -> list[Structure]:
    """Return the options of each clip.

    Raises:
        PartitaError: A list has another length than there are clips.
    """
    columns = []
    for name in Structure._fields:
        value = getattr(request, name)
        several = list(value) if is_several(name, value) else [value] * clips
        if len(several) != clips:
            raise PartitaError(f"{name} is a list of {len(several)} for {clips} clips: give one, or one for each clip")
        columns.append(several)
    return [Structure(*row) for row in zip(*columns, strict=True)]


def is_several(name: str, value: Any) -> bool:
    """Whether an option is a list with a value for each clip, and not itself a list of rows or times."""
    if not isinstance(value, list | tuple):
        return False
    if name == "chords":
        return not value or not all(isinstance(row, list | tuple) and len(row) == 3 for row in value)
    return name != "beats" or not value or not all(isinstance(time, int | float) for time in value)


def with_structures(
    system: Assembly, prompts: Mapping[str, Any], structures: Sequence[Structure], seconds: float
) -> dict[str, Any]:
    """Return prompts of clips of this many seconds with the inputs of their structures.

    Raises:
        PartitaError: Something is given twice or is invalid, or the system does not read it.
    """
    found = [structure_inputs(system, structure, seconds) for structure in structures]
    names = dict.fromkeys(name for inputs in found for name in inputs)
    for option, name in FIELDS.items():
        if name in names and name in prompts:
            raise PartitaError(f"{name} is given twice, as `{option}` and as the input {name}: leave one out")
    return {**prompts, **{name: [inputs.get(name) for inputs in found] for name in names}}


def structure_inputs(system: Assembly, structure: Structure, seconds: float) -> dict[str, Any]:
    """Return the inputs of one clip: values of the fields ``chords``, ``tempo``, ``key`` and ``beats``.

    Raises:
        PartitaError: An option is invalid, or the system does not read it.
    """
    inputs: dict[str, Any] = {}
    tempo = None if structure.bpm is None else _parsed("bpm", "tempo", structure.bpm)
    if tempo is not None and not SLOWEST <= tempo <= FASTEST:
        raise PartitaError(f"bpm must be from {SLOWEST:g} to {FASTEST:g} beats per minute, not {tempo:g}")
    if structure.chords is not None:
        _check_read(system, "chords")
        inputs["chords"] = _chords(structure.chords, seconds, tempo)
    if tempo is not None and ("tempo" in system.inputs or not isinstance(structure.chords, str)):
        _check_read(system, "tempo")
        inputs["tempo"] = tempo
    if structure.key is not None:
        _check_read(system, "key")
        key = _parsed("key", "key", structure.key)
        if parse_key(key) is None:
            raise PartitaError(f"key: {key!r:.80} is no key: write it as G minor, F# major or Am")
        inputs["key"] = key
    if structure.beats is not None:
        _check_read(system, "beats")
        inputs["beats"] = _beats(structure.beats, seconds, tempo)
    return inputs


def _check_read(system: Assembly, name: str) -> None:
    if name not in system.inputs:
        read = f"reads only {', '.join(system.inputs)}" if system.inputs else "reads no inputs"
        raise PartitaError(f"this system takes no {name}: it {read}")


def _parsed(option: str, name: str, value: Any) -> Any:
    try:
        return parse_value(name, value)
    except ValueError as error:
        raise PartitaError(f"{option} {error}") from None


def _chords(value: Any, seconds: float, tempo: float | None) -> ChordRows:
    """The rows of chords of a clip: of a file, a progression or rows."""
    if isinstance(value, Path) or (isinstance(value, str) and _names_file(value)):
        rows = read_chords(Path(value))
        end = max((row[1] for row in rows), default=0.0)
    elif isinstance(value, str) and not value.lstrip().startswith("["):
        rows, end = spread(value, seconds, tempo)
    else:
        rows = _parsed("chords", "chords", value)
        end = max((row[1] for row in rows), default=0.0)
    if end > seconds + _SLACK:
        warnings.warn(f"the chords last {end:g} s, so they are cut at {seconds:g} s, where the clip ends", stacklevel=2)
    return [(start, min(stop, seconds), label) for start, stop, label in rows if start < seconds]


def _names_file(text: str) -> bool:
    return Path(text).suffix.lower() in SUFFIXES or kind(text) == "file"


def _beats(value: Any, seconds: float, tempo: float | None) -> list[float]:
    """The times of beats of a clip, given as such or heard in a recording."""
    if not isinstance(value, str | Path | Excerpt | Tensor):
        times = _parsed("beats", "beats", value)
    else:
        audio = excerpt_of(value).read(_BEAT_RATE, 1)
        if len(audio) != 1:
            raise PartitaError(f"beats take one recording, not {len(audio)}")
        try:
            _, found = estimate_beats(audio[0], _BEAT_RATE, tempo or 120.0)
        except ImportError:
            raise PartitaError("beats of a recording need librosa: pip install 'partita[metrics]'") from None
        times = np.round(found, 4).tolist()
        if not times:
            raise PartitaError("beats: none are heard in the recording")
    return [time for time in times if time < seconds]
