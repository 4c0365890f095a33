"""Names of chords and keys: their pitch classes, and the spellings of chord charts."""

from __future__ import annotations

import re

from .harmony import MODES, NO_CHORD, QUALITIES, UNNAMED

_LETTERS = {"C": 0, "D": 2, "E": 4, "F": 5, "G": 7, "A": 9, "B": 11}
_DEGREES = (0, 2, 4, 5, 7, 9, 11)
"""Semitones of the degrees of a major scale."""

SHORTHANDS = {
    **QUALITIES,
    "": (0,),
    "sus2": (0, 2, 7),
    "minmaj7": (0, 3, 7, 11),
    "maj6": (0, 4, 7, 9),
    "min6": (0, 3, 7, 9),
    "9": (0, 2, 4, 7, 10),
    "maj9": (0, 2, 4, 7, 11),
    "min9": (0, 2, 3, 7, 10),
    "11": (0, 2, 4, 5, 7, 10),
    "maj11": (0, 2, 4, 5, 7, 11),
    "min11": (0, 2, 3, 5, 7, 10),
    "13": (0, 2, 4, 5, 7, 9, 10),
    "maj13": (0, 2, 4, 5, 7, 9, 11),
    "min13": (0, 2, 3, 5, 7, 9, 10),
    "1": (0,),
    "5": (0, 7),
}
"""Shorthands of C. Harte et al. (ISMIR 2005) and of mir_eval, with their semitones above the root."""

_CHART = {
    "": "maj",
    "M": "maj",
    "m": "min",
    "mi": "min",
    "-": "min",
    "o": "dim",
    "°": "dim",
    "+": "aug",
    "M7": "maj7",
    "Δ": "maj7",
    "Δ7": "maj7",
    "m7": "min7",
    "-7": "min7",
    "m7b5": "hdim7",
    "ø": "hdim7",
    "ø7": "hdim7",
    "o7": "dim7",
    "°7": "dim7",
    "mM7": "minmaj7",
    "mmaj7": "minmaj7",
    "sus": "sus4",
    "7sus4": "sus4(b7)",
    "6": "maj6",
    "m6": "min6",
    "M9": "maj9",
    "m9": "min9",
    "m11": "min11",
    "M13": "maj13",
    "m13": "min13",
    "add9": "maj(9)",
    "madd9": "min(9)",
}
"""Qualities of chord charts that are no shorthands, with the notation of Harte."""

_HARTE = re.compile(r"([A-G])([b#]*)(?::([A-Za-z0-9]*)(?:\(([b#*0-9,]*)\))?)?(?:/([b#]*\d+))?")
_CHARTED = re.compile(r"([A-G][b#]*)([^/]*)(?:/([A-G][b#]*))?")
_BASSES = ("1", "b2", "2", "b3", "3", "4", "b5", "5", "b6", "6", "b7", "7")
_KEY = re.compile(r"([a-g])([b#]*)\s*(major|maj|minor|min|m)?", re.IGNORECASE)


def pitch_classes(chord: str) -> frozenset[int] | None:
    """The pitch classes of a chord in the notation of Harte, C = 0; ``None`` if the chord is not known.

    >>> sorted(pitch_classes("A:min7")), sorted(pitch_classes("G/3")), sorted(pitch_classes("N"))
    ([0, 4, 7, 9], [2, 7, 11], [])
    >>> pitch_classes("X"), pitch_classes("C:huge")
    (None, None)
    """
    if chord == NO_CHORD:
        return frozenset()
    match = _HARTE.fullmatch(chord)
    if match is None:
        return None
    letter, accidentals, quality, degrees, bass = match.groups()
    if quality is None:
        quality = "maj"
    if quality not in SHORTHANDS:
        return None
    tones = set(SHORTHANDS[quality])
    for degree in filter(None, (degrees or "").split(",")):
        tone = _semitones(degree.removeprefix("*"))
        if tone is None:
            return None
        (tones.discard if degree.startswith("*") else tones.add)(tone)
    if bass is not None:
        tone = _semitones(bass)
        if tone is None:
            return None
        tones.add(tone)
    root = _LETTERS[letter] + _shift(accidentals)
    return frozenset((root + tone) % 12 for tone in tones)


def chord_label(text: str) -> str:
    """A chord in the notation of Harte, of that notation or of chord charts.

    >>> [chord_label(text) for text in ("C", "Am", "F#m7b5", "G/B", "Bb:min7", "N.C.")]
    ['C:maj', 'A:min', 'F#:hdim7', 'G:maj/3', 'Bb:min7', 'N']

    Raises:
        ValueError: The text is not a chord.
    """
    plain = text.strip().replace("♯", "#").replace("♭", "b")
    if plain in (NO_CHORD, UNNAMED):
        return plain
    if plain.upper() in ("NC", "N.C."):
        return NO_CHORD
    if ":" in plain or re.search(r"/[b#]*\d+$", plain):
        label = plain
    else:
        match = _CHARTED.fullmatch(plain)
        if match is None:
            raise ValueError(f"{text!r} is not a chord")
        root, quality, bass = match.groups()
        known = quality in SHORTHANDS and quality != ""
        label = f"{root}:{quality if known else _CHART.get(quality, '?')}"
        if bass:
            label += f"/{_BASSES[(_tone(bass) - _tone(root)) % 12]}"
    if pitch_classes(label) is None:
        raise ValueError(f"{text!r} is not a chord")
    return label


def parse_key(text: str) -> tuple[int, int] | None:
    """The tonic (pitch class) and mode (0 major, 1 minor) of a key; ``None`` if the text names none.

    >>> parse_key("F# minor"), parse_key("Am"), parse_key("e flat major"), parse_key("D dorian")
    ((6, 1), (9, 1), (3, 0), None)
    """
    plain = re.sub(r"[\s-]*(flat|sharp)\b", lambda m: "b" if m[1].lower() == "flat" else "#", text, flags=re.IGNORECASE)
    match = _KEY.fullmatch(plain.strip().replace("♯", "#").replace("♭", "b"))
    if match is None:
        return None
    letter, accidentals, mode = match.groups()
    if mode is None and letter.islower():  # which some take for minor, others not
        return None
    minor = mode is not None and (mode == "m" or mode.lower().startswith("min"))
    return (_LETTERS[letter.upper()] + _shift(accidentals.lower())) % 12, MODES.index("minor" if minor else "major")


def _shift(accidentals: str) -> int:
    return accidentals.count("#") - accidentals.count("b")


def _tone(note: str) -> int:
    return _LETTERS[note[0]] + _shift(note[1:])


def _semitones(degree: str) -> int | None:
    """Semitones of a degree such as ``b7`` above the root, within an octave; ``None`` if it is no degree."""
    number = degree.lstrip("b#")
    if not number.isdecimal() or len(number) > 2 or not 1 <= int(number) <= 13:
        return None
    return (_DEGREES[(int(number) - 1) % 7] + _shift(degree)) % 12
