"""Training a saved system further, with the key ``finetune``."""

import pytest
import torch
import yaml

import partita
from partita.core.part import Part
from partita.errors import PartitaError
from partita.publishing.card import collect
from partita.recipe.plan import load_recipe
from partita.training.training import train

FEW = {"steps": 1, "batch_size": 2, "lr": 1.0e-9, "validation_examples": 2}


def state(folder, part):
    return Part.load(folder / part).exported_state()


def close(a, b):
    return all(torch.allclose(a[name], b[name], atol=1e-6) for name in a)


def test_stages_start_from_a_saved_system_and_all_else_stays(saved_toy, tmp_path):
    changes = [f"finetune={saved_toy}", f"stages.main.generator.fit={FEW}".replace("'", ""), "seed=5"]
    run = tmp_path / "run"
    train(load_recipe(saved_toy, changes), run)
    plan = load_recipe(run)
    parts = [path.relative_to(saved_toy).parent for path in sorted(saved_toy.glob("*/*/model.safetensors"))]
    assert len(parts) > 2
    for part in parts:
        assert close(state(saved_toy, part), state(run, part)), part
    assert plan.stages["main"].part.init == f"{saved_toy}/stages/main"
    assert "finetune" not in plan.values  # a finished run stands by itself
    assert partita.load(run).generate(["a"], duration=0.2, progress=False).isfinite().all()


def test_a_system_on_the_hub_is_trained_further(saved_toy, hub, tmp_path):
    partita.push(saved_toy, "alice/toy", examples=0)
    plan = load_recipe(saved_toy, ["finetune=alice/toy", f"stages.main.generator.fit={FEW}".replace("'", "")])
    assert plan.stages["main"].part.init == "alice/toy/stages/main"  # which is found on other machines, too
    train(plan, run := tmp_path / "run")
    assert close(state(saved_toy, "stages/main"), state(run, "stages/main"))
    card = collect(run, "alice/further", examples=0)["README.md"].decode()
    assert yaml.safe_load(card.split("---")[1])["base_model"] == ["alice/toy"]
    assert "| stages/main | `alice/toy` | 1 | 2 |" in card


def test_what_the_recipe_replaces_is_trained_anew(saved_toy):
    plan = load_recipe(saved_toy, [f"finetune={saved_toy}", "tokenizers.acoustic=spectral-tiny"])
    acoustic, stage = plan.tokenizers["acoustic"], plan.stages["main"].part
    assert (acoustic.weights, acoustic.init) == (None, None)
    assert stage.init == f"{saved_toy}/stages/main"
    elsewhere = [f"finetune={saved_toy}", "stages.main.generator.init=somebody/else"]
    assert load_recipe(saved_toy, elsewhere).stages["main"].part.init == "somebody/else"


def test_conditioners_that_learn_with_their_stage_go_on(tmp_path):
    recipe = yaml.safe_load(yaml.safe_dump(load_recipe("chorales-tiny").values))
    saved = tmp_path / "saved"
    saved.mkdir()
    (saved / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    plan = load_recipe("chorales-tiny", [f"finetune={saved}", "stages.acoustic.generator.fit.lr=1e-4"])
    text, codec, stage = plan.conditioners["text"], plan.tokenizers["acoustic"], plan.stages["acoustic"].part
    assert (text.weights, text.init) == (None, f"{saved}/conditioners/text")
    assert (codec.weights, codec.fit) == (f"{saved}/tokenizers/acoustic", {})
    assert (stage.init, stage.fit["lr"]) == (f"{saved}/stages/acoustic", 1e-4)
    assert stage.arguments["sampling"] == recipe["stages"]["acoustic"]["generator"]["sampling"]
    other = load_recipe("chorales-tiny", [f"finetune={saved}", "tokenizers.acoustic=soundstream-tiny"])
    assert other.tokenizers["acoustic"].weights is None  # another network under the same part


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("nowhere", "finetune: nowhere is neither a saved system"),
        ("[1]", r"finetune: expected a run, an export or a hub id, got \[1\]"),
        ("EMPTY", "is neither a saved system, a folder with recipe.yaml"),
        ("OTHER", "none of the parts of this recipe is one of .*: start from its recipe"),
    ],
)
def test_mistakes_are_named(saved_toy, tmp_path, source, said):
    (tmp_path / "empty").mkdir()
    (other := tmp_path / "other").mkdir()
    (other / "recipe.yaml").write_text("tokenizers: {else: {name: log-mel}}\ndata: corpus\n")
    source = source.replace("EMPTY", str(tmp_path / "empty")).replace("OTHER", str(other))
    with pytest.raises(PartitaError, match=said):
        load_recipe(saved_toy, [f"finetune={source}"])
