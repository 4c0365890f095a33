"""Scores become tables: ties, pick-ups, meters, melodies, keys, chords."""

import numpy as np
import pytest

from partita.core.harmony import chord_name, find_chords, find_key, key_name
from partita.data.library import score_files
from partita.data.scores import find_melody, read_pieces

ABC = """X:1
T:Pick-up
M:3/4
L:1/4
K:G
D|G2 A|B3-|B2 A|G2|]
"""


def piece_of(tmp_path, abc):
    path = tmp_path / "tune.abc"
    path.write_text(abc)
    return read_pieces(path, "tune")[0]


def test_a_chorale_with_a_pick_up():
    # BWV 66.6 as printed: F sharp minor, a pick-up of a quarter, four beats to the bar, thirty-six quarters.
    piece = read_pieces(score_files(["bach"])["bach/bwv66.6"], "bach/bwv66.6")[0]
    assert key_name(*piece.key) == "F# minor"
    assert piece.length == 36
    assert np.array_equal(piece.beats, np.arange(36))
    assert np.array_equal(piece.downbeats, np.arange(1, 36, 4))
    assert piece.melody[:4] == [(0.0, 0.5, 73), (0.5, 1.0, 71), (1.0, 2.0, 69), (2.0, 3.0, 71)]
    assert len(set(piece.part.tolist())) == 4
    # The first phrase closes on A major, the piece on F sharp major.
    named = {start: chord_name(root, quality) for start, _, root, quality in piece.chords}
    assert named[7.0] == "A:maj"
    assert named[35.0] == "F#:maj"


def test_ties_and_pick_up(tmp_path):
    piece = piece_of(tmp_path, ABC)
    assert list(zip(piece.onset, piece.duration, piece.pitch, strict=True)) == [
        (0, 1, 62),
        (1, 2, 67),
        (3, 1, 69),
        (4, 5, 71),
        (9, 1, 69),
        (10, 2, 67),
    ]
    assert np.array_equal(piece.downbeats, [1, 4, 7, 10])
    assert np.array_equal(piece.beats, np.arange(12))


def music_xml(bars):
    """A part in divisions of half a quarter; each bar is its meter, where it changes, and the lengths of its notes."""
    measures = ""
    for number, (meter, lengths) in enumerate(bars, 1):
        time = f"<time><beats>{meter[0]}</beats><beat-type>{meter[1]}</beat-type></time>" if meter else ""
        pitch = "<pitch><step>C</step><octave>4</octave></pitch>"
        notes = "".join(f"<note>{pitch}<duration>{length}</duration></note>" for length in lengths)
        measures += (
            f'<measure number="{number}"><attributes><divisions>2</divisions>{time}</attributes>{notes}</measure>'
        )
    parts = '<part-list><score-part id="P1"><part-name>V</part-name></score-part></part-list>'
    return f'<score-partwise version="3.0">{parts}<part id="P1">{measures}</part></score-partwise>'


def test_changing_meters_and_a_divided_bar(tmp_path):
    path = tmp_path / "meters.musicxml"
    bars = [((4, 4), [2] * 4), (None, [2] * 3), (None, [2]), ((6, 8), [3, 3]), (None, [3, 3]), ((3, 4), [2] * 3)]
    path.write_text(music_xml(bars))
    piece = read_pieces(path, "meters")[0]
    assert np.array_equal(piece.downbeats, [0, 4, 8, 11, 14])
    assert np.array_equal(piece.beats, [*range(8), 8, 9.5, 11, 12.5, 14, 15, 16])
    assert piece.beat_length == 1.0


def test_a_chorale_whose_repeat_divides_a_bar():
    # BWV 133.6: four beats to the bar after a pick-up, throughout.
    piece = read_pieces(score_files(["bach"])["bach/bwv133.6"], "bach/bwv133.6")[0]
    assert np.array_equal(piece.downbeats, np.arange(1, piece.length, 4))


def test_the_melody_is_the_highest_line():
    onset, duration = np.array([0.0, 0.0, 1.0, 2.0]), np.array([4.0, 1.0, 2.0, 1.0])
    assert find_melody(onset, duration, np.array([60, 64, 67, 65])) == [(0, 1, 64), (1, 3, 67)]


@pytest.mark.parametrize(("tonic", "mode", "steps"), [(2, 0, (0, 2, 4, 5, 7, 9, 11)), (9, 1, (0, 2, 3, 5, 7, 8, 11))])
def test_the_key_of_a_scale(tonic, mode, steps):
    pitch = np.array([60 + tonic + s for s in (*steps, 7, 4 - mode, 0)])
    assert find_key(np.arange(10.0), np.ones(10), pitch) == (tonic, mode)


@pytest.mark.parametrize(
    ("pitches", "name"),
    [
        ((48, 64, 67, 72), "C:maj"),
        ((45, 60, 64, 69), "A:min"),
        ((43, 59, 65, 62), "G:7"),
        ((47, 62, 65), "B:dim"),
        ((52, 60, 67), "C:maj"),
        ((), "N"),
    ],
)
def test_chords_by_their_notes(pitches, name):
    count = len(pitches)
    (found,) = find_chords(np.zeros(count), np.ones(count), np.array(pitches, dtype=int), np.array([0.0, 1.0]))
    assert chord_name(*found[2:]) == name


def test_equal_chords_are_merged():
    onset, pitch = np.repeat(np.arange(3.0), 3), np.array([60, 64, 67, 60, 64, 67, 65, 69, 72])
    found = find_chords(onset, np.ones(9), pitch, np.arange(4.0))
    assert [(start, end, chord_name(*rest)) for start, end, *rest in found] == [(0, 2, "C:maj"), (2, 3, "F:maj")]
