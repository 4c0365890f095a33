"""The worked examples of CONTRIBUTING.md do what it says."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

import partita
from partita.cli.list_parts import show
from partita.core import registry
from partita.core.console import out
from partita.core.part import Part
from partita.evaluation.evaluate import evaluate
from partita.evaluation.options import Evaluation
from partita.recipe.plan import load_recipe
from partita.training.training import train

TEXT = (Path(partita.__file__).parent.parent / "CONTRIBUTING.md").read_text()


def blocks(language):
    return [part.split("```")[0] for part in TEXT.split(f"```{language}\n")[1:]]


def example(language, word):
    """The block of a worked example: the first with this word."""
    return next(block for block in blocks(language) if word in block)


def define(block):
    names = {"__name__": "example"}
    exec(compile(block, "example.py", "exec"), names)
    return names


def test_a_conditioner(toy_recipe, tmp_path):
    define(example("python", "Tempo"))
    overrides = ["conditioners.tempo=tempo", "stages.main.given=[text, tempo]", "data={name: corpus, limit: 12}"]
    system = train(load_recipe(toy_recipe, overrides), tmp_path / "run")
    assert system.generate({"text": ["flute"], "tempo": [90]}, duration=0.2).shape == (1, 1, 800)
    with pytest.raises(partita.PartitaError, match="beats per minute"):
        system.generate({"text": ["flute"], "tempo": ["fast"]})


def test_a_kind_of_stage_goes_through_everything(tmp_path):
    """Registered, put into a mixed chain by a recipe, trained, saved, loaded, over several windows, told a story."""
    define(example("python", "OnePass"))
    recipe = yaml.safe_load(next(block for block in blocks("yaml") if "one-pass" in block))
    few = {"steps": 3, "batch_size": 2, "crop": 0.6, "validation_examples": 2}
    recipe["tokenizers"] = {"acoustic": {"fit": few}, "semantic": {"fit": few}}
    recipe["stages"]["semantic"] = {"window": 1.2, "generator": {"fit": few}}
    recipe["stages"]["acoustic"]["generator"]["fit"] = few
    recipe["stages"]["acoustic"]["window"] = 0.6
    recipe |= {"data": {"limit": 12}, "trainer": {"logger": False}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    system = train(load_recipe(tmp_path / "recipe.yaml"), tmp_path / "run")
    assert {n: g.fusion for n, g in system.stages["acoustic"].given.items()} == {"text": "cross", "semantic": "add"}
    prompts = ["organ", partita.Story([(0, "organ"), (0.8, "flute")])]
    audio = system.generate(prompts, duration=2, guidance=2.0, sampling={"top_k": 10})
    assert audio.shape == (2, 1, 32000)
    system.save(tmp_path / "export")
    for folder in ("run", "export"):
        again = partita.load(tmp_path / folder).generate(prompts, duration=2, guidance=2.0, sampling={"top_k": 10})
        assert torch.equal(again, audio)
    alone = Part.load(tmp_path / "export" / "stages" / "acoustic")
    assert alone.registered_name == "one-pass"


def test_the_kind_of_stage_learns(tmp_path):
    from partita.core.contracts import Condition, Given, RepresentationSpec
    from partita.generators.base import NO_DROPOUT

    stage_class = define(example("python", "OnePass").replace('"one-pass"', '"one-pass-again"'))["OnePass"]
    given = RepresentationSpec(16000, 1, 25.0, 1, 8).as_condition()
    target = RepresentationSpec(16000, 1, 50.0, 2, 8)
    stage = stage_class(target, {"semantic": Given(given, "add")}, condition_dropout=NO_DROPOUT)
    semantic = torch.randint(8, (4, 1, 8))
    codes = torch.randint(8, (4, 2, 16))
    condition = Condition.of(semantic, torch.ones(4, 8, dtype=torch.bool))
    optimizer = torch.optim.AdamW(stage.parameters(), lr=3e-3)
    for _ in range(300):
        loss = stage.loss(codes, torch.ones(4, 16, dtype=torch.bool), {"semantic": condition})["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    sampling = stage.changed_sampling({"temperature": 0.0, "guidance": 1.0})
    made = stage.generate({"semantic": (condition, condition.absent())}, 16, seeds=range(4), sampling=sampling).values
    assert (made == codes).float().mean() >= 0.99


def test_a_score(monkeypatch, saved_toy, tmp_path, capsys):
    """One file, and it is listed, measured, kept, written to the page, left out and compared in ablations."""
    monkeypatch.setattr(registry, "_classes", dict(registry._classes))  # other tests know nothing of it
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


def test_the_score_measures_octaves(monkeypatch):
    """A sine an octave above another one."""
    monkeypatch.setattr(registry, "_classes", dict(registry._classes))
    score = define(example("python", "Brightness"))["Brightness"]()
    sine = torch.sin(2 * torch.pi * 0.05 * torch.arange(8000)[None, None] * torch.tensor([1.0, 2.0])[:, None, None])
    low, high = score.centroid(sine)
    assert (high / low).log2().item() == pytest.approx(1, abs=0.1)


def test_a_bottleneck_fits_into_a_codec_by_one_word(tmp_path):
    define(example("python", '"fsq"'))
    (tmp_path / "bottleneck").mkdir()
    (tmp_path / "bottleneck" / "fsq-tiny.yaml").write_text(example("yaml", "name: fsq"))
    few = {"steps": 2, "batch_size": 2, "crop": 0.4, "validation_examples": 2}
    sizes = {"encoder_width": 16, "decoder_width": 16, "encoder_depth": 1, "decoder_depth": 1}
    codec = {"preset": "spectral-tiny", "autoencoder": sizes, "adversarial_start": 1, "fit": few}
    recipe = {"tokenizers": {"acoustic": codec}, "data": "toy-sines", "trainer": {"logger": False}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    before = Part.load(_trained(tmp_path, "before"))
    assert before.spec.cardinality == 256
    folder = _trained(tmp_path, "run", "tokenizers.acoustic.bottleneck=fsq-tiny")
    codec = Part.load(folder)
    assert (codec.spec.num_codebooks, codec.spec.cardinality, codec.spec.frame_rate) == (1, 7 * 5 * 5, 25)
    audio = 0.5 * torch.randn(2, 1, 16000)
    codes = codec.encode(audio)
    assert codes.shape == (2, 1, 25)
    assert 0 <= codes.min() < codes.max() < 175
    assert codec.decode(codes).shape == audio.shape
    torch.manual_seed(1)
    fresh = type(codec).load(folder)
    assert torch.equal(fresh.encode(audio), codes)
    assert torch.equal(fresh.decode(codes), codec.decode(codes))


def _trained(folder, run, *overrides):
    train(load_recipe(folder / "recipe.yaml", list(overrides)), folder / run)
    return folder / run / "tokenizers" / "acoustic"
