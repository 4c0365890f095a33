"""Parts inside other parts are trained before those."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import partita
from partita.conditioners.base import Conditioner
from partita.core.contracts import Condition, ConditionSpec
from partita.core.part_key import PartKey
from partita.core.registry import register
from partita.errors import PartitaError
from partita.recipe.plan import load_recipe
from partita.system.summary import summary_text
from partita.system.system import System
from partita.tokenizers.base import Tokenizer
from partita.training.callbacks import Reseed
from partita.training.training import train
from saved_systems import same, weights
from toys import ToyEncoder, ToyOuter

ENCODER = PartKey("tokenizers/semantic.features")


@register("conditioner", "toy-hum")
class ToyHum(Conditioner):
    """What an encoder makes of audio, on average over time."""

    inputs = ("audio",)
    sample_rate = 4000
    trained_with_stage = True

    def __init__(self, *, codec: Tokenizer):
        super().__init__()
        self.codec, self.projection = codec, nn.Linear(codec.spec.dim, 4)

    @property
    def spec(self):
        return ConditionSpec(dim=4)

    def prepare(self, clips):
        sounds = [torch.zeros(2000) if clip.audio is None else F.pad(clip.audio[0], (0, 2000))[:2000] for clip in clips]
        return {"audio": torch.stack(sounds)[:, None]}

    def forward(self, prepared):
        values = self.projection(self.codec.encode(prepared["audio"]).mean(-1))
        return Condition(values[:, None], torch.ones(len(values), 1, dtype=torch.bool))


@register("tokenizer", "toy-hiding")
class ToyHiding(ToyOuter):
    """One that keeps the other encoder under another name."""

    def __init__(self, *, inner: Tokenizer, dim: int = 3):
        super().__init__(inner=inner, dim=dim)
        self.hidden = self.inner
        del self.inner

    def encode(self, audio):
        return ToyEncoder.encode(self, audio)


FIT = "fit: {steps: 6, batch_size: 2, crop: 0.5, checkpoint_every: 2}"


@pytest.fixture
def recipe(toy_recipe):
    (toy_recipe.parent / "tokenizer").mkdir()
    (toy_recipe.parent / "tokenizer" / "small.yaml").write_text(f"name: toy-encoder\ndim: 2\n{FIT}\n")
    toy_recipe.write_text(
        "tokenizers:\n"
        f"  semantic: {{name: kmeans, features: small, cardinality: 4, updates: 2, reservoir: 64, {FIT}}}\n"
        "data: toy-sines\n"
        "trainer: {logger: csv}\n"
    )
    return toy_recipe


def test_it_is_trained_first_and_frozen_from_then_on(lines, recipe, tmp_path):
    plan = load_recipe(recipe)
    untrained = System(plan).tokenizers["semantic"].features.down.weight.clone()
    train(plan, tmp_path / "run")
    assert [line for line in lines if "steps of" in line] == [
        "tokenizers/semantic.features: 6 steps of 2",
        "tokenizers/semantic: 6 steps of 2",
    ]
    found = weights(tmp_path / "run")
    alone = found[f"{ENCODER}/model.safetensors", "down.weight"]
    assert not torch.equal(alone, untrained)
    assert torch.equal(found["tokenizers/semantic/model.safetensors", "features.down.weight"], alone)


def test_parts_at_any_depth_are_frozen_whatever_the_optimizer_gets(recipe, tmp_path):
    deep = f"{{name: toy-outer, {FIT}, inner: {{name: toy-outer, {FIT}, inner: small}}}}"
    recipe.write_text(f"tokenizers: {{semantic: {deep}}}\ndata: toy-sines\ntrainer: {{logger: csv}}\n")
    train(load_recipe(recipe), tmp_path / "run")
    found = weights(tmp_path / "run")
    for outer, inner in (("semantic", "inner.inner"), ("semantic.inner", "inner"), ("semantic", "inner")):
        alone = {name: w for (f, name), w in found.items() if f == f"tokenizers/{outer}.{inner}/model.safetensors"}
        assert len(alone) >= 4
        assert all(
            torch.equal(found[f"tokenizers/{outer}/model.safetensors", f"{inner}.{name}"], w)
            for name, w in alone.items()
        )


def test_parts_inside_a_conditioner_are_frozen_when_it_is_trained_with_its_stage(toy_recipe, tmp_path):
    hum = f"{{name: toy-hum, codec: {{name: toy-encoder, {FIT}}}}}"
    train(load_recipe(toy_recipe, [f"conditioners.text={hum}"]), tmp_path / "run")
    found = weights(tmp_path / "run")
    alone = {name: w for (f, name), w in found.items() if f == "conditioners/text.codec/model.safetensors"}
    assert len(alone) == 4
    assert all(torch.equal(found["conditioners/text/model.safetensors", f"codec.{n}"], w) for n, w in alone.items())


def test_a_part_that_hides_what_should_be_trained_is_refused(recipe, tmp_path):
    outer = "data: toy-sines\ntrainer: {logger: csv}\ntokenizers: {semantic: {name: toy-hiding, inner: %s, %s}}\n"
    recipe.write_text(outer % ("small", FIT))
    with pytest.raises(PartitaError, match=r"semantic\.inner is not trained unless toy-hiding keeps it"):
        System(load_recipe(recipe))
    ToyEncoder().save(tmp_path / "weights")
    recipe.write_text(outer % (f"{{name: toy-encoder, weights: {tmp_path / 'weights'}}}", FIT))
    assert list(System(load_recipe(recipe)).training_order) == ["tokenizers/semantic"]


def test_a_run_killed_anywhere_ends_with_the_same_weights(recipe, tmp_path, monkeypatch):
    plan = load_recipe(recipe)
    train(plan, tmp_path / "whole")
    batches, batch = 0, Reseed.on_train_batch_start

    def dying(self, *args):
        nonlocal batches
        batches += 1
        if batches in (4, 9, 13):
            raise InterruptedError
        batch(self, *args)

    monkeypatch.setattr(Reseed, "on_train_batch_start", dying)
    for _ in range(3):
        with pytest.raises(InterruptedError):
            train(plan, tmp_path / "broken")
    train(plan, tmp_path / "broken")
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "broken"))
    train(plan, tmp_path / "broken")
    assert batches < 30  # what is trained is not trained again


def test_the_outer_part_alone_is_loaded_saved_and_kept(recipe, tmp_path):
    train(load_recipe(recipe), tmp_path / "run")
    audio = torch.randn(1, 1, 2000)
    expected = partita.load(tmp_path / "run").tokenizers["semantic"].encode(audio)
    partita.load(tmp_path / "run").save(tmp_path / "export")
    assert not (tmp_path / "export" / ENCODER).exists()
    assert torch.equal(partita.load(tmp_path / "export").tokenizers["semantic"].encode(audio), expected)
    outer = tmp_path / "run" / "tokenizers" / "semantic"
    train(load_recipe(recipe, [f"tokenizers.semantic.weights={outer}"]), tmp_path / "kept")
    assert not (tmp_path / "kept" / ENCODER).exists()


def test_with_weights_it_is_not_trained(lines, recipe, tmp_path):
    train(load_recipe(recipe), tmp_path / "run")
    lines.clear()
    train(load_recipe(recipe, [f"tokenizers.semantic.features.weights={tmp_path / 'run' / ENCODER}"]), tmp_path / "two")
    assert [line for line in lines if "steps of" in line] == ["tokenizers/semantic: 6 steps of 2"]
    first, second = (weights(tmp_path / run) for run in ("run", "two"))
    key = ("tokenizers/semantic/model.safetensors", "features.down.weight")
    assert torch.equal(first[key], second[key])


def test_training_can_start_from_its_weights_in_another_run(lines, recipe, tmp_path):
    train(load_recipe(recipe), tmp_path / "run")
    start = [f"tokenizers.semantic.features.init={tmp_path / 'run'}", "tokenizers.semantic.features.fit.steps=1"]
    train(load_recipe(recipe, start), tmp_path / "more")
    assert f"{ENCODER}: starts from {tmp_path / 'run'}" in lines
    key = (f"{ENCODER}/model.safetensors", "down.weight")
    first, second = weights(tmp_path / "run")[key], weights(tmp_path / "more")[key]
    assert 0 < (first - second).abs().max() < 0.01


def test_its_training_can_be_changed_and_is_listed(recipe):
    system = System(load_recipe(recipe, ["tokenizers.semantic.features.fit.steps=9"]))
    table = summary_text(system)
    assert "tokenizers/semantic.features" in table
    assert "9 steps of 2" in table
