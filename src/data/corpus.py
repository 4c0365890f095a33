"""The default data: real scores, orchestrated at random and rendered on the fly."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from ..core.contracts import Example
from ..core.harmony import chord_name, find_clip_key, key_name
from ..core.registry import did_you_mean, register
from .arrangement import INSTRUMENTS, Arrangement, Arrangements, arrange, arrange_differently
from .base import Origin, Source, Split, Summary
from .captions import caption, draw_wording, reworded
from .fields.base import crop_fields
from .library import GENRES, count_restricted, genre, load_pieces
from .licenses import RESTRICTED, corpus_origins
from .scores import Piece
from .soundfont import SoundFont
from .splits import check_fractions, split_names
from .synthesizer import LONGEST_RELEASE, Note, Synthesizer

LOUDNESS = 10 ** (-16 / 20)
"""Target RMS of a clip, lowered if its peaks would exceed :data:`PEAK`."""
PEAK = 0.95

DEFAULT_ARRANGEMENTS = Arrangements()


@register("data", "corpus")
class Corpus(Source):
    """Real scores (the corpus of music21), rendered on the fly, with exact notes, melodies, beats and stems.

    The first :meth:`setup` parses the scores and stores them in one file. Each reading draws an arrangement from its
    seed: instruments, tempo, transposition, dynamics and wording. Parts and single notes move by octaves into the range
    of their instrument. Pieces that share a tune are in the same split, so that no test piece has a memorized tune.

    Notes, melody, beats, tempo, instruments and stems are exact; key and chords are estimates from the score. The key
    is that of the clip, which may differ from that of the piece. Onsets are the times at which keys are pressed. Most
    instruments reach 90 % of their level within 0.08 s, strings and choir after 0.14 and 0.16 s, and strings on some
    keys after 0.5 s (:data:`~partita.data.arrangement.INSTRUMENTS` lists the times).

    Args:
        collections: Collections to play: ``bach`` (410 chorales), ``palestrina`` (masses), ``monteverdi`` (madrigals),
            ``trecento``, ``haydn``, ``mozart``, ``beethoven`` (quartets), ``essenFolksong``, ``ryansMammoth``,
            ``oneills1850``, ``airdsAirs`` (tunes).
        arrangements: Distribution of instruments, tempo and transposition.
        validation: Fraction of the tunes for validation.
        test: Fraction of the tunes for testing.
        limit: Number of score files to use, drawn at random; some hold many tunes. ``None`` uses all.
        restricted: Whether to include scores that are not free to use: ``essenFolksong`` (non-commercial use only),
            ``palestrina`` (rights reserved), two madrigals and ten pieces of ``trecento`` under copyright.
        stems: Whether examples carry ``stems``, the audio of each instrument, which sum to the mix.
        covers: Whether examples carry a ``cover``: the same passage of the score in a second arrangement, with other
            instruments, another tempo and another key if ``arrangements`` has several. It begins and ends with the clip
            in musical time; so its length is that of the clip times the ratio of the tempos.
        cache_dir: Folder for the parsed scores. ``None`` uses ``$PARTITA_CACHE``, or ``partita`` in
            ``$XDG_CACHE_HOME`` or ``~/.cache``.
    """

    fields = frozenset(
        {"text", "instruments", "key", "tempo", "beats", "downbeats", "chords", "melody", "stems", "cover"}
        | {"id", "tune", "seconds_start", "seconds_total"}
    )

    switches: ClassVar[dict[str, str]] = {"stems": "stems: true", "cover": "covers: true"}
    attributes = ("instruments", "key", "tempo", "genre")
    revision = 1
    varied = True

    def __init__(
        self,
        collections: tuple[str, ...] = ("bach",),
        arrangements: Arrangements = DEFAULT_ARRANGEMENTS,
        validation: float = 0.05,
        test: float = 0.05,
        limit: int | None = None,
        restricted: bool = False,
        stems: bool = False,
        covers: bool = False,
        cache_dir: str | None = None,
    ) -> None:
        if not collections:
            raise ValueError(f"collections is empty{did_you_mean('', GENRES)}")
        for name in collections:
            if name not in GENRES:
                raise ValueError(f"no collection is called {name!r}{did_you_mean(name, GENRES)}")
        if not restricted and all(name in RESTRICTED for name in collections):
            reasons = "; ".join(f"{name} {RESTRICTED[name]}" for name in collections)
            raise ValueError(f"all collections are restricted: {reasons}; if you may use them, set restricted: true")
        check_fractions(validation, test)
        if limit is not None and limit < 1:
            raise ValueError(f"limit must be at least 1, not {limit}")
        self.collections = tuple(collections)
        self.arrangements = arrangements
        self.validation = validation
        self.test = test
        self.limit = limit
        self.restricted = restricted
        self.stems = stems
        self.covers = covers
        self.cache_dir = cache_dir
        self.fields = self.fields - {name for name, wanted in (("stems", stems), ("cover", covers)) if not wanted}
        self._pieces: dict[str, Piece] = {}
        self._splits: dict[Split, list[str]] = {}
        self._skipped: list[str] = []
        self._synthesizers: dict[tuple[int, int], Synthesizer] = {}

    def setup(self) -> None:
        """Load the scores, and parse them on the first use.

        Raises:
            PartitaError: The corpus of music21 is missing or cannot be read.
        """
        if self._pieces:
            return
        folder = Path(self.cache_dir).expanduser() if self.cache_dir else None
        pieces, self._skipped = load_pieces(self.collections, self.limit, folder, self.restricted)
        self._pieces = {piece.id: piece for piece in pieces}
        tunes = split_names(list(dict.fromkeys(piece.tune for piece in pieces)), self.validation, self.test)
        split = {tune: name for name, found in tunes.items() for tune in found}
        self._splits = {name: [piece.id for piece in pieces if split[piece.tune] == name] for name in tunes}

    def size(self, split: Split) -> int:
        """Return the number of pieces in a split."""
        self.setup()
        return len(self._splits[split])

    def reworded(self, fields: Mapping[str, Any], other: Mapping[str, Any], attribute: str) -> str | None:
        """Return the caption with one attribute replaced; see :meth:`~partita.data.base.Source.reworded`."""
        own, others = (
            {"genre": genre(of["id"])} | {name: of[name] for name in ("key", "tempo", "instruments")}
            for of in (fields, other)
        )
        text = reworded(fields["text"], own, own | {attribute: others[attribute]})
        return None if text == fields["text"] else text

    @property
    def summary(self) -> Summary:
        """The numbers of pieces, and of scores that are excluded because they are restricted."""
        self.setup()
        count = 0 if self.restricted else count_restricted(self.collections)
        left_out = f"{count:,} restricted score{'s' * (count > 1)} left out (restricted: true includes them)"
        return replace(super().summary, left_out=left_out if count else "")

    @property
    def origins(self) -> list[Origin]:
        """The scores and the samples of the SoundFont, with their licenses."""
        return corpus_origins(self.collections, self.restricted)

    @property
    def report(self) -> list[str]:
        """A line for each score that could not be parsed."""
        return list(self._skipped)

    def read(
        self, split: Split, index: int, *, seed: int, seconds: float | None, sample_rate: int, channels: int
    ) -> Example:
        """Read a clip of a piece in an arrangement drawn from ``seed``; see :meth:`~partita.data.base.Source.read`.

        The arrangement does not depend on the length of the clip or its sample rate. A whole piece includes the release
        of its last notes.
        """
        return self._read(split, index, seed, seconds, sample_rate, channels)

    def read_beside(
        self, split: Split, index: int, *, seed: int, seconds: float | None, sample_rate: int, channels: int
    ) -> Tensor | None:
        """Read another excerpt of the same arrangement, which does not overlap the clip if the piece is long enough."""
        return self._read(split, index, seed, seconds, sample_rate, channels, beside=True).recording

    def _read(
        self,
        split: Split,
        index: int,
        seed: int,
        seconds: float | None,
        sample_rate: int,
        channels: int,
        *,
        beside: bool = False,
    ) -> Example:
        """Read a clip of a piece, or another one ``beside`` it."""
        self.setup()
        piece = self._pieces[self._splits[split][index]]
        digest = hashlib.sha256(f"{piece.id}/{seed}".encode()).digest()
        rng = np.random.default_rng(int.from_bytes(digest))
        arrangement = arrange(piece, rng, self.arrangements)
        words = draw_wording(rng, arrangement.tempo)
        quarter = 60 / (arrangement.tempo * piece.beat_length)
        music = piece.length * quarter
        total = music + LONGEST_RELEASE
        start = (
            0.0 if seconds is None else _crop(piece.onset * quarter, piece.duration * quarter, seconds, rng.random())
        )
        if beside and seconds is not None:
            start = _beside(start, seconds, float((piece.onset + piece.duration).max()) * quarter, rng.random())
        start = round(start * sample_rate) / sample_rate
        length = round((total if seconds is None else seconds) * sample_rate)
        num_samples = min(length, round((total - start) * sample_rate))
        key = _key(piece, arrangement, start / quarter, (start + num_samples / sample_rate) / quarter)
        text = caption(
            words, genre=genre(piece.id), key=key, tempo=arrangement.tempo, instruments=arrangement.instruments
        )
        stems = self._render(piece, arrangement, quarter, start, num_samples, sample_rate, channels)
        stems = {name: np.pad(stem, ((0, 0), (0, length - num_samples))) for name, stem in stems.items()}
        fields: dict[str, Any] = {
            "id": piece.id,
            "tune": piece.tune,
            "text": text,
            "instruments": arrangement.instruments,
            "key": key,
            "tempo": arrangement.tempo,
            "seconds_total": total,
            **crop_fields(
                {"seconds_start": 0.0, **_timed_labels(piece, arrangement, quarter)}, start, num_samples / sample_rate
            ),
        }
        if self.stems:
            fields["stems"] = {name: torch.from_numpy(stem) for name, stem in stems.items()}
        if self.covers:
            other = np.random.default_rng(int.from_bytes(hashlib.sha256(f"{piece.id}/{seed}/cover".encode()).digest()))
            cover = arrange_differently(piece, other, self.arrangements, arrangement)
            ratio = arrangement.tempo / cover.tempo
            samples = max(1, round(num_samples * ratio))
            parts = self._render(piece, cover, quarter * ratio, start * ratio, samples, sample_rate, channels)
            fields["cover"] = torch.from_numpy(sum(parts.values(), np.float32(0)))
        return Example(torch.from_numpy(sum(stems.values(), np.float32(0))), num_samples, fields)

    def _render(
        self,
        piece: Piece,
        arrangement: Arrangement,
        quarter: float,
        start: float,
        num_samples: int,
        sample_rate: int,
        channels: int,
    ) -> dict[str, np.ndarray]:
        """Return the stem ``[C, num_samples]`` of each instrument, at its level in the mix."""
        onset, duration = piece.onset * quarter - start, piece.duration * quarter
        pitch = np.empty_like(piece.pitch)
        for part in arrangement.parts:
            mine = piece.part == part
            pitch[mine] = arrangement.pitch(piece.pitch[mine], part)
        sounding = np.flatnonzero((onset < num_samples / sample_rate) & (onset + duration + LONGEST_RELEASE > 0))
        notes: dict[str, dict[tuple[float, int], Note]] = {name: {} for name in arrangement.instruments}
        for i in sounding.tolist():
            played = notes[arrangement.parts[int(piece.part[i])]]
            note = Note(float(onset[i]), float(duration[i]), int(pitch[i]), int(arrangement.velocity[i]))
            # Two voices in unison on one instrument are played as a single note.
            same = played.get((note.onset, note.pitch))
            if same is None or same.duration < note.duration:
                played[note.onset, note.pitch] = note
        synthesizer = self._synthesizer(sample_rate, 2 if channels == 2 else 1)
        stems = {}
        for name, own in notes.items():
            instrument = INSTRUMENTS[name]
            stem = synthesizer.render(list(own.values()), instrument.program, num_samples)
            stems[name] = stem * np.float32(instrument.gain)
        mix = sum(stems.values(), np.float32(0))
        level = max(np.sqrt(np.mean(mix**2)) / LOUDNESS, np.abs(mix).max() / PEAK, 1e-4)
        copies = (1, 1) if channels == 2 else (channels, 1)
        return {name: np.tile(stem / np.float32(level), copies) for name, stem in stems.items()}

    def _synthesizer(self, sample_rate: int, channels: int) -> Synthesizer:
        if (sample_rate, channels) not in self._synthesizers:
            self._synthesizers[sample_rate, channels] = Synthesizer(SoundFont(), sample_rate, channels)
        return self._synthesizers[sample_rate, channels]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_synthesizers": {}}


def _crop(onset: np.ndarray, duration: np.ndarray, seconds: float, fraction: float) -> float:
    """Return a random start at which the clip lies within the piece and is not silent."""
    last = max(0.0, float((onset + duration).max()) - seconds)
    start = fraction * last
    if not ((onset < start + 0.9 * seconds) & (onset + duration > start + 0.1 * seconds)).any():
        start = min(last, float(onset[onset >= start].min(initial=last)))
    return start


def _beside(start: float, seconds: float, end: float, fraction: float) -> float:
    """Return a random start of another clip within a piece, which does not overlap the one at ``start`` if possible.

    >>> [_beside(10.0, 5.0, 40.0, fraction) for fraction in (0.0, 0.2, 0.5, 1.0)]
    [0.0, 5.0, 22.5, 35.0]
    >>> _beside(2.0, 5.0, 10.0, 0.5)
    2.5
    """
    before, after = max(0.0, start - seconds), max(0.0, end - start - 2 * seconds)
    if before + after == 0:
        return fraction * max(0.0, end - seconds)
    place = fraction * (before + after)
    return place if place <= before and before > 0 else start + seconds + place - before


def _key(piece: Piece, arrangement: Arrangement, start: float, end: float) -> str:
    """Return the key of the arrangement between two times in quarter notes."""
    tonic, mode = find_clip_key(piece.onset, piece.duration, piece.pitch, start, end, piece.key)
    return key_name(tonic + arrangement.transposition, mode)


def _timed_labels(piece: Piece, arrangement: Arrangement, quarter: float) -> dict[str, Any]:
    """Return beats, downbeats, chords and melody, in seconds from the start of the piece."""
    chords = [
        (begin * quarter, end * quarter, chord_name(root, quality, arrangement.transposition))
        for begin, end, root, quality in piece.chords
    ]
    pitches = arrangement.pitch(np.array([pitch for *_, pitch in piece.melody]), piece.melody_part)
    melody = [
        (begin * quarter, end * quarter, pitch)
        for (begin, end, _), pitch in zip(piece.melody, pitches.tolist(), strict=True)
    ]
    return {
        "beats": piece.beats * quarter,
        "downbeats": piece.downbeats * quarter,
        "chords": chords,
        "melody": melody,
    }
