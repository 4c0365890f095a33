"""The runs of an ablation: shared parts and budgets."""

import time
from types import SimpleNamespace

import pytest
import torch
import yaml

from ablation_toys import Here, study
from partita.core.part_key import PartKey
from partita.errors import PartitaError
from partita.evaluation import tasks
from partita.evaluation.ablate import ablate, plan_tasks
from partita.evaluation.ablation import read_ablation
from partita.evaluation.ablation_runs import fingerprint, make_runs, recipe_of, tokens_per_step
from partita.recipe.plan import load_recipe
from partita.training import callbacks
from partita.training.training import seconds_per_step, train
from saved_systems import same, weights
from toys import ToyBigram


def test_what_variants_have_in_common_is_trained_once():
    """Another codec leaves the semantic tokens and the stage that makes them alone; another seed does not."""
    ablation = read_ablation(
        "chorales-hierarchical-tiny", ["tokenizers.acoustic=spectral-tiny,soundstream-tiny", "seed=0,1"]
    )
    found, _ = make_runs(ablation)
    trainings = [task.part for task in plan_tasks(found, ablation) if task.kind == "train"]
    counts = {part: trainings.count(part) for part in trainings}
    assert counts["tokenizers/semantic"] == counts["stages/semantic"] == 2
    assert counts["tokenizers/acoustic"] == 4
    assert {n for part, n in counts.items() if part.startswith("stages/") and part != "stages/semantic"} == {4}


def test_the_recipe_of_a_part_holds_what_it_depends_on():
    run = make_runs(read_ablation("chorales-hierarchical-tiny"))[0][0]
    assert set(recipe_of(run, PartKey("tokenizers/acoustic"))["tokenizers"]) == {"acoustic"}
    assert not recipe_of(run, PartKey("tokenizers/acoustic"))["stages"]
    first, *_, last = run.plan.stages
    assert list(recipe_of(run, PartKey.of("stages", first))["stages"]) == [first]
    assert set(recipe_of(run, PartKey.of("stages", last))["stages"]) == set(run.plan.stages)


def test_how_a_recipe_is_put_makes_no_difference_to_what_is_shared(toy_recipe):
    one, other = (
        make_runs(study(toy_recipe, *changes))[0][0]
        for changes in (
            ["tokenizers.acoustic.fit.lr=0.01", "tokenizers.acoustic.fit.eps=1e-7"],
            ["tokenizers.acoustic.fit.eps=1e-7", "tokenizers.acoustic.fit.lr=0.01"],
        )
    )
    assert fingerprint(recipe_of(one, PartKey("stages/main"))) == fingerprint(recipe_of(other, PartKey("stages/main")))


def test_what_matters_only_in_generation_is_not_trained_twice():
    """Overlap of windows, and how a stage draws; each run keeps its own."""
    changes = ["stages.acoustic.generator.sampling.temperature=0.5,1.0", "stages.acoustic.overlap=0,1"]
    ablation = read_ablation("chorales-tiny", changes)
    tasks_ = plan_tasks(make_runs(ablation)[0], ablation)
    assert [task.kind for task in tasks_ if task.kind == "train"] == ["train"] * 2
    drawn = {yaml.safe_load(t.recipe)["stages"]["acoustic"]["generator"]["sampling"]["temperature"] for t in tasks_[2:]}
    assert drawn == {0.5, 1.0}


def test_equal_budgets_in_tokens_are_unequal_in_steps(toy_recipe):
    """Two clips of a second, at 40 and at 20 codes a second: 80 and 40 a step."""
    found, _ = make_runs(study(toy_recipe, "tokenizers.acoustic.hop=100,200", budget=["tokens=800"]))
    assert [tokens_per_step(run.outline, PartKey("stages/main")) for run in found] == [80, 40]
    assert [run.outline.stages["main"].fit_options.steps for run in found] == [10, 20]
    assert [run.outline.tokenizers["acoustic"].fit_options.steps for run in found] == [6, 6]


def test_equal_budgets_in_minutes_are_as_many_steps_as_fit(toy_recipe, tmp_path, monkeypatch):
    speeds = iter([0.5, 0.25])
    monkeypatch.setattr(tasks, "seconds_per_step", lambda plan, folder: next(speeds))
    ablation = study(toy_recipe, "stages.main.generator.width=16,8", "seed=0,1", budget=["minutes=0.05"])
    root = tmp_path / "out"
    assert ablate(ablation, root, launcher=Here(root)) == {}
    steps = {}
    for path in root.glob("variants/*/*/recipe.yaml"):
        steps[path.parent.parent.name, path.parent.name] = yaml.safe_load(path.read_text())["stages"]["main"][
            "generator"
        ]["fit"]["steps"]
    assert steps == {("width=16", s): 6 for s in ("seed-0", "seed-1")} | {
        ("width=8", s): 12 for s in ("seed-0", "seed-1")
    }


def test_a_step_is_timed(toy_recipe, monkeypatch):
    steps, loss = 0, ToyBigram.loss

    def counted(self, *args):
        nonlocal steps
        steps += 1
        return loss(self, *args)

    monkeypatch.setattr(ToyBigram, "loss", counted)
    clock = SimpleNamespace(perf_counter=lambda: steps * 0.5, monotonic=time.monotonic)
    monkeypatch.setattr(callbacks, "time", clock)
    assert seconds_per_step(load_recipe(toy_recipe), PartKey("stages/main")) == 0.5


def test_stages_are_trained_on_the_tokens_that_train_would_store_once_for_all_variants(toy_recipe, tmp_path):
    changes = ["tokens.versions=2", "stages.main.generator.width=16,8"]
    ablation, root = study(toy_recipe, *changes), tmp_path / "out"
    launcher = Here(root)
    assert ablate(ablation, root, launcher=launcher) == {}
    assert [task.kind for task in launcher.begun] == ["train", "store", "train", "evaluate", "train", "evaluate"]
    train(load_recipe(toy_recipe, ["tokens.versions=2", "stages.main.generator.width=8"]), tmp_path / "alone")
    stage = PartKey("stages/main")
    assert same(weights(tmp_path / "alone" / stage), weights(root / "variants/width=8/seed-0" / stage))
    train(load_recipe(toy_recipe, ["stages.main.generator.width=8"]), tmp_path / "on-the-fly")
    assert not same(weights(tmp_path / "on-the-fly" / stage), weights(tmp_path / "alone" / stage))


def test_stages_on_stored_tokens_have_no_budget_in_minutes(toy_recipe):
    with pytest.raises(PartitaError, match="stages that are trained on stored tokens cannot have a budget in minutes"):
        make_runs(study(toy_recipe, "tokens=store", budget=["minutes=1"]))


def stores(planned):
    return {task.key for task in planned if task.kind == "store"}


def test_tokens_are_stored_again_only_where_they_differ():
    """Other trainings of a part have other tokens; other stages on the same clips have not."""

    def planned(*changes):
        ablation = read_ablation("musiclm-tiny", changes)
        return plan_tasks(make_runs(ablation)[0], ablation)

    assert len(stores(planned("seed=0,1"))) == len(stores(planned("trainer.precision=32-true,bf16-mixed"))) == 2
    assert len(stores(planned("stages.semantic.generator.backbone.depth=2,3"))) == 1
    fusions = planned("stages.semantic.given=[music],{music: cross}")
    assert len(stores(fusions)) == 1
    (storing,) = (task for task in fusions if task.kind == "store")
    assert not any(part.startswith("stages") for part in storing.parts)
    # the conditions of a clip depend on its length, so the coarse stage is trained once for each
    windows = planned("stages.semantic.window=5,10", "tokens.clip=null")
    assert [task.part for task in windows].count("stages/coarse") == 2
    same_clips = planned("stages.semantic.window=5,10")
    assert [task.part for task in same_clips].count("stages/coarse") == 1


def test_what_a_variant_removes_takes_no_common_change():
    ablation = read_ablation("musiclm-semantic-stage", ["tokenizers.semantic.cardinality=128"])
    found, _ = make_runs(ablation)
    assert {run.plan.values["tokenizers"].get("semantic", {}).get("cardinality") for run in found} == {128, None}


def test_tokens_that_cannot_be_stored_are_refused_before_any_training(toy_recipe, tmp_path):
    ablation = study(toy_recipe, "tokens.clip=0.5", "seed=0")
    with pytest.raises(PartitaError, match=r"clips of 0.5 s are too short for a window of 1 s"):
        ablate(ablation, tmp_path / "out", launcher=Here(tmp_path / "out"))
    assert not list((tmp_path / "out").glob("parts/*"))


INNER = PartKey("tokenizers/semantic.features")


def test_a_part_inside_others_is_trained_once_whatever_is_around_it():
    ablation = read_ablation("musiclm-tiny", ["tokenizers.semantic.cardinality=256,128"])
    found, _ = make_runs(ablation)
    planned = plan_tasks(found, ablation)
    trainings = [task.part for task in planned if task.kind == "train"]
    counts = {part: trainings.count(part) for part in trainings}
    assert counts[INNER] == counts["conditioners/music.embedding"] == counts["conditioners/music"] == 1
    assert counts["tokenizers/semantic"] == counts["stages/semantic"] == 2
    assert counts["stages/fine"] == 1  # it is trained on codes of real clips, whoever generates the coarse ones later
    outer = [task for task in planned if task.part == "tokenizers/semantic"]
    assert {task.parts[INNER] for task in outer} == {next(t.folder for t in planned if t.part == INNER)}


def test_a_budget_reaches_parts_inside_others():
    found, _ = make_runs(read_ablation("musiclm-tiny", budget=["tokenizers.steps=7", "conditioners.steps=5"]))
    order = found[0].outline.training_order
    assert order[INNER].fit_options.steps == order[PartKey("tokenizers/semantic")].fit_options.steps == 7
    assert order[PartKey("conditioners/music.embedding")].fit_options.steps == 5
    tokens, _ = make_runs(read_ablation("musiclm-tiny", budget=["tokenizers.tokens=16000"]))
    # eight clips of eight seconds, 12.5 frames each
    assert tokens[0].outline.training_order[INNER].fit_options.steps == 16000 / (8 * 8 * 12.5)


def test_shared_inner_parts_are_those_that_train_makes(toy_recipe, tmp_path):
    fit = "fit: {steps: 3, batch_size: 2, crop: 0.5}"
    codec = f"{{name: toy-outer, inner: {{name: toy-encoder, {fit}}}, {fit}}}"
    toy_recipe.write_text(f"tokenizers: {{acoustic: {codec}}}\ndata: toy-sines\ntrainer: {{logger: csv}}\n")
    root, inner = tmp_path / "out", "tokenizers/acoustic.inner/model.safetensors"
    ablation = study(toy_recipe, "tokenizers.acoustic.dim=3,2")
    ablation.evaluation.scores["fad"] = False
    assert ablate(ablation, root, launcher=Here(root)) == {}
    train(load_recipe(toy_recipe), tmp_path / "alone")
    alone = {name: w for (file, name), w in weights(tmp_path / "alone").items() if file == inner}
    assert len(list(root.glob("parts/tokenizers-acoustic.inner-*"))) == 1
    for run in root.glob("variants/*/seed-0"):
        mine = {name: w for (file, name), w in weights(run).items() if file == inner}
        assert mine.keys() == alone.keys()
        assert all(torch.equal(alone[name], w) for name, w in mine.items())


def test_systems_without_audio_cannot_be_compared():
    with pytest.raises(PartitaError, match="has no audio output"):
        make_runs(read_ablation("mulan-tiny", ["conditioners.music.num_codebooks=4,8"]))
