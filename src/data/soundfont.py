"""SoundFont 2 instruments: the samples of each note, with their playback parameters.

The format is that of the SoundFont Technical Specification 2.04 (§7 chunks, §8 generators, §9.4 addition of preset and
instrument zones). Modulators and vibrato are ignored.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import numpy as np

from ..errors import PartitaError

_KEY_RANGE, _VELOCITY_RANGE, _INSTRUMENT, _SAMPLE = 43, 44, 41, 53
_DEFAULTS = {
    8: 13500,
    27: -12000,
    28: -12000,
    33: -12000,
    34: -12000,
    35: -12000,
    36: -12000,
    38: -12000,
    56: 100,
    58: -1,
}
_RECORDS = {
    "phdr": "<20sHHHIII",
    "pbag": "<HH",
    "pgen": "<Hh",
    "inst": "<20sH",
    "ibag": "<HH",
    "igen": "<Hh",
    "shdr": "<20sIIIIIBbHH",
}
"""The tables of the file, with the ``struct`` format of their rows (§7)."""
_NOT_ADDITIVE = frozenset((0, 1, 2, 3, 4, 12, 45, 50, 54, 57, 58))
"""Generators that are valid only in instruments and ignored in presets (§8.1.2, §9.4)."""


@dataclass(frozen=True)
class Zone:
    """A sample for a range of keys and velocities of a preset.

    Args:
        keys: Lowest and highest MIDI key.
        velocities: Lowest and highest MIDI velocity.
        start: First sample in :attr:`SoundFont.samples`.
        end: End in :attr:`SoundFont.samples`, exclusive.
        loop: Start and end of the loop in :attr:`SoundFont.samples`. ``None`` plays the sample once.
        sample_rate: Sample rate of the sample, in Hz.
        root: MIDI key, with a fraction, at which the sample has its recorded pitch.
        scale: Semitones per key.
        gain: Factor of the amplitude.
        pan: Position from −1 (left) to 1 (right).
        cutoff: Cutoff of the low-pass filter at the start and in the sustain phase of a note, in Hz.
        filter_time: Seconds in which the cutoff moves from the first value to the second.
        resonance: Resonance of the filter, in dB.
        envelope: Delay, attack, hold, decay and release in seconds; decay and release are for a fall by 100 dB.
        sustain: Sustain level, in dB below the peak.
    """

    keys: tuple[int, int]
    velocities: tuple[int, int]
    start: int
    end: int
    loop: tuple[int, int] | None
    sample_rate: int
    root: float
    scale: float
    gain: float
    pan: float
    cutoff: tuple[float, float]
    filter_time: float
    resonance: float
    envelope: tuple[float, float, float, float, float]
    sustain: float

    def semitones(self, key: int) -> float:
        """Return the transposition of the sample for a MIDI key, in semitones."""
        return 60 + (key - 60) * self.scale - self.root


class SoundFont:
    """A SoundFont 2 file.

    Args:
        path: Path of the file. ``None`` uses the General MIDI file that is part of pretty_midi.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path or _bundled()
        self._programs: dict[tuple[int, int], list[Zone]] = {}

    @cached_property
    def _chunks(self) -> dict[str, bytes]:
        try:
            return _read_chunks(self.path.read_bytes())
        except (OSError, ValueError, struct.error) as error:
            raise PartitaError(f"cannot read the SoundFont {self.path}: {error}") from None

    @cached_property
    def _records(self) -> dict[str, list[tuple]]:
        try:
            return {name: list(struct.iter_unpack(layout, self._chunks[name])) for name, layout in _RECORDS.items()}
        except struct.error as error:
            raise PartitaError(f"cannot read the SoundFont {self.path}: {error}") from None

    @cached_property
    def samples(self) -> np.ndarray:
        """All samples concatenated, float32 ``[N]`` in [-1, 1)."""
        return np.frombuffer(self._chunks["smpl"], "<i2").astype(np.float32) / 32768

    def zones(self, program: int, bank: int = 0) -> list[Zone]:
        """Return the zones of a General MIDI program.

        Raises:
            PartitaError: The file has no such preset.
        """
        if (program, bank) in self._programs:
            return self._programs[program, bank]
        for preset, following in pairwise(self._records["phdr"]):
            if preset[1:3] == (program, bank):
                self._programs[program, bank] = self._zones_between(preset[3], following[3])
                return self._programs[program, bank]
        raise PartitaError(f"the SoundFont {self.path} has no program {program} in bank {bank}")

    def _zones_between(self, first: int, last: int) -> list[Zone]:
        instruments, headers = self._records["inst"], self._records["shdr"]
        found = []
        for outer in self._generators("p", first, last, _INSTRUMENT):
            index = outer[_INSTRUMENT]
            for inner in self._generators("i", instruments[index][1], instruments[index + 1][1], _SAMPLE):
                zone = _zone(outer, inner, headers[inner[_SAMPLE]])
                if zone is not None:
                    found.append(zone)
        return found

    def _generators(self, kind: str, first: int, last: int, target: int) -> list[dict[int, int]]:
        """Return the generators of each zone by number, including those of the global zone."""
        bags, generators = self._records[f"{kind}bag"], self._records[f"{kind}gen"]
        shared: dict[int, int] = {}
        found = []
        for bag in range(first, last):
            own = dict(generators[bags[bag][0] : bags[bag + 1][0]])
            if target in own:
                found.append(shared | own)
            elif bag == first:
                shared = own
        return found


def _zone(outer: dict[int, int], inner: dict[int, int], header: tuple) -> Zone | None:
    def range_of(number: int) -> tuple[int, int]:
        low, high = 0, 127
        for generators in (outer, inner):
            amount = generators.get(number, 127 << 8) & 0xFFFF
            low, high = max(low, amount & 0xFF), min(high, amount >> 8)
        return low, high

    def value(number: int) -> int:
        own = inner.get(number, _DEFAULTS.get(number, 0))
        return own if number in _NOT_ADDITIVE else own + outer.get(number, 0)

    def seconds(number: int) -> float:
        return 0.0 if value(number) <= -12000 else 2.0 ** (value(number) / 1200)

    keys, velocities = range_of(_KEY_RANGE), range_of(_VELOCITY_RANGE)
    _, start, end, loop_start, loop_end, rate, pitch, correction, _, kind = header
    if keys[0] > keys[1] or velocities[0] > velocities[1] or kind & 0x8000:
        return None
    start, end = start + value(0) + 32768 * value(4), end + value(1) + 32768 * value(12)
    loop_start, loop_end = loop_start + value(2) + 32768 * value(45), loop_end + value(3) + 32768 * value(50)
    looped = value(54) & 1 and start <= loop_start < loop_end <= end
    root = value(58) if 0 <= value(58) <= 127 else pitch if pitch <= 127 else 60
    # The modulation envelope moves the filter from its peak to its sustain level.
    held = 1 - min(1000, max(0, value(29))) / 1000
    cutoff = [8.176 * 2.0 ** (min(13500.0, max(1500.0, value(8) + value(11) * level)) / 1200) for level in (1, held)]
    return Zone(
        keys,
        velocities,
        start,
        end,
        (loop_start, loop_end) if looped else None,
        rate,
        root - (correction + value(52)) / 100 - value(51),
        value(56) / 100,
        # By convention, synthesizers apply 0.4 of the attenuation, like the hardware for which fonts were made.
        10 ** (-0.4 * value(48) / 200),
        min(500, max(-500, value(17))) / 500,
        (cutoff[0], cutoff[1]),
        (seconds(27) + seconds(28)) * (1 - held),
        min(960, max(0, value(9))) / 10,
        (seconds(33), seconds(34), seconds(35), seconds(36), seconds(38)),
        min(1000, max(0, value(37))) / 10,
    )


def _read_chunks(data: bytes) -> dict[str, bytes]:
    """Return the chunks of a RIFF file by name, including those within lists."""
    if data[:4] != b"RIFF" or data[8:12] != b"sfbk":
        raise ValueError("this is not a SoundFont 2 file")
    chunks = {}
    position = 12
    while position + 8 <= len(data):
        name, size = struct.unpack_from("<4sI", data, position)
        if name == b"LIST":
            position += 12
            continue
        if position + 8 + size > len(data):
            raise ValueError("the file is truncated")
        chunks[name.decode("ascii", "replace")] = data[position + 8 : position + 8 + size]
        position += 8 + size + size % 2
    missing = {"smpl", *_RECORDS} - chunks.keys()
    if missing:
        raise ValueError(f"the file lacks the chunks {', '.join(sorted(missing))}")
    return chunks


def _bundled() -> Path:
    spec = find_spec("pretty_midi")
    if spec is None or spec.origin is None:
        raise PartitaError("no SoundFont is installed: install pretty_midi, which contains one")
    return Path(spec.origin).parent / "TimGM6mb.sf2"
