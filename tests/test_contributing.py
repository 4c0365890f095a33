"""The worked examples of CONTRIBUTING.md on conditioners, fields, codecs and scores do what it says."""

import json
from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch
import yaml

import partita
from partita.cli.list_parts import show
from partita.core import registry
from partita.core.console import out
from partita.core.contracts import Clip
from partita.core.part import Part
from partita.core.part_key import PartKey
from partita.data.folder import Folder
from partita.evaluation.evaluate import evaluate
from partita.evaluation.evaluation_options import Evaluation
from partita.generators.base import Generator
from partita.recipe.plan import load_recipe
from partita.system.system import System
from partita.training.condition_use import condition_use
from partita.training.fit_data import FitData
from partita.training.training import train
from worked_examples import define, example, preset, section


def test_a_conditioner(toy_recipe, tmp_path):
    define(example("python", "Pace"))
    overrides = ["conditioners.pace=pace", "stages.main.given=[text, pace]", "data={name: corpus, limit: 12}"]
    system = train(load_recipe(toy_recipe, overrides), tmp_path / "run")
    assert system.generate({"text": ["flute"], "tempo": [90]}, duration=0.2).shape == (1, 1, 800)
    with pytest.raises(partita.PartitaError, match="tempo: cannot be 'fast'; expected beats per minute"):
        system.generate({"text": ["flute"], "tempo": ["fast"]})


def test_a_field(tmp_path):
    define(section("Add a field"))
    soundfile.write(tmp_path / "a.wav", np.zeros(8000), 8000)
    (tmp_path / "list.csv").write_text("file,energy\na.wav,0.25\n")
    source = Folder(str(tmp_path), "list.csv")
    example_read = source.read("train", 0, seed=0, seconds=0.5, sample_rate=8000, channels=1)
    assert example_read.fields["energy"] == 0.25
    (tmp_path / "list.csv").write_text("file,energy\na.wav,2\n")
    with pytest.raises(
        partita.PartitaError, match=r"list.csv line 2 \(a.wav\): energy cannot be '2'; expected a number"
    ):
        Folder(str(tmp_path), "list.csv").setup()


ALONE, OVER_TIME = "Add a conditioner that is trained on its own", "Add a condition that changes in time"


def test_a_conditioner_trained_alone_hears_in_training_and_is_told_in_generation(toy_recipe, tmp_path, monkeypatch):
    define(section(ALONE))
    preset(toy_recipe, ALONE, "alike")
    staged, resolve = [], Generator.resolve
    monkeypatch.setattr(Generator, "resolve", lambda self, batch: staged.append(batch) or resolve(self, batch))
    system = train(load_recipe(toy_recipe, ["conditioners.text=alike"]), tmp_path / "run")
    part = partita.load_part(tmp_path / "run" / "conditioners" / "text")
    # it tells which tone is which, in a phase that it never heard; by chance it would be one of eight
    captions = [f"tone {i}" for i in range(8)]
    tones = [torch.sin(torch.arange(2000) / 4000 * 2 * torch.pi * 100 * (1 + i) + 1)[None] / 2 for i in range(8)]
    said, sound = (
        part(part.prepare(clips)).values[:, 0].detach()
        for clips in (
            [Clip({"text": text}, 0.5) for text in captions],
            [Clip({}, 0.5, tone, 4000) for tone in tones],
        )
    )
    assert ((sound @ said.T).argmax(1) == torch.arange(8)).sum() >= 7
    assert not torch.allclose(said, sound)
    # the stage was trained on what is heard: the sound of each clip, not its caption
    condition = staged[0].given["text"][0].values[:, 0]
    assert (condition @ sound.T).max(1).values.min() > 0.95
    assert (condition[:, None] - said).norm(dim=-1).min() > 1e-3
    # and is given the embeddings of words or of sounds
    given, generate = [], system.stages["main"].generate
    monkeypatch.setattr(
        system.stages["main"],
        "generate",
        lambda pairs, *a, **o: given.append(pairs["text"][0]) or generate(pairs, *a, **o),
    )
    stereo = torch.nn.functional.interpolate(tones[3][None], scale_factor=2, mode="linear")[0].expand(2, -1)
    soundfile.write(tmp_path / "hum.wav", stereo.T.numpy(), 8000)
    hummed = {"text": [None, None, None, "tone 5"], "audio": [tmp_path / "hum.wav", tones[3], None, None]}
    hummed["audio"][2] = partita.Excerpt(stereo, sample_rate=8000)
    system.generate(hummed, duration=0.5)
    assert (given[-1].values[:3, 0] @ sound[3] > 0.98).all()
    torch.testing.assert_close(given[-1].values[3, 0], said[5])
    with pytest.raises(partita.PartitaError, match=r"audio: .*nowhere.wav: there is no such file"):
        system.generate({"audio": ["nowhere.wav"]})
    uses = condition_use(system, clips=4)
    assert [(use.condition, use.attribute) for use in uses] == [("text", None)]


def test_chords_over_time_across_windows_and_a_story(toy_recipe, tmp_path, monkeypatch):
    define(section(OVER_TIME))
    preset(toy_recipe, OVER_TIME, "chord-names")
    overrides = [
        "conditioners.chords=chord-names",
        "stages.main.given=[text, chords]",
        "data={name: corpus, limit: 12}",
    ]
    system = train(load_recipe(toy_recipe, overrides), tmp_path / "run")
    part = system.conditioners["chords"]

    def vector(chord):
        return part(part.prepare([Clip({"chords": [(0.0, 1.0, chord)]}, 1.0)])).values[0, 0]

    calls, generate = [], system.stages["main"].generate

    def record(pairs, frames, *, prefix=None, **options):
        calls.append((frames, 0 if prefix is None else prefix.shape[-1], pairs["chords"]))
        return generate(pairs, frames, prefix=prefix, **options)

    monkeypatch.setattr(system.stages["main"], "generate", record)
    first, second = [(0, 0.6, "C:maj"), (0.6, 5, "G:7")], '[[0, 0.4, "A:min"], [0.4, 9, "F#:dim"]]'
    story = partita.Story([(0, first), (1.2, second)])
    sounding = [(0.6, "C:maj"), (1.2, "G:7"), (1.6, "A:min"), (2.4, "F#:dim")]  # what ends when
    for prompts, heard in (
        (story, None),
        ([*first[:1], (0.6, 1.2, "G:7"), (1.2, 1.6, "A:min"), (1.6, 9, "F#:dim")], 0.7),
    ):
        calls.clear()
        continuation = None if heard is None else torch.zeros(1, 1, int(heard * 4000))
        system.generate({"text": ["organ"], "chords": [prompts]}, duration=2.4, continuation=continuation)
        done, starts = 0 if heard is None else 28, []
        for frames, before, (condition, null) in calls:
            start = (done - before) / 40  # of the window, in seconds: the codes have 40 frames a second
            assert condition.values.shape[1] == frames / 4
            for position, value in enumerate(condition.values[0]):
                middle = start + (position + 0.5) / 10
                assert torch.equal(value, vector(next(chord for end, chord in sounding if middle < end)))
            assert condition.mask.all()
            assert torch.equal(null.values, part.embeddings.weight[0].expand_as(null.values))
            done += frames - before
            starts.append(start)
        assert len(starts) >= 3
        assert done == 96
    # in training as well, each frame has the chord in its middle
    data = FitData(system, PartKey("stages/main"))
    for clip in (data.validation_examples()[i] for i in range(2)):
        prepared = part.prepare([Clip(clip.fields, 1.0)])
        values = part(prepared).values[0]
        for start, end, chord in clip.fields["chords"]:
            middle = round((start + end) / 2 * 10 - 0.5)
            if end - start > 0.2:
                assert torch.equal(values[middle], vector(chord))
    with pytest.raises(partita.PartitaError, match=r"chords: cannot be .*; expected rows of start, end and chord"):
        system.generate({"chords": [[(0, 1, "H:huge")]]})


@pytest.fixture
def forgotten():
    """Scores of the document are forgotten again, so that other tests do not measure them, too."""
    before = set(registry._classes)
    yield
    for key in set(registry._classes) - before:
        if registry._classes[key].__module__ == "example":
            del registry._classes[key]


@pytest.mark.usefixtures("forgotten")
def test_a_score(saved_toy, tmp_path, capsys):
    """One file, and it is listed, measured, kept, written to the page, left out and compared in ablations."""
    define(example("python", "Brightness"))
    show("score", out)
    assert "score/brightness" in capsys.readouterr().out
    show("score/brightness", out)
    assert "spectral centroids" in capsys.readouterr().out
    folder, few = tmp_path / "evaluation", Evaluation(clips=4, reference_clips=4, scores={"fad": False})
    evaluate(saved_toy, folder, options=few)
    row = json.loads((folder / "evaluation.json").read_text())["metrics"]["brightness difference"]
    assert row["low"] <= row["value"] <= row["high"]
    assert (row["score"], row["subject"], row["clips"]) == ("brightness", "system", 4)
    page = (folder / "evaluation.html").read_text()
    assert "brightness difference" in page
    assert "in octaves." in page
    other = replace(few, scores={"fad": False, "brightness": {"frame": 512}})
    assert evaluate(saved_toy, folder, options=other)["metrics"]["brightness difference"]["value"] != row["value"]
    without = replace(few, scores={"fad": False, "brightness": False})
    assert "brightness difference" not in evaluate(saved_toy, folder, options=without)["metrics"]
    with pytest.raises(partita.PartitaError, match="did you mean 'frame'"):
        Evaluation(scores={"brightness": {"frames": 512}})


@pytest.mark.usefixtures("forgotten")
def test_the_score_measures_octaves():
    """A sine an octave above another one."""
    score = define(example("python", "Brightness"))["Brightness"]()
    sine = torch.sin(2 * torch.pi * 0.05 * torch.arange(8000)[None, None] * torch.tensor([1.0, 2.0])[:, None, None])
    low, high = score.centroid(sine)
    assert (high / low).log2().item() == pytest.approx(1, abs=0.1)


def test_a_bottleneck_fits_into_a_codec_by_one_word(tmp_path):
    define(example("python", '"simvq"'))
    (tmp_path / "bottleneck").mkdir()
    (tmp_path / "bottleneck" / "simvq-tiny.yaml").write_text(example("yaml", "name: simvq"))
    few = {"steps": 2, "batch_size": 2, "crop": 0.4, "validation_examples": 2}
    sizes = {"encoder_width": 16, "decoder_width": 16, "encoder_depth": 1, "decoder_depth": 1}
    codec = {"preset": "spectral-tiny", "autoencoder": sizes, "adversarial_start": 1, "fit": few}
    recipe = {"tokenizers": {"acoustic": codec}, "data": "toy-sines", "trainer": {"logger": False}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    outline = System.checked(tmp_path / "recipe.yaml", ["tokenizers.acoustic.bottleneck=simvq-tiny"])
    assert all(tensor.is_meta for tensor in outline.tokenizers["acoustic"].state_dict().values())
    before = Part.load(_trained(tmp_path, "before"))
    assert before.spec.cardinality == 256
    folder = _trained(tmp_path, "run", "tokenizers.acoustic.bottleneck=simvq-tiny")
    codec = Part.load(folder)
    assert (codec.spec.num_codebooks, codec.spec.cardinality, codec.spec.frame_rate) == (1, 175, 25)
    audio = 0.5 * torch.randn(2, 1, 16000)
    codes = codec.encode(audio)
    assert codes.shape == (2, 1, 25)
    assert 0 <= codes.min() < codes.max() < 175
    assert codec.decode(codes).shape == audio.shape
    torch.manual_seed(1)
    fresh = type(codec).load(folder)
    assert torch.equal(fresh.encode(audio), codes)
    assert torch.equal(fresh.decode(codes), codec.decode(codes))
    assert torch.equal(partita.load(tmp_path / "run").tokenizers["acoustic"].encode(audio), codes)
    assert torch.equal(partita.load_part(folder).encode(audio), codes)


def _trained(folder, run, *overrides):
    train(load_recipe(folder / "recipe.yaml", list(overrides)), folder / run)
    return folder / run / "tokenizers" / "acoustic"
