"""Parsed scores are kept, whole or not at all; what cannot be parsed is named."""

import numpy as np
import pytest

from partita.data import library
from partita.data.scores import read_pieces
from partita.errors import PartitaError

GOOD = "X:1\nM:4/4\nL:1/4\nK:C\nCDEF|GABc|]\n"


@pytest.fixture
def tunes(tmp_path, monkeypatch):
    """Three score files, one of them broken, in place of the corpus."""
    paths = {}
    for name, text in (("bach/a", GOOD), ("bach/b", GOOD.replace("K:C", "K:D")), ("bach/broken", "not a score")):
        path = tmp_path / f"{name.split('/')[1]}.abc"
        path.write_text(text)
        paths[name] = path
    paths["bach/broken"] = paths["bach/broken"].rename(tmp_path / "broken.mxl")
    monkeypatch.setattr(library, "score_files", lambda collections: paths)
    return tmp_path


@pytest.fixture
def parsed_here(monkeypatch):
    """Scores are parsed in this process, not in others that import everything first."""

    def parse(scores):
        good = [(name, path) for name, path in scores if path.suffix == ".abc"]
        return [piece for name, path in good for piece in read_pieces(path, name)], ["bach/broken: not a score"]

    monkeypatch.setattr(library, "parse_scores", parse)


def test_kept_scores_are_those_that_were_parsed(tunes, monkeypatch):
    first, skipped = library.load_pieces(["bach"], None, tunes / "cache")
    assert [piece.id for piece in first] == ["bach/a", "bach/b"]
    assert len(skipped) == 1
    assert skipped[0].startswith("bach/broken: ")
    monkeypatch.setattr(library, "parse_scores", lambda scores: pytest.fail("parsed again"))
    again, skipped_again = library.load_pieces(["bach"], None, tunes / "cache")
    assert skipped_again == skipped
    for one, other in zip(first, again, strict=True):
        for name, value in vars(one).items():
            assert np.array_equal(getattr(other, name), value)
            assert type(getattr(other, name)) is type(value)


def test_files_in_the_working_directory_do_not_stand_for_modules(tunes, monkeypatch):
    (tunes / "copy.py").write_text("raise SystemExit\n")
    monkeypatch.chdir(tunes)
    pieces, _ = library.load_pieces(["bach"], None, tunes / "cache")
    assert [piece.id for piece in pieces] == ["bach/a", "bach/b"]


@pytest.mark.parametrize("damage", [lambda whole: whole[: len(whole) // 2], lambda whole: b""])
def test_a_damaged_file_is_made_anew(tunes, parsed_here, damage):
    first, _ = library.load_pieces(["bach"], None, tunes / "cache")
    (file,) = (tunes / "cache").iterdir()
    file.write_bytes(damage(file.read_bytes()))
    again, _ = library.load_pieces(["bach"], None, tunes / "cache")
    assert [piece.id for piece in again] == [piece.id for piece in first]
    assert library._load(file) is not None


def test_interrupted_parsing_leaves_nothing(tunes, monkeypatch):
    def interrupted(scores):
        raise KeyboardInterrupt

    monkeypatch.setattr(library, "parse_scores", interrupted)
    with pytest.raises(KeyboardInterrupt):
        library.load_pieces(["bach"], None, tunes / "cache")
    assert not (tunes / "cache").exists()


def test_nothing_readable(tmp_path, monkeypatch):
    (tmp_path / "broken.mxl").write_text("not a score")
    monkeypatch.setattr(library, "score_files", lambda collections: {"bach/broken": tmp_path / "broken.mxl"})
    with pytest.raises(PartitaError, match="bach/broken"):
        library.load_pieces(["bach"], None, tmp_path)


def test_a_folder_that_cannot_be_written_only_warns(tunes, parsed_here):
    (tunes / "file").write_text("")
    with pytest.warns(UserWarning, match="PARTITA_CACHE"):
        pieces, _ = library.load_pieces(["bach"], None, tunes / "file")
    assert len(pieces) == 2


def test_where_the_cache_is(monkeypatch, tmp_path):
    monkeypatch.setenv("PARTITA_CACHE", str(tmp_path / "a"))
    assert library.default_cache_dir() == tmp_path / "a"
    monkeypatch.delenv("PARTITA_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "b"))
    assert library.default_cache_dir() == tmp_path / "b" / "partita"


def test_every_piece_is_there_once():
    # The corpus has some chorales twice, in two formats, and analyses of others beside them.
    names = library.score_files(["bach"])
    assert len(names) == 410
    assert names["bach/bwv277"].suffix == ".mxl"
    assert not any(path.suffix == ".rntxt" for path in names.values())
