"""Arrangements: who plays a score, how fast, how high and how loud, drawn at random."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from .scores import Piece


class Instrument(NamedTuple):
    """A General MIDI program, from 0; its range in MIDI pitches; a gain that makes instruments equally loud."""

    program: int
    lowest: int
    highest: int
    gain: float


INSTRUMENTS = {
    "church organ": Instrument(19, 36, 96, 0.92),
    "piano": Instrument(0, 21, 108, 1.53),
    "harpsichord": Instrument(6, 29, 89, 1.32),
    "strings": Instrument(48, 28, 100, 1.36),
    "choir": Instrument(52, 38, 84, 0.83),
    "brass": Instrument(61, 34, 84, 1.31),
    "trumpet": Instrument(56, 54, 86, 0.88),
    "french horn": Instrument(60, 38, 77, 0.40),
    "trombone": Instrument(57, 36, 74, 0.89),
    "flute": Instrument(73, 59, 96, 0.64),
    "recorder": Instrument(74, 55, 98, 0.57),
    "clarinet": Instrument(71, 50, 91, 0.70),
    "oboe": Instrument(68, 58, 91, 0.60),
    "bassoon": Instrument(70, 34, 72, 0.77),
    "violin": Instrument(40, 55, 98, 0.56),
    "cello": Instrument(42, 36, 76, 0.46),
    "guitar": Instrument(24, 40, 84, 0.80),
    "harp": Instrument(46, 24, 103, 0.56),
    "vibraphone": Instrument(11, 48, 89, 0.53),
    "marimba": Instrument(12, 43, 96, 1.74),
}
"""The palette: instruments that sound clearly different."""


@dataclass
class Arrangement:
    """How a piece is played.

    Args:
        parts: The instrument of each part that has notes.
        tempo: Beats per minute.
        transposition: Semitones, as far as it changes the key.
        octaves: Semitones on top that bring the piece into the range of its instruments; a multiple of 12.
        velocity: Of each note, ``[N]`` int64.
    """

    parts: dict[int, str]
    tempo: float
    transposition: int
    octaves: int
    velocity: np.ndarray

    @property
    def instruments(self) -> list[str]:
        """Each instrument once, in the order of the parts."""
        return list(dict.fromkeys(self.parts.values()))


def arrange(
    piece: Piece,
    rng: np.random.Generator,
    *,
    instruments: Sequence[str],
    mixed: float,
    tempo: tuple[float, float],
    transposition: tuple[int, int],
) -> Arrangement:
    """Draw an arrangement.

    Args:
        piece: The score.
        rng: All that is random.
        instruments: Names out of :data:`INSTRUMENTS` to draw from.
        mixed: Probability that every part gets an instrument of its own rather than all the same.
        tempo: Slowest and fastest, in beats per minute.
        transposition: Lowest and highest, in semitones.
    """
    speed = float(np.round(rng.uniform(*tempo), 1))
    semitones = int(rng.integers(transposition[0], transposition[1], endpoint=True))
    pitch = piece.pitch + semitones
    numbers = sorted(set(piece.part.tolist()))
    octaves = 0
    if rng.random() < mixed:
        parts: dict[int, str] = {}
        for number in numbers:
            own = pitch[piece.part == number]
            misfit = np.array([_outside(own, name) for name in instruments])
            fitting = [name for name, m in zip(instruments, misfit, strict=True) if m <= max(0.05, misfit.min())]
            fresh = [name for name in fitting if name not in parts.values()]
            parts[number] = str(rng.choice(fresh or fitting))
    else:
        name = str(rng.choice(list(instruments)))
        parts = dict.fromkeys(numbers, name)
        octaves = min((0, 12, -12, 24, -24), key=lambda shift: _outside(pitch + shift, name))
    velocity = rng.integers(72, 108) + rng.integers(-6, 7, len(pitch)) + 8 * (piece.part == piece.melody_part)
    return Arrangement(parts, speed, semitones, octaves, np.clip(velocity, 1, 127))


def _outside(pitch: np.ndarray, name: str) -> float:
    """Fraction of notes an instrument does not have."""
    instrument = INSTRUMENTS[name]
    return float(((pitch < instrument.lowest) | (pitch > instrument.highest)).mean())
