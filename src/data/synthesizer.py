"""A sampler that renders notes with SoundFont instruments.

Voices are rendered independently, without effects, and summed; so the stems of a piece sum to its mix.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import soxr

from .soundfont import SoundFont, Zone

SHORTEST_RELEASE = 0.02
LONGEST_RELEASE = 0.8
"""Bounds of the release time of a note in seconds, which limit that of the SoundFont."""


class Note(NamedTuple):
    """A note to play: onset and duration in seconds, MIDI pitch and velocity (1 to 127)."""

    onset: float
    duration: float
    pitch: int
    velocity: int


class Synthesizer:
    """Renders notes of General MIDI programs.

    Recent tones are cached, because music repeats them.

    Args:
        font: The SoundFont.
        sample_rate: Sample rate of the audio, in Hz.
        channels: Number of channels, 1 or 2.
        cache_bytes: Maximum size of the cache, in bytes.
    """

    def __init__(self, font: SoundFont, sample_rate: int, channels: int = 1, cache_bytes: int = 256 << 20) -> None:
        self.font = font
        self.sample_rate = sample_rate
        self.channels = channels
        self.cache_bytes = cache_bytes
        self._zones: dict[tuple[int, int, int], tuple[Zone, ...]] = {}
        self._tones: OrderedDict[tuple, np.ndarray] = OrderedDict()
        self._used = 0

    def render(self, notes: Sequence[Note], program: int, num_samples: int) -> np.ndarray:
        """Render notes of one instrument to float32 ``[C, num_samples]``.

        Onsets may be negative: the part of a note before time zero is cut off.
        """
        audio = np.zeros((self.channels, num_samples), np.float32)
        for note in notes:
            zones = self._zones_for(program, note)
            if not zones:
                continue
            ring = max(zone.envelope[4] for zone in zones)
            release = max(1, round(min(LONGEST_RELEASE, max(SHORTEST_RELEASE, ring)) * self.sample_rate))
            onset = round(note.onset * self.sample_rate)
            held = max(1, round(note.duration * self.sample_rate))
            first, last = max(0, onset), min(num_samples, onset + held + release)
            if last <= first:
                continue
            # The default modulator of velocity to attenuation (SoundFont 2.04, §8.4.1).
            sound = self._tone(zones, note.pitch, held + release)[:, first - onset : last - onset]
            sound = sound * np.float32((note.velocity / 127) ** 2)
            if last > onset + held:
                let_go = max(first, onset + held)
                elapsed = np.arange(let_go - onset - held, last - onset - held, dtype=np.float32)
                sound[:, let_go - first :] *= _release(elapsed / self.sample_rate, ring, release / self.sample_rate)
            audio[:, first:last] += sound
        return audio

    def _zones_for(self, program: int, note: Note) -> tuple[Zone, ...]:
        key = (program, note.pitch, note.velocity)
        if key not in self._zones:
            self._zones[key] = tuple(
                zone
                for zone in self.font.zones(program)
                if zone.keys[0] <= note.pitch <= zone.keys[1]
                and zone.velocities[0] <= note.velocity <= zone.velocities[1]
            )
        return self._zones[key]

    def _tone(self, zones: tuple[Zone, ...], pitch: int, length: int) -> np.ndarray:
        """Return a sustained tone ``[C, N]`` at full velocity, at least ``length`` samples long.

        ``N`` is always a power of two, so that the tone does not depend on the state of the cache.
        """
        size = 1 << max(13, (length - 1).bit_length())
        key = (*zones, pitch, size)
        if key in self._tones:
            self._tones.move_to_end(key)
            return self._tones[key]
        tone: np.ndarray = sum((self._play(zone, pitch, size) for zone in zones), np.zeros((1, 1), np.float32))
        tone = tone.astype(np.float32, copy=False)
        self._tones[key] = tone
        self._used += tone.nbytes
        while self._used > self.cache_bytes and len(self._tones) > 1:
            self._used -= self._tones.popitem(last=False)[1].nbytes
        return tone

    def _play(self, zone: Zone, pitch: int, size: int) -> np.ndarray:
        # Resampling from a different rate transposes the sample without aliasing.
        rate = zone.sample_rate * 2 ** (zone.semitones(pitch) / 12)
        needed = math.ceil((size / self.sample_rate + 0.01) * rate)
        sound = soxr.resample(_unrolled(self.font.samples, zone, needed), rate, self.sample_rate)[:size]
        sound = np.pad(sound, (0, size - len(sound)))
        sound = _filtered(sound, zone, self.sample_rate) * _envelope(zone, size, self.sample_rate)
        if self.channels == 1:
            return zone.gain * sound[None]
        angle = (zone.pan + 1) * math.pi / 4
        return math.sqrt(2) * zone.gain * np.stack([math.cos(angle) * sound, math.sin(angle) * sound])


def _release(seconds: np.ndarray, ring: float, end: float) -> np.ndarray:
    """Return the amplitude after a key is released: a fall by 100 dB in ``ring`` seconds, and silence at ``end``."""
    return 10 ** (-5 * seconds / max(ring, SHORTEST_RELEASE)) * (1 - seconds / end)


def _unrolled(samples: np.ndarray, zone: Zone, length: int) -> np.ndarray:
    """Return the first ``length`` samples of a zone, with its loop repeated."""
    if zone.loop is None:
        return samples[zone.start : min(zone.end, zone.start + length)]
    head = samples[zone.start : zone.loop[0]]
    return np.concatenate([head, np.resize(samples[zone.loop[0] : zone.loop[1]], max(0, length - len(head)))])[:length]


def _filtered(sound: np.ndarray, zone: Zone, rate: int) -> np.ndarray:
    """Apply a two-pole low-pass filter. A moving cutoff is a cross-fade between the filters at its two ends."""
    nyquist = rate / 2
    settled = _low_pass(sound, zone.cutoff[1], zone.resonance, rate) if zone.cutoff[1] < 0.85 * nyquist else sound
    if zone.cutoff[0] == zone.cutoff[1] or not zone.filter_time:
        return settled
    start = _low_pass(sound, zone.cutoff[0], zone.resonance, rate) if zone.cutoff[0] < 0.85 * nyquist else sound
    weight = np.maximum(0, 1 - np.arange(len(sound)) / (zone.filter_time * rate)).astype(np.float32)
    return settled + weight * (start - settled)


def _low_pass(sound: np.ndarray, cutoff: float, resonance: float, rate: int) -> np.ndarray:
    padded = 1 << (len(sound) + rate // 20).bit_length()
    frequency = np.fft.rfftfreq(padded, 1 / rate) / cutoff
    quality = 10 ** ((resonance - 3.01) / 20)
    response = 1 / (1 - frequency**2 + 1j * frequency / quality)
    return np.fft.irfft(np.fft.rfft(sound, padded) * response, padded)[: len(sound)].astype(np.float32)


def _envelope(zone: Zone, count: int, rate: int) -> np.ndarray:
    """Return the envelope of a held key: linear attack, then a decay linear in dB (SoundFont 2.04, §8.1.2, §9.1.7)."""
    delay, attack, hold, decay, _ = zone.envelope
    time = np.arange(count) / rate - delay
    rise = np.clip(time / max(attack, 1 / rate), 0, 1)
    fall = np.clip((time - attack - hold) / max(decay, 1 / rate), 0, 1) * 100
    return (rise * 10 ** (-np.minimum(fall, zone.sustain) / 20)).astype(np.float32)
