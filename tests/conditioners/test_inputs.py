"""What conditioners read: fields that a recipe chooses, audio at their own rate, and null conditions of their own."""

import json
from typing import ClassVar

import numpy as np
import pytest
import soundfile
import torch
from torch import nn

import partita
import toys
from command_line import run
from partita.conditioners.lookup import Lookup
from partita.core.contracts import Clip, Condition
from partita.core.part import Part
from partita.core.part_key import PartKey
from partita.core.registry import register
from partita.recipe.plan import load_recipe
from partita.system.system import System
from partita.training.fit_data import FitData
from partita.training.training import train


@register("conditioner", "toy-loudness")
class ToyLoudness(toys.ToyLetters):
    """How loud a clip is.

    Args:
        inputs: What it reads.
    """

    sample_rate, channels = 8000, 2
    SHAPES: ClassVar = []

    def __init__(self, *, inputs: tuple[str, ...] = ("audio",)):
        nn.Module.__init__(self)
        super().__init__()
        super(toys.ToyLetters, self).__init__(inputs)
        self.gain = nn.Parameter(torch.ones(8))

    @property
    def spec(self):
        return toys.ConditionSpec(dim=8)

    def prepare(self, clips):
        self.SHAPES.extend(None if clip.audio is None else (*clip.audio.shape, clip.sample_rate) for clip in clips)
        level = [0.0 if clip.audio is None else float(clip.audio.square().mean()) for clip in clips]
        return {"level": torch.tensor(level)[:, None]}

    def forward(self, prepared):
        return Condition((prepared["level"] * self.gain)[:, None], prepared["level"] > 0)


@register("conditioner", "toy-speed")
class ToySpeed(toys.ToyLetters):
    """How fast it is."""

    inputs = ("tempo",)

    def prepare(self, clips):
        tempos = [clip.fields.get("tempo") for clip in clips]
        assert all(tempo is None or isinstance(tempo, float) for tempo in tempos)
        return super().prepare(toys.told([None if tempo is None else f"{tempo:g}" for tempo in tempos], "tempo"))


@register("conditioner", "toy-place")
class ToyPlace(toys.ToyLetters):
    """Where in its piece a clip is; its null keeps the length of the piece and learns the rest."""

    inputs = ("seconds_start", "seconds_total")

    def __init__(self):
        super().__init__(dim=2)
        self.anywhere = nn.Parameter(torch.zeros(1))
        self.project = nn.Linear(1, 1)

    def prepare(self, clips):
        return {"place": torch.tensor([[clip.fields[name] for name in self.inputs] for clip in clips])}

    def forward(self, prepared):
        place = prepared["place"][:, None]
        return Condition(
            torch.cat([self.project(place[..., :1]), place[..., 1:]], -1), torch.ones(len(place), 1, dtype=torch.bool)
        )

    def null(self, condition):
        anywhere = self.anywhere.expand_as(condition.values[..., :1])
        return Condition(torch.cat([anywhere, condition.values[..., 1:]], -1), condition.mask)


def test_a_recipe_chooses_the_fields_and_the_part_keeps_them(toy_recipe, tmp_path):
    for i in range(4):
        soundfile.write(tmp_path / f"{i}.wav", 0.1 * np.ones(8000), 4000)
    rows = [{"file": f"{i}.wav", "lyrics": f"la {i}"} for i in range(4)]
    (tmp_path / "list.jsonl").write_text("\n".join(map(json.dumps, rows)))
    overrides = [
        "conditioners.text={preset: lookup, dim: 4, inputs: [lyrics]}",
        f"data={{name: folder, path: '{tmp_path}', manifest: list.jsonl}}",
    ]
    system = train(load_recipe(toy_recipe, overrides), tmp_path / "run")
    assert system.inputs == ("lyrics",)
    assert system.generate({"lyrics": ["la 1"]}, duration=0.1).shape == (1, 1, 400)
    with pytest.raises(partita.PartitaError, match="nothing in this system reads 'text'"):
        system.generate(["la 1"])
    saved = Part.load(tmp_path / "run" / "conditioners" / "text")
    assert saved.inputs == ("lyrics",)
    assert saved.met[:-1].any()  # words of the lyrics, in training
    assert saved.knows("la")
    both = Lookup(inputs=("text", "lyrics")).prepare([Clip({"text": "waltz", "lyrics": "la la"}, 1.0)])
    assert both["mask"].sum() == 3


@pytest.mark.parametrize(
    ("slot", "words"),
    [
        ("{preset: lookup, inputs: [lyrcis]}", "there is no field 'lyrcis': did you mean 'lyrics'"),
        ("{preset: lookup, inputs: [tempo]}", "lookup reads text, but tempo is number"),
        ("{preset: lookup, inputs: []}", "inputs is empty"),
        ("{preset: lookup, inputs: [lyrics]}", "does not supply 'lyrics', which conditioners.text reads"),
        ("{preset: lookup, inputs: [text, lyrics]}", "does not supply 'lyrics', which conditioners.text reads"),
    ],
)
def test_inputs_that_cannot_be_are_found_before_training(toy_recipe, slot, words):
    with pytest.raises(partita.PartitaError, match=words):
        System.checked(toy_recipe, [f"conditioners.text={slot}"])


def test_audio_is_handed_at_the_rate_and_channels_that_it_declares(toy_recipe, tmp_path):
    system = System(load_recipe(toy_recipe, ["conditioners.text=toy-loudness"]))
    ToyLoudness.SHAPES.clear()
    data = FitData(system, PartKey("stages/main"))
    assert (data.sample_rate, data.channels) == (8000, 2)
    data.originals(2)
    assert ToyLoudness.SHAPES == [(2, 8000, 8000)] * 2
    ToyLoudness.SHAPES.clear()
    system.generate({"audio": [torch.rand(1, 2000) - 0.5, None]}, duration=0.5)
    assert set(ToyLoudness.SHAPES) == {(2, 4000, 8000), None}  # which has the rate of the system, 4000 Hz
    path = tmp_path / "prompts.jsonl"
    soundfile.write(tmp_path / "hum.wav", np.ones((4410, 2)) * 0.1, 44100)
    path.write_text('{"audio": "hum.wav", "duration": 0.1}\n')
    (row,) = partita.read_prompts(path, system)
    assert row.inputs["audio"] == str(tmp_path / "hum.wav")
    path.write_text('{"audio": "hum.wav"}\n{"audio": "none.wav"}\n{"audio": 3}\n')
    with pytest.raises(partita.PartitaError) as caught:
        partita.read_prompts(path, system)
    first, *said = str(caught.value).splitlines()
    assert first.startswith("2 mistakes")
    assert "prompts.jsonl line 2: audio: none.wav: there is no such file" in said[0]
    assert "prompts.jsonl line 3: audio: cannot be 3; expected the path" in said[1]


def test_the_command_line_tells_fields_beside_the_prompt(toy_recipe, tmp_path, monkeypatch, capfd):
    overrides = ["conditioners.speed={name: toy-speed}", "stages.main.given=[text, speed]"]
    system = System(load_recipe(toy_recipe, [*overrides, "data={name: corpus, limit: 12}"]))
    system.save(tmp_path / "system")
    generate = ["generate", tmp_path / "system", "-o", tmp_path / "out.wav", "-d", 0.1, "tone 1"]
    for told, status, words in (
        (["--input", "tempo=90"], 0, "“tone 1 … tempo: 90”"),
        (["--input", "tempo=quick"], 2, "tempo: cannot be 'quick'; expected beats per minute"),
        (["--input", "tepmo=90"], 2, "nothing in this system reads 'tepmo': did you mean 'tempo'"),
        (["--input", "tempo"], 2, "--input takes a field and a value"),
    ):
        found, text = run(*generate, *told, monkeypatch=monkeypatch, capfd=capfd)
        assert found == status, text
        assert words in " ".join(text.split()), text
    status, text = run("list", "field/chords", monkeypatch=monkeypatch, capfd=capfd)
    assert status == 0
    assert "rows of start, end and chord" in " ".join(text.split())


def test_audio_without_a_rate_is_found_before_training(toy_recipe, monkeypatch):
    monkeypatch.setattr(ToyLoudness, "sample_rate", None)
    with pytest.raises(partita.PartitaError, match="toy-loudness reads audio, but declares no sample_rate"):
        System.checked(toy_recipe, ["conditioners.text=toy-loudness"])


def test_a_null_condition_learns_and_keeps_a_part(toy_recipe, tmp_path):
    overrides = [
        "conditioners.text=toy-place",
        "data={name: corpus, limit: 12}",
        "stages.main.generator.condition_dropout.together=0.5",
    ]
    system = train(load_recipe(toy_recipe, overrides), tmp_path / "run")
    part = system.conditioners["text"]
    assert part.anywhere.item() != 0
    condition = part(part.prepare([Clip({"seconds_start": 3.0, "seconds_total": 60.0}, 1.0)]))
    null = part.null(condition)
    assert null.values[0, 0].tolist() == [part.anywhere.item(), 60.0]
    saved = Part.load(tmp_path / "run" / "conditioners" / "text")
    assert saved.anywhere.item() == part.anywhere.item()


def test_each_window_is_told_of_its_own_time(toy_recipe, monkeypatch):
    """A condition that is not aligned is of the stretch that the stage sees, as it was in training."""
    system = System(load_recipe(toy_recipe, ["conditioners.text=toy-place", "data={name: corpus, limit: 12}"]))
    places, prepare = [], ToyPlace.prepare

    def record(self, clips):
        places.extend((clip.fields["seconds_start"], clip.fields["seconds_total"], clip.seconds) for clip in clips)
        return prepare(self, clips)

    monkeypatch.setattr(ToyPlace, "prepare", record)
    system.generate({"seconds_start": [None, 20], "seconds_total": [None, 90]}, duration=2.0)
    seen = [place for place in places if place[2] == 1.0]
    assert seen == [one for start in (0.0, 0.5, 1.0) for one in ((start, 2.0, 1.0), (20 + start, 90.0, 1.0))]
