import pytest
import torch
import yaml

import partita
from partita.core.part import Part
from partita.errors import RecipeError
from partita.recipe.plan import load_recipe
from partita.training.training import train


@pytest.fixture
def small(toy_recipe):
    """The toy recipe without averaged weights and random word order, its stage at two steps."""
    recipe = yaml.safe_load(toy_recipe.read_text())
    recipe["stages"]["main"]["generator"]["fit"] = {"steps": 2, "batch_size": 2, "lr": 0.01, "validation_examples": 2}
    toy_recipe.write_text(yaml.safe_dump(recipe))
    return toy_recipe


def state(folder, part="stages/main"):
    return Part.load(folder / part).exported_state()


@pytest.mark.parametrize("start", ["{run}", "{run}/stages/main", "{export}", "{run}/stages/main/model.safetensors"])
def test_training_starts_where_another_one_ended(saved_toy, small, tmp_path, start):
    partita.load(saved_toy).save(tmp_path / "export")
    source = start.format(run=saved_toy, export=tmp_path / "export")
    fit = "{steps: 1, batch_size: 2, lr: 1.0e-9, validation_examples: 2}"
    tuned = [f"stages.main.generator.init={source}", f"stages.main.generator.fit={fit}", "seed=5"]
    train(load_recipe(small, tuned), tmp_path / "run")
    before, after = state(saved_toy), state(tmp_path / "run")
    assert all(torch.allclose(before[name], after[name], atol=1e-7) for name in before)
    train(load_recipe(small, tuned[1:]), tmp_path / "scratch")
    assert not torch.allclose(before["head.weight"], state(tmp_path / "scratch")["head.weight"], atol=1e-3)


def test_only_named_parameters_move(saved_toy, small, tmp_path):
    changes = [f"stages.main.generator.init={saved_toy}", "stages.main.generator.fit.trainable=[head.*]"]
    train(load_recipe(small, changes), tmp_path / "run")
    before, after = state(saved_toy), state(tmp_path / "run")
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"head.weight", "head.bias"}


def test_a_preset_with_weights_is_trained_further_from_elsewhere(small, saved_toy):
    (small.parent / "tokenizer").mkdir()
    (small.parent / "tokenizer" / "ready.yaml").write_text(
        f"name: toy-codec\nweights: {saved_toy}/tokenizers/acoustic\n"
    )
    plan = load_recipe(small, ["tokenizers.acoustic=ready"]).tokenizers["acoustic"]
    assert plan.weights is not None
    assert plan.init is None
    further = [f"tokenizers.acoustic={{preset: ready, init: {saved_toy}, fit: {{steps: 3}}}}"]
    plan = load_recipe(small, further).tokenizers["acoustic"]
    assert (plan.weights, plan.init, plan.fit) == (None, str(saved_toy), {"steps": 3})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["stages.main.generator.init=3"], "expected a run, an export, a hub id or a path"),
        (["stages.main.generator.init=nowhere/at/all/x"], "there is no file or folder"),
        (
            ["tokenizers.acoustic.weights=RUN/tokenizers/acoustic", "tokenizers.acoustic.init=RUN"],
            "remove weights or init",
        ),
        (["tokenizers.acoustic.weights=RUN"], "a whole system: name a part of it, such as .*/tokenizers/NAME"),
        (["stages.main.generator.fit.trainable=[hed.*]"], r"no parameter is called 'hed.\*': did you mean 'head.\*'"),
        (["stages.main.generator.fit.trainable=[zzz]"], r"no parameter is called 'zzz': choose from .*head\.\*"),
    ],
)
def test_what_training_cannot_start_from(small, saved_toy, changes, words):
    with pytest.raises(RecipeError, match=words):
        partita.System.checked(small, [change.replace("RUN", str(saved_toy)) for change in changes])


def test_a_run_without_the_part_names_those_it_has(small, saved_toy, tmp_path):
    recipe = yaml.safe_load(small.read_text())
    recipe["tokenizers"]["other"] = recipe["tokenizers"].pop("acoustic") | {"init": str(saved_toy)}
    recipe["stages"]["main"]["target"] = "other"
    small.write_text(yaml.safe_dump(recipe))
    with pytest.raises(partita.PartitaError, match=r"has no part tokenizers/other .*tokenizers/acoustic"):
        train(load_recipe(small), tmp_path / "run")


def test_weights_of_other_sizes_are_refused_by_name(small, saved_toy, tmp_path):
    changes = [f"stages.main.generator.init={saved_toy}", "stages.main.generator.width=4"]
    with pytest.raises(partita.PartitaError, match=r"of another shape: .*embedding.weight"):
        train(load_recipe(small, changes), tmp_path / "run")
