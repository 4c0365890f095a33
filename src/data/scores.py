"""Scores as tables of notes, beats, key, chords and melody, read with music21."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from ..core.harmony import find_chords, find_key

SHORTEST_PIECE = 4.0
"""Minimum length of a piece in quarter notes. Shorter scores are incipits or examples."""


@dataclass
class Piece:
    """A score. Times are in quarter notes from the start of the piece.

    Args:
        id: Name of the piece, the same on every machine.
        onset: Onset of each note, ``[N]`` float64, in ascending order.
        duration: Duration of each note, ``[N]`` float64; tied notes are one note.
        pitch: MIDI pitch of each note, ``[N]`` int64.
        part: Number of the voice or staff of each note, ``[N]`` int64, from 0.
        beats: Times of the beats, ``[M]`` float64.
        downbeats: Times of the beats that start a bar.
        beat_length: Length of the most common beat: 1 in 4/4, 1.5 in 6/8.
        key: Pitch class of the tonic and mode (0 major, 1 minor), estimated by :func:`~partita.core.harmony.find_key`.
            The mode in the file is wrong more often, because programs write a default.
        chords: Start, end, root and quality of each chord, estimated by :func:`~partita.core.harmony.find_chords`.
        melody: Start, end and pitch of each note of the melody.
        melody_part: Number of the part with the melody.
        tune: Name of the tune family, shared by all pieces with a common tune (see :mod:`~partita.data.tunes`).
    """

    id: str
    onset: np.ndarray
    duration: np.ndarray
    pitch: np.ndarray
    part: np.ndarray
    beats: np.ndarray
    downbeats: np.ndarray
    beat_length: float
    key: tuple[int, int]
    chords: list[tuple[float, float, int, int]]
    melody: list[tuple[float, float, int]]
    melody_part: int
    tune: str

    @property
    def length(self) -> float:
        """End of the last note."""
        return float((self.onset + self.duration).max())


def read_pieces(path: Path, name: str) -> list[Piece]:
    """Read the pieces of a score file; ABC files can hold several.

    Args:
        path: Path of the file.
        name: Id of the piece. If there are several pieces, ``#`` and a number are appended.

    Raises:
        Exception: music21 cannot read the file; it raises errors of any type.
        ValueError: The file holds no music.
    """
    from music21 import converter, stream

    # The cache of music21 is a pickle in a shared temporary folder, which is unsafe to read.
    parsed = converter.parse(path, forceSource=True, storePickle=False)
    scores = list(parsed.scores) if isinstance(parsed, stream.Opus) else [parsed]
    pieces = []
    for number, score in enumerate(scores, 1):
        notes = _notes(score)
        if notes and max(n[0] + n[1] for n in notes) >= SHORTEST_PIECE:
            pieces.append(_piece(name if len(scores) == 1 else f"{name}#{number}", notes, *_beats(score)))
    if not pieces:
        raise ValueError("the file holds no music")
    return pieces


def _piece(
    name: str, notes: list[tuple[float, float, int, int]], grid: list[float], bars: list[float], beat: float
) -> Piece:
    table = np.array(sorted(notes))
    onset, duration = table[:, 0], table[:, 1]
    pitch, part = table[:, 2].astype(np.int64), table[:, 3].astype(np.int64)
    end = (onset + duration).max()
    if not grid:
        grid, bars = list(np.arange(0, end, beat)), []
    beats = np.array(grid)
    melody_part = max(set(part.tolist()), key=lambda p: np.average(pitch[part == p], weights=duration[part == p]))
    top = part == melody_part
    return Piece(
        id=name,
        onset=onset,
        duration=duration,
        pitch=pitch,
        part=part,
        beats=beats,
        downbeats=np.array(bars),
        beat_length=beat,
        key=find_key(onset, duration, pitch),
        chords=find_chords(onset, duration, pitch, np.unique([0.0, *beats[beats < end], end])),
        melody=find_melody(onset[top], duration[top], pitch[top]),
        melody_part=melody_part,
        tune=name,
    )


def find_melody(onset: np.ndarray, duration: np.ndarray, pitch: np.ndarray) -> list[tuple[float, float, int]]:
    """Return start, end and pitch of each note of the top line, which is the highest sounding note at any time."""
    line: list[tuple[float, float, int]] = []
    for start, length, height in sorted(zip(onset.tolist(), duration.tolist(), pitch.tolist(), strict=True)):
        if line and start < line[-1][1]:
            before, _, above = line[-1]
            if height < above:
                continue
            line.pop()
            if before < start:
                line.append((before, start, above))
        line.append((start, start + length, height))
    return line


def _notes(score: Any) -> list[tuple[float, float, int, int]]:
    """Return onset, duration, pitch and part of every note, with ties joined and without grace notes."""
    found = []
    for index, part in enumerate(list(score.parts) or [score]):
        held: dict[int, list[float]] = {}
        for element in part.flatten().notes:
            onset, length = float(element.offset), float(element.duration.quarterLength)
            if length <= 0 or not getattr(element, "pitches", None):
                continue
            for note in getattr(element, "notes", (element,)):
                pitch = note.pitch.midi
                tie = note.tie or element.tie
                going = held.get(pitch)
                if tie and tie.type in ("stop", "continue") and going and abs(going[0] + going[1] - onset) < 1e-6:
                    going[1] += length
                else:
                    going = [onset, length]
                    found.append((going, pitch, index))
                held[pitch] = going
    return [(going[0], going[1], pitch, index) for going, pitch, index in found if 0 <= pitch <= 127]


def _beats(score: Any) -> tuple[list[float], list[float], float]:
    """Return beats, downbeats and the length of the most common beat. Pick-up bars and meter changes are respected."""
    part = max(list(score.parts) or [score], key=lambda p: len(p.getElementsByClass("Measure")))
    measures = list(part.getElementsByClass("Measure"))
    bar, beat = 4.0, 1.0
    beats: list[float] = []
    downbeats: list[float] = []
    time_in: dict[float, float] = {}
    carried = 0.0
    edges = [float(m.offset) for m in measures]
    edges.append(float(part.highestTime))
    for number, (measure, (start, end)) in enumerate(zip(measures, pairwise(edges), strict=True)):
        signature = measure.timeSignature
        if signature is not None:
            bar, beat = float(signature.barDuration.quarterLength), _beat_length(signature)
        length = end - start
        # A pick-up measure is the end of a bar. If a repeat divides a bar, its second measure continues the first.
        if number == 0 and length < bar:
            position = bar - length
        elif carried and abs(carried + length - bar) < 1e-6:
            position = carried
        else:
            position = 0.0
        carried = position + length if position + length < bar - 1e-6 else 0.0
        steps = np.arange(np.ceil(position / beat - 1e-6), np.ceil((position + length) / beat - 1e-6))
        beats += [start + step * beat - position for step in steps.tolist()]
        if position == 0 and length > 0:
            downbeats.append(start)
        time_in[beat] = time_in.get(beat, 0.0) + length
    usual = max(time_in, key=lambda b: time_in[b]) if time_in else _unmeasured_beat(score)
    return beats, downbeats, usual


def _unmeasured_beat(score: Any) -> float:
    signature = score.recurse().getElementsByClass("TimeSignature").first()
    return 1.0 if signature is None else _beat_length(signature)


def _beat_length(signature: Any) -> float:
    """Return the quarter notes per beat; for unequal beats, as in 5/8, the denominator of the meter."""
    from music21.exceptions21 import TimeSignatureException

    try:
        return float(signature.beatDuration.quarterLength)
    except TimeSignatureException:
        return 4.0 / signature.denominator
