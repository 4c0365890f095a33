"""Chords, tempo, key and beats as inputs of generation, in Python and on the command line."""

import json
import random

import numpy as np
import pytest
import soundfile
import torch

import partita
import toys  # noqa: F401  (registers the parts)
from command_line import run
from partita import PartitaError
from partita.core.contracts import Clip
from partita.recipe.plan import load_recipe
from partita.system.checked_request import CheckedRequest
from partita.system.prompts import Row, prompt_warnings, with_structure
from partita.system.request import Request
from partita.system.system import System

RECIPE = """
tokenizers: {acoustic: toy-codec}
conditioners:
  chords: {name: chords, frame_rate: 40}
  beats: {name: beats, frame_rate: 40}
  key: {name: key, dim: 8}
  instruments: {name: instruments, dim: 8}
stages:
  main:
    generator:
      preset: autoregressive-tiny
      backbone: {width: 64, depth: 3, num_heads: 4, again_every: 2}
    target: acoustic
    given: {chords: add, beats: add, key: cross, instruments: cross}
    window: 1.0
data: {name: corpus, limit: 12}
"""
ROOTS = {"C": 0, "Dm": 2, "Em": 4, "F": 5, "G": 7, "Am": 9}
BEAT, DOWNBEAT = 12, 13


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("structure")
    (folder / "song.yaml").write_text(RECIPE)
    torch.manual_seed(0)
    System(load_recipe(folder / "song.yaml")).save(folder / "system")
    return folder / "system"


@pytest.fixture(scope="module")
def system(saved):
    return partita.load(saved)


def inputs(system, duration=4.0, **options):
    return CheckedRequest.of(system, Request(duration=duration, **options)).inputs


def test_a_progression_is_spread_evenly_or_a_bar_each(system):
    assert inputs(system, chords="C | G, Am  F")["chords"] == [
        [(0, 1, "C:maj"), (1, 2, "G:maj"), (2, 3, "A:min"), (3, 4, "F:maj")]
    ]
    both = inputs(system, duration=5.0, chords="C G", bpm=120)
    assert both["chords"] == [[(0, 2, "C:maj"), (2, 4, "G:maj"), (4, 5, "C:maj")]]
    assert both["tempo"] == [120]
    assert inputs(system, chords=[(1, 2, "G:7")])["chords"] == [[(1, 2, "G:7")]]
    several = inputs(system, prompts={"key": ["C", None]}, chords=["C", None], bpm=[90, 120])
    assert several["chords"] == [[(0, 2.666667, "C:maj"), (2.666667, 4, "C:maj")], None]  # bars of 2⅔ s
    assert several["tempo"] == [90, 120]
    assert inputs(system, key="A minor", beats=[0.5, 9.0]) == {"key": ["A minor"], "beats": [[0.5]]}


FILES = {
    "a.lab": "0.0 1.5 C:maj\n1.5\t4.0\tA:min\n",
    "a.txt": "# by hand\n0 1.5 C\n\n1.5 4 Am\n",
    "a.json": '[[0, 1.5, "C"], [1.5, 4, "Am"]]',
    "b.json": '{"chords": [[0, 1.5, "C:maj"], [1.5, 4, "A:min"]], "key": "C major"}',
    "a.csv": "start,end,chord\n0,1.5,C\n1.5,4,Am\n",
    "b.csv": "\ufeffEnd;Start;Label\n1.5;0;C\n4;1.5;Am\n",
    "a.tsv": "0\t1.5\tC\n1.5\t4\tAm\n",
}


@pytest.mark.parametrize("name", FILES)
def test_files_of_chords(system, tmp_path, name):
    (tmp_path / name).write_text(FILES[name], encoding="utf-8")
    expected = [[(0, 1.5, "C:maj"), (1.5, 4, "A:min")]]
    assert inputs(system, chords=str(tmp_path / name))["chords"] == expected
    assert inputs(system, chords=tmp_path / name)["chords"] == expected


WRONG = {
    "a.lab": ("0 1 C\n1 2 Hm\n2 3 Foo\n3 4 Hm\n", "no chords: 'Hm', 'Foo'. Write chords as C, Am"),
    "b.lab": ("0 1\n", "expected rows of start, end and chord"),
    "c.lab": ("0 2 C\n1 3 G\n", "expected rows of start, end and chord that do not overlap"),
    "d.lab": ("2 1 C\n", "expected rows of start, end and chord"),
    "e.lab": ("0 inf C\n", "expected rows of start, end and chord"),
    "a.json": ("{", "expected rows of start, end and chord"),
    "b.json": ("[[0, 1, 3]]", "expected rows of start, end and chord"),
    "c.json": ("[" * 100000, "expected rows of start, end and chord"),
    "a.csv": ("begin,finish\n", "expected rows of start, end and chord"),
    "a.mid": ("x", "a file of chords is called .lab, .txt, .json, .csv or .tsv"),
    "f.lab": ("\udcff", "UTF-8"),
}


@pytest.mark.parametrize("name", WRONG)
def test_files_that_hold_no_chords(system, tmp_path, name):
    content, message = WRONG[name]
    (tmp_path / name).write_text(content, errors="surrogateescape")
    with pytest.raises(PartitaError) as error:
        inputs(system, chords=tmp_path / name)
    assert message in str(error.value)
    assert name in str(error.value)


def test_chords_that_are_longer_than_the_clip_are_cut(system):
    with pytest.warns(UserWarning, match="the chords last 16 s, so they are cut at 4 s"):
        found = inputs(system, chords="C G Am F", bpm=60)
    assert found["chords"] == [[(0, 4, "C:maj")]]
    with pytest.warns(UserWarning, match="the chords last 9 s"):
        found = inputs(system, chords=[(0, 3, "C:maj"), (3, 5, "F:maj"), (5, 9, "G:maj")])
    assert found["chords"] == [[(0, 3, "C:maj"), (3, 4, "F:maj")]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"chords": "C Foo Am Bar"}, "chords: no chords: 'Foo', 'Bar'. Write chords as C, Am"),
        ({"chords": " | "}, "chords: there are none"),
        ({"chords": "missing.lab"}, "missing.lab"),
        ({"chords": [(0, 1, "H")]}, "rows of start, end and chord"),
        ({"chords": 3}, "rows of start, end and chord"),
        ({"chords": ["C", "G"], "seed": [1, 2, 3]}, "chords is a list of 2 for 3 clips"),
        (
            {"chords": "C", "prompts": {"chords": [[(0, 1, "C")]]}},
            "chords is given twice, as `chords` and as the input",
        ),
        ({"bpm": 90, "prompts": {"tempo": [80]}}, "tempo is given twice, as `bpm` and as the input tempo"),
        ({"bpm": 1e300, "chords": "C"}, "bpm must be from 1 to 1000 beats per minute"),
        ({"bpm": "fast"}, "bpm cannot be 'fast'; expected beats per minute"),
        ({"key": "H minor"}, "key: 'H minor' is no key: write it as G minor"),
        ({"beats": "missing.wav"}, "missing.wav"),
        ({"beats": torch.zeros(1, 8000)}, "none are heard"),
    ],
)
def test_mistakes_are_named(system, options, message):
    with pytest.raises(PartitaError) as error:
        inputs(system, **options)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("options", "name"),
    [({"chords": "C"}, "chords"), ({"bpm": 90}, "tempo"), ({"key": "C"}, "key"), ({"beats": [1]}, "beats")],
)
def test_a_system_that_does_not_read_it_says_so(saved_toy, options, name):
    with pytest.raises(PartitaError, match=f"this system takes no {name}: it reads only text"):
        partita.load(saved_toy).generate(["tone 1"], **options)


def test_what_the_stage_is_given_of_a_story(system):
    """Chords cover the whole clip, whatever else changes."""
    story = partita.Story([(0, "C major"), (1.5, "G major")])
    found = inputs(system, duration=3.0, prompts={"key": [story]}, chords="C G Am")
    assert found["chords"] == [[(0, 1, "C:maj"), (1, 2, "G:maj"), (2, 3, "A:min")]]
    made = system.generate({"key": [story]}, chords="C G Am", duration=3.0)
    assert made.shape == (1, 1, 12000)


def clicks(path, tempo, seconds=6.0, rate=22050):
    """A short noise on each beat, a quarter of a second late."""
    audio = np.zeros(round(seconds * rate))
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 800) * np.linspace(1, 0, 800)
    for time in np.arange(0.25, seconds - 0.1, 60 / tempo):
        audio[round(time * rate) :][:800] += noise
    soundfile.write(path, audio, rate)
    return path


def test_beats_of_a_recording(system, tmp_path):
    pytest.importorskip("librosa")
    path = clicks(tmp_path / "clip.wav", 120)
    (beats,) = inputs(system, duration=5.0, beats=path)["beats"]
    expected = np.arange(0.25, 5, 0.5)
    assert max(beats) < 5
    assert all(min(abs(np.array(beats) - time)) < 0.07 for time in expected[1:-1])


def test_the_command_line_and_its_manifest(saved, system, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    told = {"monkeypatch": monkeypatch, "capfd": capfd}
    (tmp_path / "keys.jsonl").write_text('{"key": "C major"}\n{"key": "A minor", "duration": 2.0}\n')
    arguments = ["--prompts", "keys.jsonl", "--chords", "C G Am F", "--bpm", "120", "-d", "1"]
    status, output = run("generate", saved, *arguments, "-o", "one.wav", **told)
    assert (status, "the chords last 8 s" in output) == (0, True)
    rows = [json.loads(line) for line in (tmp_path / "one.jsonl").read_text().splitlines()]
    assert [row["chords"] for row in rows] == [[[0, 1, "C:maj"]], [[0, 2, "C:maj"]]]
    assert [row["tempo"] for row in rows] == [120, 120]
    status, _ = run("generate", saved, "--prompts", "one.jsonl", "-o", "two.wav", **told)
    assert status == 0
    for i in (1, 2):
        assert np.array_equal(soundfile.read(f"one-{i}.wav")[0], soundfile.read(f"two-{i}.wav")[0])
    for wrong, message in (
        (["--chords", "C Hm Foo"], "no chords: 'Hm', 'Foo'"),
        (["--key", "H"], "'H' is no key"),
        (["--beats-from", "no.wav"], "no.wav"),
        (["--bpm", "-3"], "bpm cannot be"),
    ):
        status, output = run("generate", saved, *wrong, "-o", "out.wav", **told)
        assert (status, message in " ".join(output.split())) == (2, True), output
    with pytest.raises(PartitaError, match=r"list line 1: key is given twice"):
        with_structure(system, [Row({"key": "C major"}, where="list line 1")], Request(key="A minor"))


def test_unknown_instruments_and_keys_are_warned_of(saved):
    system = partita.load(saved)
    for name, value in (("instruments", ["flute"]), ("key", "G major")):
        part = system.conditioners[name].train()
        part(part.prepare([Clip({name: value}, 1.0)]))
        part.eval()
    found = prompt_warnings(system, [Row({"instruments": "flute, zither", "key": "A minor"})])
    assert len(found) == 2
    assert any("'zither'" in warning for warning in found)
    assert any("'A minor'" in warning for warning in found)


def examples(draw, count):
    """Clips of a second with random chords and beats, and their codes: the root of the chord, or a beat."""
    clips, codes = [], torch.zeros(count, 1, 40, dtype=torch.long)
    for row in codes[:, 0]:
        change = draw.randint(8, 32)
        first, second = draw.sample(list(ROOTS), 2)
        labels = {name: f"{name.rstrip('m')}:{'min' if name.endswith('m') else 'maj'}" for name in ROOTS}
        row[:change], row[change:] = ROOTS[first], ROOTS[second]
        chords = [(0, change / 40, labels[first]), (change / 40, 1.0, labels[second])]
        start, step = draw.randint(0, 20), draw.randint(8, 24)
        beats = list(range(start, 40, step))
        downbeats = beats[draw.randint(0, 3) :: 4]
        row[beats], row[downbeats] = BEAT, DOWNBEAT
        times = {"beats": [at / 40 for at in beats], "downbeats": [at / 40 for at in downbeats]}
        clips.append(Clip({"chords": chords, **times}, 1.0, seed=0))
    return clips, codes


def test_chords_and_beats_decide_what_is_generated(saved):
    """A stage learns codes that follow from chords and beats; then every frame has what a request asks for."""
    system, draw = partita.load(saved), random.Random(0)
    stage = system.stages["main"].train()
    optimizer = torch.optim.AdamW(stage.parameters(), lr=3e-3)
    torch.manual_seed(0)
    for step in range(240):
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * min(1, (240 - step) / 120)
        clips, codes = examples(draw, 16)
        conditions = {name: part(part.prepare(clips)) for name, part in system.conditioners.items()}
        loss = stage.loss(codes, torch.ones(16, 40, dtype=torch.bool), conditions)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    greedy = {"temperature": 0.0, "guidance": 1.0}
    made = system.generate_representations(chords="C Am F G", bpm=200, duration=4.8, sampling=greedy)
    # in windows of a second: bars of 1.2 s, which are 48 frames, and beats of 0.3 s, which are 12
    expected = torch.tensor([0, 9, 5, 7]).repeat_interleave(48)
    expected[::12] = BEAT
    expected[::48] = DOWNBEAT
    assert (made["acoustic"].values[0, 0] == expected).float().mean() > 0.97
    other = system.generate_representations(chords="Dm Em", beats=[0.5], duration=1.0, sampling=greedy)
    expected = torch.tensor([2, 4]).repeat_interleave(20)
    expected[20] = BEAT
    assert (other["acoustic"].values[0, 0] == expected).float().mean() > 0.9
