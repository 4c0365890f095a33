"""Names of chords and keys."""

import pytest

from partita.core.chord_names import chord_label, parse_key, pitch_classes

QUALITIES = (
    "maj",
    "min",
    "aug",
    "dim",
    "sus4",
    "sus2",
    "7",
    "maj7",
    "min7",
    "minmaj7",
    "maj6",
    "min6",
    "dim7",
    "hdim7",
)


@pytest.mark.parametrize("quality", [*QUALITIES, "1", "5", "(1,5)", "min(*b3,2)", "maj(*3)", "sus4(b7)"])
def test_pitch_classes_are_those_of_mir_eval(quality):
    chord = pytest.importorskip("mir_eval").chord
    for root in ("C", "F#", "Bb", "Cb", "E", "G##"):
        for bass in ("", "/3", "/b7", "/5"):
            label = f"{root}:{quality}{bass}"
            number, tones, _ = chord.encode(label)
            assert pitch_classes(label) == {(number + i) % 12 for i in range(12) if tones[i]}, label


def test_extensions_and_what_is_no_chord():
    assert pitch_classes("G") == {7, 11, 2}
    assert pitch_classes("C:9") == {0, 4, 7, 10, 2}
    assert pitch_classes("A:min11") == {9, 0, 4, 7, 11, 2}
    assert pitch_classes("C:7(#9)") == {0, 4, 7, 10, 3}
    assert pitch_classes("N") == set()
    for unknown in ("X", "C:huge", "H", "C:maj(x)", "C:maj(14)", "C:maj(" + "9" * 5000 + ")", "C/99", ""):
        assert pitch_classes(unknown) is None


CHART = {
    "C": "C:maj",
    "Am": "A:min",
    "F#m7b5": "F#:hdim7",
    "B♭7": "Bb:7",
    "Gsus": "G:sus4",
    "A7sus4": "A:sus4(b7)",
    "Ebmaj7": "Eb:maj7",
    "DM7": "D:maj7",
    "Cdim": "C:dim",
    "C°7": "C:dim7",
    "E+": "E:aug",
    "Dadd9": "D:maj(9)",
    "C/E": "C:maj/3",
    "Am/G": "A:min/b7",
    "A:min7/b3": "A:min7/b3",
    "G/3": "G/3",
    "N.C.": "N",
    "X": "X",
}


@pytest.mark.parametrize(("text", "label"), CHART.items())
def test_charts(text, label):
    assert chord_label(text) == label


@pytest.mark.parametrize("text", ["", "H", "am", "Cfoo", "C:huge", "C/H", "C D", "1"])
def test_what_is_no_chord_is_refused(text):
    with pytest.raises(ValueError, match="is not a chord"):
        chord_label(text)


KEYS = {
    "C major": (0, 0),
    "f# Minor": (6, 1),
    "Gb": (6, 0),
    "Am": (9, 1),
    "bb major": (10, 0),
    "A-flat major": (8, 0),
    "c sharp min": (1, 1),
    "B♭ maj": (10, 0),
    "CM": (0, 0),
    "Cb minor": (11, 1),
}


@pytest.mark.parametrize(("text", "key"), KEYS.items())
def test_keys(text, key):
    assert parse_key(text) == key


@pytest.mark.parametrize("text", ["", "H minor", "b", "D dorian", "minor", "sad"])
def test_what_is_no_key(text):
    assert parse_key(text) is None
