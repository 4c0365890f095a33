"""What data is made of: as the installed packages state it, and restricted scores only for who asks for them."""

import re
import zipfile
from importlib.metadata import metadata

import pytest

from partita.data import library
from partita.data.arrangement import Arrangements
from partita.data.corpus import Corpus
from partita.data.folder import Folder
from partita.data.hub import HubData
from partita.data.licenses import RESTRICTED, restriction
from partita.data.mixture import Mixture
from partita.data.overview import overview, provenance
from partita.data.scores import read_pieces
from partita.data.shards import Shards
from partita.data.soundfont import SoundFont

GOOD = "X:1\nM:4/4\nL:1/4\nK:C\nCDEF|GABc|]\n"
NOTICE = re.compile(rb"<rights>[^<]*(?:\xc2\xa9|ORPHEUS)|^!!!YEM: Rights .* reserved", re.MULTILINE)


def content(path):
    if path.suffix != ".mxl":
        return path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        return b"".join(archive.read(name) for name in archive.namelist())


@pytest.mark.parametrize("collection", [name for name in library.GENRES if name != "essenFolksong"])
def test_scores_that_reserve_rights_are_those_that_are_restricted(collection):
    scores = library.score_files([collection])
    if collection == "palestrina":  # 1,318 alike
        scores = dict(list(scores.items())[::40])
    marked = {name for name, path in scores.items() if NOTICE.search(content(path))}
    assert marked == {name for name in scores if restriction(name)}


def test_what_the_packages_state():
    folder = next(iter(library.score_files(["essenFolksong"]).values())).parent
    assert "non-commercial" in (folder / "license.txt").read_text()
    assert "may not be used for commercial uses" in (folder.parent / "license.txt").read_text()
    assert metadata("pretty_midi")["License"] == "MIT"
    data = SoundFont().path.read_bytes()
    information = data[12 : data.index(b"sdta")]
    assert b"TimGM6mb" in information
    assert not re.search(b"ICOP|icens|GPL", information)
    marked = [b"Margaret Greentree" in content(path) for path in list(library.score_files(["bach"]).values())[::10]]
    assert sum(marked) > 0.7 * len(marked)


@pytest.fixture
def scores(tmp_path, monkeypatch):
    """Three scores, of which two are restricted, in place of the corpus."""
    (tmp_path / "tune.abc").write_text(GOOD)
    names = ("monteverdi/madrigal.3.1", "monteverdi/madrigal.5.4", "palestrina/Agnus")
    monkeypatch.setattr(library, "score_files", lambda collections: dict.fromkeys(names, tmp_path / "tune.abc"))
    here = lambda scores: ([piece for name, path in scores for piece in read_pieces(path, name)], [])  # noqa: E731
    monkeypatch.setattr(library, "parse_scores", here)
    return str(tmp_path / "cache")


def test_restricted_scores_are_left_out_unless_asked_for(scores):
    chosen = ("monteverdi", "palestrina")
    source, everything = (Corpus(collections=chosen, restricted=r, cache_dir=scores) for r in (False, True))
    source.setup()
    assert [*source._pieces] == ["monteverdi/madrigal.3.1"]
    (line,) = overview(source)
    assert line.startswith("1 piece")
    assert line.endswith("2 restricted scores left out (restricted: true includes them)")
    assert "palestrina" not in " ".join(provenance(source))
    everything.setup()
    assert len(everything._pieces) == 3
    assert "left out" not in overview(everything)[0]
    told = " ".join(provenance(everything))
    assert "reserves rights" in told
    assert "Ut Orpheus" in told


def test_nothing_but_restricted_scores_is_refused_with_what_to_do():
    with pytest.raises(ValueError, match=r"palestrina reserves rights.*restricted: true"):
        Corpus(collections=("palestrina",))
    assert set(RESTRICTED) >= {"palestrina", "essenFolksong"}


def test_sources_say_what_they_are_made_of(tmp_path):
    lines = provenance(
        Mixture(
            [Corpus(), Corpus(arrangements=Arrangements(mixed=1.0)), Folder(str(tmp_path), license="CC BY 4.0")],
            [1, 1, 1],
        )
    )
    assert len(lines) == 3
    assert "scores of bach" in lines[0]
    assert "Margaret Greentree" in lines[0]
    assert "TimGM6mb.sf2" in lines[1]
    assert lines[2] == f"made of audio files in {tmp_path.name}: CC BY 4.0"
    assert "license not stated; state it with `license` of the folder" in provenance(Folder(str(tmp_path)))[0]


def test_the_option_that_states_a_license_is_that_of_the_source(tmp_path):
    own = [HubData(path=str(tmp_path)), Shards(str(tmp_path)), Folder(str(tmp_path))]
    options = ("`options.license` of the data", "`license` of the shards", "`license` of the folder")
    for source, option in zip(own, options, strict=True):
        (line,) = provenance(source)
        assert f"license not stated; state it with {option}" in line
    assert provenance(Mixture(own, [1, 1, 1])) == [line for source in own for line in provenance(source)]
