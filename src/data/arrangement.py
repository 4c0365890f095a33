"""Random arrangements of a score: instruments, tempo, transposition and dynamics."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ..core.registry import did_you_mean
from .scores import Piece


class Instrument(NamedTuple):
    """A General MIDI instrument, with its range and its attack in the SoundFont.

    Args:
        program: General MIDI program number, from 0.
        lowest: Lowest MIDI pitch of the real instrument or its family. The SoundFont has samples for any pitch.
        highest: Highest MIDI pitch of the real instrument or its family.
        gain: Gain that makes all instruments equally loud.
        half: Seconds from the labeled onset of a note until half of its sustained amplitude; the median over the range,
            measured by ``benchmarks/attacks.py``.
        full: Seconds from the labeled onset of a note until 90 % of its sustained amplitude; also the median.
    """

    program: int
    lowest: int
    highest: int
    gain: float
    half: float
    full: float


INSTRUMENTS = {
    "church organ": Instrument(19, 36, 96, 0.92, 0.03, 0.07),
    "piano": Instrument(0, 21, 108, 1.53, 0.00, 0.00),
    "harpsichord": Instrument(6, 29, 89, 1.32, 0.00, 0.00),
    "strings": Instrument(48, 28, 100, 1.36, 0.05, 0.14),
    "choir": Instrument(52, 38, 84, 0.83, 0.02, 0.16),
    "brass": Instrument(61, 34, 84, 1.31, 0.02, 0.03),
    "trumpet": Instrument(56, 54, 86, 0.88, 0.00, 0.02),
    "french horn": Instrument(60, 38, 77, 0.40, 0.04, 0.08),
    "trombone": Instrument(57, 36, 74, 0.89, 0.02, 0.05),
    "flute": Instrument(73, 59, 96, 0.64, 0.03, 0.04),
    "recorder": Instrument(74, 55, 98, 0.57, 0.04, 0.06),
    "clarinet": Instrument(71, 50, 91, 0.70, 0.01, 0.02),
    "oboe": Instrument(68, 58, 93, 0.60, 0.02, 0.07),
    "bassoon": Instrument(70, 34, 72, 0.77, 0.01, 0.02),
    "violin": Instrument(40, 55, 98, 0.56, 0.02, 0.04),
    "cello": Instrument(42, 36, 76, 0.46, 0.02, 0.03),
    "guitar": Instrument(24, 40, 84, 0.80, 0.00, 0.00),
    "harp": Instrument(46, 24, 103, 0.56, 0.00, 0.00),
    "vibraphone": Instrument(11, 53, 89, 0.53, 0.00, 0.00),
    "marimba": Instrument(12, 43, 96, 1.74, 0.00, 0.00),
}
"""The instruments that arrangements can use, which sound clearly different."""


MOST_DRAWS = 20
"""Maximum number of arrangements that are drawn to find one that differs from another."""


@dataclass
class Arrangement:
    """An arrangement of a piece.

    Args:
        parts: Instrument of each part that has notes.
        tempo: Tempo in beats per minute.
        transposition: Transposition of the whole piece, in semitones.
        octaves: Additional transposition of each part into the range of its instrument, in semitones; a multiple of 12.
        velocity: MIDI velocity of each note, ``[N]`` int64.
    """

    parts: dict[int, str]
    tempo: float
    transposition: int
    octaves: dict[int, int]
    velocity: np.ndarray

    @property
    def instruments(self) -> list[str]:
        """The distinct instruments, in the order of the parts."""
        return list(dict.fromkeys(self.parts.values()))

    def pitch(self, written: np.ndarray, part: int) -> np.ndarray:
        """Return the sounding MIDI pitches of written pitches ``[N]`` of a part.

        A note outside the range of the instrument moves by as many octaves as needed.
        """
        instrument = INSTRUMENTS[self.parts[part]]
        pitch = written + self.transposition + self.octaves[part]
        pitch = pitch + 12 * np.ceil((instrument.lowest - pitch).clip(0) / 12).astype(np.int64)
        return pitch - 12 * np.ceil((pitch - instrument.highest).clip(0) / 12).astype(np.int64)


@dataclass(frozen=True)
class Arrangements:
    """The distribution that arrangements are drawn from.

    Args:
        instruments: Instruments to draw from: ``church organ``, ``piano``, ``harpsichord``, ``strings``, ``choir``,
            ``brass``, ``trumpet``, ``french horn``, ``trombone``, ``flute``, ``recorder``, ``clarinet``, ``oboe``,
            ``bassoon``, ``violin``, ``cello``, ``guitar``, ``harp``, ``vibraphone``, ``marimba``. ``None`` takes all.
        mixed: Probability that each part of a piece gets its own instrument. Otherwise one instrument plays all parts.
        tempo: Slowest and fastest tempo, in beats per minute.
        transposition: Lowest and highest transposition, in semitones.
    """

    instruments: tuple[str, ...] | None = None
    mixed: float = 0.25
    tempo: tuple[float, float] = (50.0, 140.0)
    transposition: tuple[int, int] = (-5, 6)

    def __post_init__(self) -> None:
        for name in self.instruments or ():
            if name not in INSTRUMENTS:
                raise ValueError(f"no instrument is called {name!r}{did_you_mean(name, INSTRUMENTS)}")
        if self.instruments is not None and not self.instruments:
            raise ValueError("instruments is empty: name at least one instrument, or leave the option out to use all")
        if not 0 <= self.mixed <= 1:
            raise ValueError(f"mixed must be a probability from 0 to 1, not {self.mixed}")
        slow, fast = self.tempo
        if not 0 < slow <= fast:
            raise ValueError(f"tempo must be a range of beats per minute above 0, not {slow} to {fast}")
        low, high = self.transposition
        if not -24 <= low <= high <= 24:
            raise ValueError(f"transposition must be a range within -24 to 24 semitones, not {low} to {high}")


def arrange(piece: Piece, rng: np.random.Generator, options: Arrangements) -> Arrangement:
    """Draw a random arrangement.

    Args:
        piece: The score.
        rng: Generator of all random numbers.
        options: The distribution to draw from.
    """
    instruments = tuple(options.instruments or INSTRUMENTS)
    speed = float(np.round(rng.uniform(*options.tempo), 1))
    semitones = int(rng.integers(options.transposition[0], options.transposition[1], endpoint=True))
    pitch = piece.pitch + semitones
    numbers = sorted(set(piece.part.tolist()))
    if rng.random() < options.mixed:
        parts: dict[int, str] = {}
        octaves: dict[int, int] = {}
        for number in numbers:
            own = pitch[piece.part == number]
            misfit = np.array([_outside(own, name) for name in instruments])
            fitting = [name for name, m in zip(instruments, misfit, strict=True) if m <= max(0.05, misfit.min())]
            fresh = [name for name in fitting if name not in parts.values()]
            parts[number] = str(rng.choice(fresh or fitting))
            octaves[number] = _octaves(own, parts[number])
    else:
        name = str(rng.choice(list(instruments)))
        parts = dict.fromkeys(numbers, name)
        octaves = dict.fromkeys(numbers, _octaves(pitch, name))
    velocity = rng.integers(72, 108) + rng.integers(-6, 7, len(pitch)) + 8 * (piece.part == piece.melody_part)
    return Arrangement(parts, speed, semitones, octaves, np.clip(velocity, 1, 127))


def arrange_differently(
    piece: Piece, rng: np.random.Generator, options: Arrangements, first: Arrangement
) -> Arrangement:
    """Draw an arrangement that shares neither instruments nor tempo nor key with a first one.

    If none of :data:`MOST_DRAWS` arrangements is that different, as with a single instrument, it is the first of those
    that differ in most of the three.

    Args:
        piece: The score.
        rng: Generator of all random numbers.
        options: The distribution to draw from.
        first: The arrangement to differ from.
    """
    found, most = first, -1
    for _ in range(MOST_DRAWS):
        drawn = arrange(piece, rng, options)
        differences = (
            (drawn.transposition - first.transposition) % 12 != 0,
            not set(drawn.instruments) & set(first.instruments),
            drawn.tempo != first.tempo,
        )
        if sum(differences) > most:
            found, most = drawn, sum(differences)
        if all(differences):
            break
    return found


def _octaves(pitch: np.ndarray, name: str) -> int:
    """Return the smallest shift by octaves that leaves the fewest pitches outside the range of an instrument."""
    return min((0, 12, -12, 24, -24), key=lambda shift: _outside(pitch + shift, name))


def _outside(pitch: np.ndarray, name: str) -> float:
    """Return the fraction of pitches outside the range of an instrument."""
    instrument = INSTRUMENTS[name]
    return float(((pitch < instrument.lowest) | (pitch > instrument.highest)).mean())
