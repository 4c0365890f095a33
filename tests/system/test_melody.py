"""A melody of any kind as an input of generation: ``melody=`` and ``--melody``."""

import json
import math

import numpy as np
import pytest
import soundfile
import torch

import partita
import toys  # noqa: F401  (registers the parts)
from command_line import run
from partita import PartitaError
from partita.errors import RecipeError
from partita.recipe.plan import load_recipe
from partita.system.checked_request import CheckedRequest
from partita.system.prompts import Row, input_warnings, with_input
from partita.system.request import Request
from partita.system.system import System

RECIPE = """
tokenizers: {acoustic: {name: toy-codec}}
conditioners:
  music:
    name: quantized
    num_codebooks: 2
    cardinality: 8
    samples: 8
    embedding:
      preset: mulan-tiny
      window: 0.5
      audio_tower: {width: 16, depth: 1}
      text_tower: {width: 16, depth: 1, num_heads: 2}
  melody:
    name: quantized
    num_codebooks: 3
    cardinality: 8
    samples: 8
    embedding:
      preset: melody-embedding-tiny
      window: 1.0
      stride: 0.5
      seconds: 2.0
      aligned: false
      audio_tower: {width: 4, hidden: 8}
stages:
  main:
    generator: {preset: musiclm-tiny, backbone: {width: 32, depth: 1}}
    target: acoustic
    given: {music: prepend, melody: prepend}
    window: 0.5
data: toy-sines
"""


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("melody")
    (folder / "song.yaml").write_text(RECIPE)
    torch.manual_seed(0)
    System(load_recipe(folder / "song.yaml")).save(folder / "system")
    return folder / "system"


@pytest.fixture(scope="module")
def system(saved):
    return partita.load(saved)


def hum(path, seconds=1.0, rate=8000, channels=1, level=0.3):
    time = np.arange(round(seconds * rate)) / rate
    tones = level * np.sin(2 * math.pi * 220 * 2 ** (np.floor(4 * time) % 5 / 12) * time)
    soundfile.write(path, np.repeat(tones[:, None], channels, 1), rate)
    return path


def given(system, request):
    """The condition of the melody that the stage of a request gets."""
    from partita.system.clip_inputs import ClipInputs

    checked, conditioner = CheckedRequest.of(system, request), system.conditioners["melody"]
    inputs = ClipInputs(checked.inputs, (0.0,), checked.seconds, system.sample_rate)
    return conditioner(conditioner.prepare(inputs.clips(conditioner, len(checked.seeds), 0, (0.0, checked.seconds))))


def test_the_melody_is_the_field_that_the_system_reads(system, tmp_path):
    path = hum(tmp_path / "hum.wav", 2.0)
    by_option = given(system, Request(["a flute", "a harp"], melody=path))
    by_field = given(system, Request({"text": ["a flute", "a harp"], "cover": [path, path]}))
    assert by_option.mask.tolist() == [[True] * 3] * 2
    assert torch.equal(by_option.values, by_field.values)
    alone = given(system, Request(melody=[path, None], seed=[1, 2]))
    assert alone.mask.any(1).tolist() == [True, False]
    many = system.generate(melody=torch.randn(1, 8000).clamp(-1, 1), seed=[1, 2], duration=0.3)
    assert len(many) == 2
    with pytest.raises(PartitaError, match="given twice, as `melody` and as the input cover"):
        system.generate({"cover": [path]}, melody=path)


def test_a_recording_in_place_of_the_text_is_announced(system, tmp_path):
    path = hum(tmp_path / "like.wav")
    with pytest.warns(UserWarning, match="music reads audio instead of text where a prompt has both"):
        both = system.generate({"text": ["harp"], "audio": [path]}, duration=0.3)
    alone = system.generate({"audio": [path]}, duration=0.3)
    assert torch.equal(both, alone)
    mixed = {"text": ["harp", None], "audio": [None, path]}
    assert not [w for w in input_warnings(system, mixed) if "instead of" in w]


def test_another_melody_makes_other_music_and_silence_is_no_melody(system, tmp_path):
    one, other = hum(tmp_path / "one.wav", 2.0), hum(tmp_path / "other.wav", 0.7)
    codes = [system.generate_representations(["harp"], melody=m, duration=0.5)["acoustic"].values for m in (one, other)]
    assert not torch.equal(*codes)
    silent = hum(tmp_path / "silent.wav", 1.0, level=0.0)
    without, quiet = (system.generate(["harp"], melody=m, duration=0.3) for m in (None, silent))
    assert torch.equal(without, quiet)


@pytest.mark.parametrize(
    ("prompts", "seed", "message"),
    [
        (5, 0, "text takes a list with one prompt for each clip, not 5"),
        ({"text": None}, 0, "text takes a list with one prompt for each clip, not None"),
        ({"text": []}, 0, r"text takes a list with one prompt for each clip, not \[\]"),
        (None, [], "seed"),
    ],
)
def test_a_melody_with_prompts_or_seeds_that_cannot_be_counted(system, prompts, seed, message):
    with pytest.raises(PartitaError, match=message):
        system.generate(prompts, melody=torch.zeros(1, 800), seed=seed)


@pytest.mark.parametrize(
    ("seconds", "rate", "channels"), [(0.1, 44100, 1), (600.0, 8000, 1), (3.0, 8000, 2), (1.0, 96000, 6)]
)
def test_a_melody_of_any_length_rate_and_channels(system, tmp_path, seconds, rate, channels):
    path = hum(tmp_path / "hum.flac", seconds, rate, channels)
    assert system.generate(["harp"], melody=path, duration=0.3).isfinite().all()
    condition = given(system, Request(["harp"], melody=path))
    assert condition.mask.tolist() == [[True] * (1 if seconds <= 1 else 3)]
    mono = hum(tmp_path / "start.wav", min(seconds, 3.0), rate)
    assert torch.equal(condition.values, given(system, Request(["harp"], melody=mono)).values)


@pytest.mark.parametrize("seconds", [0.1, 0.4, 30.0])
def test_an_aligned_melody_can_be_shorter_or_longer_than_the_clip(tmp_path, seconds):
    (tmp_path / "song.yaml").write_text(RECIPE.replace("aligned: false", "aligned: true"))
    torch.manual_seed(0)
    system = System(load_recipe(tmp_path / "song.yaml", ["stages.main.given={music: prepend, melody: add}"]))
    path = hum(tmp_path / "hum.wav", seconds)
    codes = system.generate_representations(["harp"], melody=path, duration=1.5)["acoustic"].values
    without = system.generate_representations(["harp"], duration=1.5)["acoustic"].values
    assert codes.shape == without.shape
    assert not torch.equal(codes, without)


def test_a_mistake_in_the_melody_is_the_only_one(tmp_path):
    """Stages after the one that is given the melody still find what it generates."""
    with pytest.raises(RecipeError) as error:
        System.outline(load_recipe("musiclm-melody-tiny", ["conditioners.melody.embedding.dim=97"]))
    assert [problem.key for problem in error.value.problems] == ["conditioners.melody.embedding"]


def test_of_a_long_file_only_the_beginning_is_read(system, tmp_path, monkeypatch):
    from partita.core import excerpt

    read, lengths = excerpt.read_clip, []
    monkeypatch.setattr(excerpt, "read_clip", lambda *a: lengths.append(a[2]) or read(*a))
    path = hum(tmp_path / "hum.wav", 60.0)
    assert given(system, Request(["harp"], melody=path)).mask.all()
    assert given(system, Request(["harp"], melody=partita.Excerpt(path, start=30.0))).mask.all()
    assert given(system, Request(["harp"], melody=partita.Excerpt(path, last=1.0))).mask.sum() == 1
    assert set(lengths) == {2.0, None}  # the last second is read as it is asked for


def test_captions_of_any_length(system, tmp_path):
    path = hum(tmp_path / "hum.wav")
    for caption in ("flute " * 2000, "", "♪"):
        assert system.generate([caption], melody=path, duration=0.3).isfinite().all()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"hum.wav: the file is empty"),
        (b"do re mi", r"hum.wav: cannot be read as audio"),
        (None, r"hum.wav: there is no such file"),
    ],
)
def test_files_that_are_no_melody(saved, tmp_path, content, message):
    path = tmp_path / "hum.wav"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(PartitaError, match=message):
        partita.load(saved).generate(["harp"], melody=path)


def test_the_command_line_takes_a_melody_and_its_manifest_keeps_it(saved, system, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    hum("hum.wav")
    told = {"monkeypatch": monkeypatch, "capfd": capfd}
    status, output = run("generate", saved, "harp", "--melody", "hum.wav", "-d", "0.3", "-o", "one.wav", **told)
    assert (status, "cover: hum.wav" in output) == (0, True)
    (tmp_path / "prompts.txt").write_text("harp\n")
    for name in ("two", "three"):
        prompts = ["--prompts", "prompts.txt", "--melody", "hum.wav"] if name == "two" else ["--prompts", "two.jsonl"]
        assert run("generate", saved, *prompts, "-d", "0.3", "-o", f"{name}.wav", **told)[0] == 0
    assert json.loads((tmp_path / "two.jsonl").read_text())["cover"] == "hum.wav"
    clips = [soundfile.read(name)[0] for name in ("one.wav", "two-1.wav", "three-1.wav")]
    assert np.array_equal(clips[0], clips[1])
    assert np.array_equal(clips[0], clips[2])
    with pytest.raises(PartitaError, match=r"prompts.jsonl line 1: the melody is given twice, by --melody and by"):
        with_input(system, [Row({"cover": "x.wav"}, where="prompts.jsonl line 1")], "melody", "hum.wav")


def test_a_system_without_a_melody_says_so(saved_toy, tmp_path, monkeypatch, capfd):
    path = str(hum(tmp_path / "hum.wav"))
    with pytest.raises(PartitaError, match="this system takes no melody: it reads only text"):
        partita.load(saved_toy).generate(["tone 1"], melody=path)
    told = {"monkeypatch": monkeypatch, "capfd": capfd}
    status, output = run("generate", saved_toy, "tone 1", "--melody", path, "-o", tmp_path / "out.wav", **told)
    assert status == 2
    assert "this system takes no melody: it reads only text" in output
