"""The key of a score and of a clip: as analysts hear it, whatever the piece ends on."""

import re

import numpy as np
import pytest

from partita.core.harmony import find_clip_key, find_key, key_name
from partita.data.library import score_files
from partita.data.scores import read_pieces


@pytest.mark.parametrize(
    ("number", "score"),
    [
        (3, "bwv153.1"),  # A minor, ends on E major
        (10, "bwv38.6"),  # Phrygian on E
        (16, "bwv311"),  # ends on F sharp major
        (12, "bwv65.2"),  # a Picardy third
        (1, "bwv269"),
    ],
)
def test_the_key_of_a_chorale_is_that_of_its_analysis(number, score):
    """Analyses of Riemenschneider's chorales that come with music21 begin with the key, such as ``m0 b4 a: V``."""
    path = score_files(["bach"])[f"bach/{score}"]
    analysis = (path.parent / f"choraleAnalyses/riemenschneider{number:03}.rntxt").read_text()
    assert f"BWV: {score.removeprefix('bwv')}\n" in analysis
    tonic, flat = re.search(r"^m\d+ .*?\b([A-Ga-g])([#b]?): ", analysis, re.MULTILINE).groups()
    expected = f"{tonic.upper()}{flat} {'minor' if tonic.islower() else 'major'}"
    assert key_name(*read_pieces(path, score)[0].key) == expected


def test_a_minor_piece_with_a_picardy_third_is_minor():
    # BWV 364: G minor throughout, in a signature of one flat, and G major at the end.
    piece = read_pieces(score_files(["bach"])["bach/bwv364"], "bach/bwv364")[0]
    assert key_name(*piece.key) == "G minor"


def chords(*names):
    """Onset, duration and pitch of chords of four quarter notes."""
    known = {"C": (48, 64, 67), "F": (53, 65, 69), "G": (55, 62, 71), "Am": (57, 60, 64), "Dm": (50, 65, 69)}
    known |= {"E": (52, 64, 68), "A": (57, 61, 64), "Em": (52, 64, 67)}
    rows = [(4.0 * i, 4.0, pitch) for i, name in enumerate(names) for pitch in known[name]]
    onset, duration, pitch = np.array(rows).T
    return onset, duration, pitch.astype(int)


@pytest.mark.parametrize(
    ("names", "key"),
    [
        ("Am Dm E Am Dm E A", "A minor"),  # Picardy
        ("Am F Dm E Am F Dm E", "A minor"),  # Phrygian
        ("C F G C F G C", "C major"),
        ("A E A E A", "A major"),
    ],
)
def test_endings(names, key):
    assert key_name(*find_key(*chords(*names.split()))) == key


def test_a_clip_has_a_key_of_its_own_and_that_of_the_piece_where_nothing_tells():
    notes = chords(*["Am", "Dm", "E", "Am", "C", "F", "G", "C", "C", "F", "G", "C", "Am", "Dm", "E", "Am"])
    home = find_key(*notes)
    assert key_name(*home) == "A minor"
    assert key_name(*find_clip_key(*notes, 16.0, 48.0, home)) == "C major"
    assert key_name(*find_clip_key(*notes, 48.0, 64.0, home)) == "A minor"
    assert find_clip_key(*notes, 0.0, 64.0, home) == home
    assert find_clip_key(*notes, 64.0, 70.0, home) == home  # silence


def test_keys_of_clips_agree_with_an_analysis():
    """BWV 311 leaves B minor for D and A major; its analysis says where, counted from a pick-up on the fourth beat."""
    path = score_files(["bach"])["bach/bwv311"]
    piece = read_pieces(path, "bach/bwv311")[0]
    analysis = (path.parent / "choraleAnalyses/riemenschneider016.rntxt").read_text()
    classes = {"a": 9, "b": 11, "d": 2, "e": 4}
    changes, keys = [], []
    for measure, line in re.findall(r"^m(\d+) (.*)$", analysis, re.MULTILINE):
        beat = 1.0
        for word in line.split():
            if number := re.fullmatch(r"b(\d[\d.]*)", word):
                beat = float(number[1])
            elif re.fullmatch(r"[A-Ga-g]:", word):
                changes.append(4 * int(measure) + beat - 4)
                keys.append((classes[word[0].lower()], int(word[0].islower())))
    quarters = np.arange(piece.length)
    truth = [keys[i] for i in np.searchsorted(changes, quarters, side="right") - 1]
    agree = []
    for start in range(0, len(quarters) - 7, 2):
        clip = find_clip_key(piece.onset, piece.duration, piece.pitch, start, start + 8.0, piece.key)
        analyzed = truth[start : start + 8]
        agree.append((clip == max(analyzed, key=analyzed.count), piece.key == max(analyzed, key=analyzed.count)))
    clips, pieces = np.mean(agree, axis=0)
    assert clips > 0.75
    assert clips > pieces + 0.1
