"""What an ablation compares: files, command lines, variants and their names."""

import re

import pytest
import yaml

from ablation_toys import CODECS, FEW, LETTERS, Here, study
from partita.errors import PartitaError, RecipeError
from partita.evaluation.ablate import ablate, preview_ablation
from partita.evaluation.ablation import read_ablation, variants
from partita.evaluation.ablation_runs import make_runs
from partita.recipe.plan import load_recipe


def test_every_combination_is_a_variant_and_the_first_is_the_baseline(toy_recipe):
    found = variants(study(toy_recipe, CODECS, LETTERS, "seed=0,1"))
    assert [v.title for v in found] == [
        "cardinality=16 + toy-letters",
        "cardinality=16 + text=toy-letters dim=4",
        "cardinality=8 + toy-letters",
        "cardinality=8 + text=toy-letters dim=4",
    ]
    assert [v.name for v in found][::2] == ["cardinality=16+toy-letters", "cardinality=8+toy-letters"]
    assert len({v.name for v in found}) == 4
    assert found[3].changes == {
        "tokenizers.acoustic.cardinality": 8,
        "conditioners.text": {"name": "toy-letters", "dim": 4},
    }


def test_a_changed_part_is_called_by_its_name_where_that_is_enough(toy_recipe):
    found = variants(study(toy_recipe, "tokenizers.acoustic=toy-codec,{name: toy-other, weights: /some/where}"))
    assert [v.title for v in found] == ["toy-codec", "toy-other"]


@pytest.mark.parametrize(
    "values",
    [
        [{"name": "toy-codec", "weights": "/runs/a/acoustic"}, {"name": "toy-codec", "weights": "/runs/b/acoustic"}],
        [4, "4", 4.0, True, None, 1e-4, 1e-5],
        ["a-2", "a", "a/", "A", "..", "-a", "x" * 200, "x" * 201, "ü", "음악", "🎵"],
    ],
)
def test_whatever_the_values_variants_are_told_apart(toy_recipe, values):
    """By people, and by folders that are the same whatever else is varied, and safe everywhere."""
    ablation = study(toy_recipe)
    ablation.vary["tokenizers.acoustic.thing"] = values
    found = variants(ablation)
    assert [v.changes["tokenizers.acoustic.thing"] for v in found] == values
    assert len({v.title for v in found}) == len({v.name.casefold() for v in found}) == len(values)
    for variant, value in zip(found, values, strict=True):
        ablation.vary["tokenizers.acoustic.thing"] = [value]
        assert variants(ablation)[0].name == variant.name
        assert re.fullmatch(r"\w[\w.=+-]{0,99}|-[0-9a-f]{8}", variant.name, re.ASCII)


def test_changes_inside_a_slot_outlast_a_change_of_the_slot(toy_recipe):
    """In whatever order they are said."""
    inside = "tokenizers.acoustic.fit.steps=3"
    slots = "tokenizers.acoustic=toy-codec,{name: toy-codec, hop: 50}"
    for changes in ([inside, slots], [slots, inside]):
        found, _ = make_runs(study(toy_recipe, *changes))
        assert [run.outline.tokenizers["acoustic"].fit_options.steps for run in found] == [3, 3]
        assert [run.outline.tokenizers["acoustic"].hop for run in found] == [100, 50]


@pytest.mark.parametrize(
    ("keys", "word"),
    [
        ({"vary": {"stages.main.window": [1, 2]}, "variants": {"a": {"stages.main.window": 3}}}, "varied on its own"),
        ({"variants": {"a": {"seed": 3}}}, "varied on its own"),
        ({"vary": {"seed": [1, 2]}, "set": {"seed": 0}}, "both set and varied"),
        ({"vary": {"seed": []}}, "list of values"),
        ({"vary": {"seed": [0]}, "budget": {"conditioners": {"steps": 3}}}, "none of these parts is trained"),
        (
            {"vary": {"seed": [0]}, "evaluation": {"scores": {"fad": {"embeddings": ["log-mol"]}}}},
            "did you mean 'log-mel'",
        ),
        ({"vary": {"seed": [0]}, "evaluation": {"clip": 3}}, "did you mean 'clips'"),
        ({"vary": {"seed": [0]}, "evaluation": {"scores": {"fid": True}}}, "did you mean 'fad'"),
        ({"vary": {"seed": [0]}, "evaluation": {"scores": ["fad"]}}, "evaluation.scores must be a mapping"),
        ({"vory": {}}, "did you mean 'vary'"),
        ({"variants": {"a": {"tokenizers.acoustic.hob": 3}}}, "changes of the ablation: .*hob.*'hop'"),
    ],
)
def test_files_that_contradict_themselves_are_refused_before_anything_is_done(toy_recipe, tmp_path, keys, word):
    file = toy_recipe.with_name("study.yaml")
    file.write_text(yaml.safe_dump({"recipe": toy_recipe.name, **keys}))
    with pytest.raises(PartitaError, match=word):
        ablate(read_ablation(str(file)), tmp_path / "out", launcher=Here(tmp_path))
    assert not (tmp_path / "out").exists()


def test_an_ablation_file_is_no_recipe(toy_recipe):
    file = toy_recipe.with_name("study.yaml")
    file.write_text(yaml.safe_dump({"recipe": toy_recipe.name}))
    with pytest.raises(PartitaError, match=r"run `partita ablate .*study\.yaml`"):
        load_recipe(file)


def test_an_ablation_file_says_the_same_as_the_command_line(toy_recipe):
    file = toy_recipe.with_name("study.yaml")
    file.write_text(
        yaml.safe_dump(
            {
                "recipe": toy_recipe.name,
                "vary": {"tokenizers.acoustic.cardinality": [16, 8], "seed": [0, 1]},
                "set": {"stages.main.window": 0.5},
                "budget": {"stages": {"steps": 5}},
                "evaluation": FEW,
            }
        )
    )
    slot_name = study(toy_recipe, CODECS, "seed=0,1", "stages.main.window=0.5", budget=["steps=5"])
    assert read_ablation(str(file)) == slot_name
    assert read_ablation(str(file), ["seed=3"]).seeds == (3,)


def test_scores_are_chosen_in_the_file_and_on_the_command_line(toy_recipe):
    file, fad = toy_recipe.with_name("study.yaml"), {"embeddings": [{"preset": "log-mel-16khz"}]}
    scores = {"fad": fad, "memorization": True}
    file.write_text(yaml.safe_dump({"recipe": toy_recipe.name, "evaluation": {"clips": 2, "scores": scores}}))
    assert read_ablation(str(file)).evaluation.scores == scores
    changed = read_ablation(str(file), evaluation={"scores": {"memorization": False, "melody": False}})
    assert changed.evaluation.scores == {"fad": fad, "memorization": False, "melody": False}
    assert changed.evaluation.clips == 2


def test_changes_that_go_together_are_one_choice(toy_recipe):
    file = toy_recipe.with_name("study.yaml")
    together = {"small": {"tokenizers.acoustic.hop": 200, "stages.main.generator.width": 8}, "large": {}}
    file.write_text(
        yaml.safe_dump(
            {"recipe": toy_recipe.name, "variants": together, "vary": {"stages.main.window": [1.0, 2.0]}},
            sort_keys=False,
        )
    )
    found = variants(read_ablation(str(file)))
    assert [v.name for v in found] == ["window=1.0+small", "window=1.0+large", "window=2.0+small", "window=2.0+large"]
    assert found[0].changes == {"stages.main.window": 1.0, **together["small"]}


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (["tokenizers.acoustic"], "expected key=value or key=a,b"),
        (["tokenizers.acoustic=[a"], "not a list of YAML values"),
        (["tokenizers.acoustic="], "no value"),
        (["seed=0,a"], "whole numbers"),
        (["seed=0,0"], "twice"),
        (["tokenizers.acoustic=toy-codec,toy-codex"], "did you mean 'toy-codec'"),
        (["tokenizers.acoustic.hob=100,200"], "did you mean 'hop'"),
    ],
)
def test_what_cannot_be_compared_is_one_message(toy_recipe, tmp_path, change, word):
    with pytest.raises((PartitaError, RecipeError), match=word):
        ablate(study(toy_recipe, *change), tmp_path / "out", launcher=Here(tmp_path))
    assert not (tmp_path / "out").exists()


def test_two_budgets_for_one_group_are_one_too_many(toy_recipe):
    with pytest.raises(PartitaError, match="two budgets for stages"):
        study(toy_recipe, budget=["steps=5", "stages.minutes=3"])


@pytest.mark.parametrize("budget", ["hours=3", "steps=0", "steps=many", "3", "stage.steps=3"])
def test_a_budget_that_is_none(toy_recipe, budget):
    with pytest.raises(PartitaError, match=r"--budget takes|no such group.*'stages'"):
        study(toy_recipe, budget=[budget])


def test_a_preview_does_nothing(toy_recipe, tmp_path):
    lines = preview_ablation(study(toy_recipe, CODECS), tmp_path / "out")
    assert lines[0].startswith("2 variants, 2 runs: 4 parts to train")
    assert "to do: stages/main of cardinality=16, seed 0: 8 steps of 2" in lines
    assert not (tmp_path / "out").exists()
