"""Pieces with a tune in common are of one family, however it is set; others are not."""

from functools import cache

import numpy as np
import pytest
from music21.corpus.chorales import ChoraleListRKBWV

from partita.data import library
from partita.data.corpus import Corpus
from partita.data.scores import Piece, find_melody, read_pieces
from partita.data.tunes import tune_families

TUNE = [69, 71, 72, 74, 72, 71, 69, 76, 74, 72, 71, 69, 68, 69, 71, 64, 67, 65, 64, 62, 60, 64, 69, 68, 71, 69]
OTHER = [60, 67, 64, 65, 69, 67, 72, 70, 69, 67, 62, 64, 65, 60, 59, 62, 67, 71, 72, 76, 74, 69, 65, 67, 60, 64]


def piece(name, *parts, beat=1.0):
    """A score of parts, each a list of (pitch, length)."""
    rows = []
    for number, notes in enumerate(parts):
        ends = np.cumsum([length for _, length in notes])
        rows += [(end - length, length, pitch, number) for (pitch, length), end in zip(notes, ends, strict=True)]
    onset, duration, pitch, part = np.array(sorted(rows)).T
    beats = np.arange(0, (onset + duration).max(), beat)
    line = find_melody(onset, duration, pitch.astype(int))
    pitch, part, unused = pitch.astype(int), part.astype(int), ((0, 0), [], line, 0, name)
    return Piece(name, onset, duration, pitch, part, beats, beats, beat, *unused)


def plain(tune, length=1.0, up=0):
    return [(pitch + up, length) for pitch in tune]


def ornamented(tune):
    """Passing and neighboring notes on half of the beats."""
    notes = []
    for number, pitch in enumerate(tune):
        notes += [(pitch, 0.5), (pitch + (-1) ** number, 0.5)] if number % 2 else [(pitch, 1.0)]
    return notes


@pytest.mark.parametrize(
    "other",
    [
        piece("transposed", plain(TUNE, up=-5)),
        piece("augmented", plain(TUNE, 2.0)),
        piece("repeated", [(pitch, 0.5) for pitch in TUNE for _ in range(2)]),
        piece("with fermatas", [(pitch, 3.0 if i % 7 == 6 else 1.0) for i, pitch in enumerate(TUNE)]),
        piece("ornamented", ornamented(TUNE)),
        piece("below an obbligato", plain([p + 12 for p in reversed(OTHER)]), plain(TUNE)),
        piece("in a longer piece", plain(OTHER + TUNE)),
    ],
    ids=lambda other: other.id,
)
def test_a_tune_is_known_again(other):
    found = tune_families([piece("tune", plain(TUNE)), piece("other", plain(OTHER, up=12)), other])
    assert found == ["tune", "other", "tune"] if other.id != "in a longer piece" else len(set(found)) == 1


def test_a_family_is_everybody_who_is_kin_to_somebody():
    one, two, third = TUNE[:22], TUNE[4:20] + OTHER[:16], OTHER
    assert tune_families([piece("a", plain(one)), piece("b", plain(third))]) == ["a", "b"]
    assert tune_families([piece(n, plain(t)) for n, t in (("a", one), ("b", third), ("c", two))]) == ["a"] * 3


def test_what_is_too_short_to_tell_is_alone():
    assert tune_families([piece("a", plain([60, 62, 64])), piece("b", plain([60, 62, 64]))]) == ["a", "b"]


@cache
def parsed(path, name):
    return read_pieces(path, name)


def chorales(*titles):
    """Settings by title, as the catalog of Riemenschneider's collection in music21 has them."""
    listed = ChoraleListRKBWV().byRiemenschneider.values()
    return {f"bach/bwv{row['bwv']}": row["title"] for row in listed if row["title"] in titles}


def test_settings_of_a_chorale_are_a_family():
    # BWV 279 and 158.4 are the same setting, as are 398 and 197.7.
    catalog = chorales("Jesu, meine Freude", "Wie schön leuchtet der Morgenstern", "Christ lag in Todesbanden")
    assert "bach/bwv279" in catalog
    catalog |= {"bach/bwv158.4": "Christ lag in Todesbanden", "bach/bwv398": "398", "bach/bwv197.7-a": "398"}
    files = library.score_files(["bach"])
    pieces = [parsed(files[name], name)[0] for name in catalog]
    found: dict[str, set[str]] = {}
    for name, family in zip(catalog, tune_families(pieces), strict=True):
        found.setdefault(catalog[name], set()).add(family)
    assert len(found) == 4
    assert all(len(families) == 1 for families in found.values())
    assert len(set.union(*found.values())) == 4


def test_no_tune_is_on_both_sides_of_a_split(tmp_path, monkeypatch):
    catalog = chorales(
        "Christ lag in Todesbanden",
        "Herzliebster Jesu, was hast du verbrochen",
        "Jesu, der du meine Seele",
        "Jesu, meine Freude",
        "Nun lob’, mein’ Seel’, den Herren",
        "Was mein Gott will, das g’scheh’ allzeit",
        "Wie schön leuchtet der Morgenstern",
    )
    files = library.score_files(["bach"])
    monkeypatch.setattr(library, "score_files", lambda collections: {name: files[name] for name in sorted(catalog)})
    monkeypatch.setattr(
        library, "parse_scores", lambda scores: ([p for name, path in scores for p in parsed(path, name)], [])
    )
    for limit in (None, 20):
        source = Corpus(validation=0.3, test=0.3, limit=limit, cache_dir=str(tmp_path))
        source.setup()
        titles = [{catalog[name] for name in source._splits[split]} for split in ("train", "validation", "test")]
        assert all(titles)
        assert sum(map(len, titles)) == len(set.union(*titles))
