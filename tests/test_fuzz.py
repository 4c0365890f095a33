"""The first cases of each kind of the attack that ``benchmarks/fuzz.py`` runs whole."""

import os
from itertools import count
from random import Random

import pytest

from fuzzing import KINDS
from fuzzing.confined import Hang, confined
from fuzzing.harness import run_case
from fuzzing.place import Place, World

CASES = 50


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    world = World.made(tmp_path_factory.mktemp("world"))
    yield world
    world.hub.close()


@pytest.mark.parametrize("kind", KINDS)
def test_spoiled_input_is_used_or_refused_with_a_message(world, kind):
    """No traceback, nothing executed, nothing written elsewhere, no more than 10 s or 2 GB, no home in an upload."""
    outcomes = [run_case(world, kind, index) for index in range(CASES)]
    assert not [f"{outcome.name}: {failure}" for outcome in outcomes for failure in outcome.failures]
    # the cases are neither harmless nor hopeless
    assert {"done", "refused"} == {outcome.verdict for outcome in outcomes}


def test_a_case_is_the_same_every_time(world, tmp_path):
    for kind, make in KINDS.items():
        commands = []
        for again in ("one", "two"):
            place = Place(world, tmp_path / again / kind / "case")
            place.folder.mkdir(parents=True)
            made = make(Random("0 x 1"), place)
            commands.append(str(made).replace(str(place.folder), ""))
        assert commands[0] == commands[1]


@pytest.mark.parametrize(
    ("work", "told"),
    [
        (lambda root: os.system("true"), "os.system"),
        (lambda root: __import__("pickle").loads(b"cos\ngetcwd\n."), "pickle.find_class"),
        (lambda root: (root.parent / "elsewhere").write_text("x"), "elsewhere"),
        (lambda root: (root / "link" / "elsewhere").write_text("x"), "elsewhere"),
        (lambda root: __import__("subprocess").run(["true"]), "subprocess.Popen"),
    ],
)
def test_what_is_forbidden_is_noticed(tmp_path, work, told):
    root = tmp_path / "root"
    root.mkdir()
    (root / "link").symlink_to(tmp_path)
    with confined(root) as notes:
        (root / "own").write_text("x")
        assert not notes
        work(root)
    assert told in notes[0]
    work(root)
    assert len(notes) <= 2  # nobody watches any more


def _forever():
    for _ in count():
        pass


def test_what_takes_too_long_or_too_much_is_ended(tmp_path, monkeypatch):
    monkeypatch.setattr("fuzzing.confined.SECONDS", 0.2)
    with pytest.raises(Hang), confined(tmp_path):
        _forever()
    monkeypatch.setattr("fuzzing.confined.PATIENCE", 0.2)
    read, _ = os.pipe()
    with pytest.raises(Hang), confined(tmp_path):
        os.read(read, 1)
    with pytest.raises(MemoryError), confined(tmp_path):
        bytearray(3 << 30)
    bytearray(3 << 20)


def test_a_home_folder_in_an_upload_is_noticed(world):
    from fuzzing.harness import _published

    place = Place(world, world.home / "cases" / "upload-test")
    place.write("upload/samples/x.json", "{}")
    assert not _published(place)
    place.write("upload/README.md", f"trained on {world.home}/music")
    assert len(_published(place)) == 1
