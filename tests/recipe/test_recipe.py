import copy
import random

import pytest
import yaml

from partita.errors import PartitaError, RecipeError
from partita.recipe.plan import load_recipe
from partita.recipe.recipe_files import recipes
from partita.system.system import System


def problems(path, *overrides):
    with pytest.raises(RecipeError) as error:
        System.outline(load_recipe(path, overrides))
    return error.value.problems


def test_five_different_mistakes_are_reported_together(toy_recipe):
    text = toy_recipe.read_text()
    text = text.replace("name: toy-codec,", "name: toy-codec, hopp: 3,")
    text = text.replace("steps: 8", "steps: many")
    text = text.replace("text: toy-letters", "text: toy-leters")
    text = text.replace("target: acoustic", "target: acustic")
    toy_recipe.write_text(text + "sed: 3\n")
    found = {p.key: p for p in problems(toy_recipe)}
    expected = {
        "tokenizers.acoustic.hopp": "'hop'",
        "stages.main.generator.fit.steps": "int",
        "conditioners.text": "'toy-letters'",
        "stages.main.target": "'acoustic'",
        "sed": "'seed'",
    }
    assert expected.keys() == found.keys()
    for key, hint in expected.items():
        assert hint in str(found[key])
        assert found[key].file == str(toy_recipe)


@pytest.mark.parametrize(
    ("override", "key", "word"),
    [
        ("tokenizers.acoustic.hop=0", "tokenizers.acoustic", "hop must be positive"),
        ("stages.main.given={text: add}", "stages.main.given.text", "cannot enter by 'add'"),
        ("stages.main.given=[txt]", "stages.main.given", "'text'"),
        ("stages.main.window=-1", "stages.main.window", "positive"),
        ("stages.main.generator.condition_dropout={alone: {txt: 0.1}}", "stages.main.generator", "'txt'"),
        ("tokenizers.other=toy-codec", "tokenizers.other", "no stage uses this"),
        ("trainer.presicion=16", "trainer.presicion", "'precision'"),
        ("trainer.max_steps=16", "trainer.max_steps", "fit.steps"),
        ("tokenizers.acoustic.fit.batch_size=0", "tokenizers.acoustic.fit", "at least 1"),
        ("stages.main.generator.fit.trainable=[]", "stages.main.generator.fit", "trainable is empty"),
        ("stages.main.generator.target=3", "stages.main.generator.target", "system supplies this"),
        ("data=", "data", "must be given"),
        ("data.path=music", "data.path", "folder has it: data={name: folder, path: …}"),
        ("conditioners.type=toy-letters", "conditioners.type", "cannot be used as a name"),
    ],
)
def test_misfits_name_key_and_reason(toy_recipe, override, key, word):
    assert any(p.key == key and word in str(p) for p in problems(toy_recipe, override)), problems(toy_recipe, override)


def test_a_condition_the_data_cannot_supply(toy_recipe):
    assert "does not supply" in str(problems(toy_recipe, "data={name: toy-silent}")[0])


def test_a_part_alone_is_a_recipe_but_what_learns_with_a_stage_needs_one(toy_recipe):
    recipe = yaml.safe_load(toy_recipe.read_text())
    del recipe["stages"]
    toy_recipe.write_text(yaml.safe_dump(recipe))
    assert [(p.key, p.message) for p in problems(toy_recipe)] == [("conditioners.text", "no stage uses this")]
    toy_recipe.write_text(yaml.safe_dump({"data": recipe["data"], "conditioners": {"text": "t5-small"}}))
    assert list(System.outline(load_recipe(toy_recipe)).parts) == ["conditioners/text"]
    del recipe["conditioners"]
    toy_recipe.write_text(yaml.safe_dump(recipe))
    assert list(System.outline(load_recipe(toy_recipe)).parts) == ["tokenizers/acoustic"]
    toy_recipe.write_text(yaml.safe_dump({"data": recipe["data"]}))
    assert [(p.key, p.message) for p in problems(toy_recipe)] == [
        ("tokenizers", "the recipe has no parts: add tokenizers or conditioners")
    ]


def test_an_outline_allocates_nothing_and_knows_the_facts(toy_recipe):
    system = System.outline(load_recipe(toy_recipe))
    assert all(p.is_meta for part in system.parts.values() for p in part.parameters())
    assert system.stages["main"].target.cardinality == 16
    assert system.stages["main"].given["text"].fusion == "cross"


@pytest.mark.parametrize("name", recipes())
def test_every_packaged_recipe_is_sound(name):
    assert System.outline(load_recipe(name)).parts


def test_mutated_recipes_give_messages_and_never_tracebacks(toy_recipe):
    original = yaml.safe_load(toy_recipe.read_text())
    draw = random.Random(0)
    answers = []
    for _ in range(200):
        mutant = copy.deepcopy(original)
        for _ in range(draw.randint(1, 4)):
            mutate(mutant, draw)
        toy_recipe.write_text(yaml.safe_dump(mutant))
        try:
            System.outline(load_recipe(toy_recipe))
        except PartitaError as error:
            answers.append(str(error))
    assert len(answers) > 100
    assert all(str(toy_recipe) in answer or "recipe: " in answer for answer in answers)


def mutate(tree, draw):
    """Change one random place: another value, another key, a missing key, a surplus one, or text that YAML minds."""
    node = tree
    while isinstance(node, dict) and node:
        key = draw.choice(list(node))
        if not isinstance(node[key], dict) or draw.random() < 0.3:
            break
        node = node[key]
    if not isinstance(node, dict) or not node:
        return
    junk = [
        None,
        -1,
        0,
        3.5,
        "x",
        "",
        [],
        ["a", 1],
        {},
        {"a": {"b": 1}},
        True,
        "${nothing}",
        "${",
        "${oc.env:HOME}",
        "../../etc",
        1e30,
    ]
    match draw.choice(["value", "value", "drop", "rename", "add"]):
        case "value":
            node[key] = draw.choice(junk)
        case "drop":
            del node[key]
        case "rename":
            node[draw.choice([f"{key}x", 3, True, "", "name", "preset"])] = node.pop(key)
        case "add":
            node[draw.choice(["surplus", "preset", "base", "name", "weights", "fit"])] = draw.choice(junk)


def everything_wrong(path, *overrides):
    with pytest.raises(RecipeError) as error:
        System.checked(path, overrides)
    return {problem.key: str(problem) for problem in error.value.problems}


def test_mistakes_of_every_kind_are_reported_together(toy_recipe, tmp_path):
    recipe = yaml.safe_load(toy_recipe.read_text())
    recipe["seed"] = "soon"  # a value
    recipe["tokenizers"]["acoustic"]["hop"] = 0  # what only the constructor says
    recipe["conditioners"]["text"] = "toy-leters"  # composition
    recipe["data"] = {"name": "folder", "path": str(tmp_path / "no-music")}  # a path
    recipe["tokenizers"]["other"] = {"name": "toy-codec", "weights": str(tmp_path / "no-codec")}  # weights
    recipe["stages"]["main"]["generator"]["fit"]["steps"] = "many"  # how it is trained
    toy_recipe.write_text(yaml.safe_dump(recipe))
    found = everything_wrong(toy_recipe)
    assert "int" in found["seed"]
    assert "hop must be positive" in found["tokenizers.acoustic"]
    assert "'toy-letters'" in found["conditioners.text"]
    assert str(tmp_path / "no-codec") in found["tokenizers.other.weights"]
    assert "int" in found["stages.main.generator.fit.steps"]


@pytest.mark.parametrize(
    ("weights", "wrong"),
    [("nowhere", True), ("./no/where", True), ("/no/where", True), ("a/b", True), ("x" * 300, True), ("HERE", False)],
)
def test_weights_that_are_not_there(toy_recipe, tmp_path, weights, wrong):
    (tmp_path / "codec").mkdir()
    override = f"tokenizers.acoustic={{name: toy-codec, weights: {weights.replace('HERE', str(tmp_path / 'codec'))}}}"
    if wrong:
        assert "there is no file or folder" in everything_wrong(toy_recipe, override)["tokenizers.acoustic.weights"]
    else:
        System.checked(toy_recipe, [override])


@pytest.mark.parametrize("key", ["weights", "init", "fit"])
@pytest.mark.parametrize("component", ["autoencoder: {name: seanet", "bottleneck: {name: rvq"])
def test_components_have_no_weights_of_their_own(toy_recipe, component, key):
    codec = f"tokenizers.acoustic={{preset: spectral-tiny, {component}, {key}: somewhere}}}}"
    found = everything_wrong(toy_recipe, codec)
    assert "there is no such key" in found[f"tokenizers.acoustic.{component.split(':')[0]}.{key}"]


def test_a_hub_id_is_believed_where_the_part_takes_one(toy_recipe):
    System.checked(toy_recipe, ["tokenizers.acoustic={preset: encodec-24khz, weights: somebody/encodec}"])
    for weights in ("some/where/far/away", "/somebody/encodec", "../encodec"):
        found = everything_wrong(toy_recipe, f"tokenizers.acoustic={{preset: encodec-24khz, weights: {weights}}}")
        assert "no hub id" in found["tokenizers.acoustic.weights"]


def test_several_sources_are_a_list_of_slots(toy_recipe, tmp_path):
    recipe = yaml.safe_load(toy_recipe.read_text()) | {"data": ["toy-sines", {"name": "toy-silent", "weight": 2}]}
    toy_recipe.write_text(yaml.safe_dump(recipe))
    (toy_recipe.parent / "data").mkdir()
    (toy_recipe.parent / "data" / "few.yaml").write_text("name: toy-sines\npieces: 3\n")
    given = ["data.1.weight=5", "data.0=few", "data.0.pieces=4", "data.2={name: toy-sines, pieces: 4}"]
    plan = load_recipe(toy_recipe, given)
    assert [(part.cls.registered_name, part.arguments, part.weight) for part in plan.data] == [
        ("toy-sines", {"pieces": 4}, 1),
        ("toy-silent", {}, 5),
        ("toy-sines", {"pieces": 4}, 1),
    ]
    system = System.outline(plan)
    assert [member.label for member in system.source.members] == ["toy-sines 1", "toy-silent", "toy-sines 2"]
    system.save_index(tmp_path)  # and back
    again = load_recipe(tmp_path / "recipe.yaml", ["data.0=null"])
    assert [(part.key, part.weight) for part in again.data] == [("data.0", 5), ("data.1", 1)]
    assert len(load_recipe(toy_recipe, ["data=toy-sines"]).data) == 1


@pytest.mark.parametrize(
    ("override", "key", "word"),
    [
        ("data.7.pieces=3", "data.7", "a list of 2, data.0 to data.1"),
        ("data.pieces=3", "data.pieces", "set data.0.pieces"),
        ("data.1.piece=3", "data.1.piece", "did you mean 'pieces'"),
        ("data.1=toy-sine", "data.1", "did you mean 'toy-sines'"),
        ("data.0.weight=0", "data.0.weight", "a number above 0"),
        ("data.0.weight=much", "data.0.weight", "a number above 0"),
        ("data.1={name: folder, path: /no/music}", "data.1.path", "/no/music does not exist"),
        ("data.1.wieght=2", "data.1.wieght", "did you mean 'weight'"),
        ("tokenizers.acoustic.steps=9", "tokenizers.acoustic.steps", "did you mean 'fit.steps'"),
        ("tokenizers.acoustic.weigths=w", "tokenizers.acoustic.weigths", "did you mean 'weights'"),
        ("data={name: toy-sines, weight: 2}", "data.weight", "no such key"),
        ("data=[]", "data", "names no part"),
    ],
)
def test_mistakes_in_a_list_of_sources(toy_recipe, override, key, word):
    recipe = yaml.safe_load(toy_recipe.read_text()) | {"data": [{"name": "toy-sines"}, {"name": "toy-sines"}]}
    toy_recipe.write_text(yaml.safe_dump(recipe))
    assert word in everything_wrong(toy_recipe, override)[key]


def test_a_description_is_not_claimed_of_other_data(toy_recipe):
    toy_recipe.write_text(toy_recipe.read_text() + "description: Sines of eight pitches\n")
    child = toy_recipe.with_name("child.yaml")

    def described(text, *overrides):
        child.write_text(f"base: {toy_recipe}\n{text}")
        return load_recipe(child, overrides).values.get("description")

    assert described("seed: 1") == "Sines of eight pitches"
    assert described("data: {name: toy-sines, pieces: 3}") is None
    assert described("data: {name: toy-sines, pieces: 3}\ndescription: Three") == "Three"
    assert described("description: Others") == "Others"
    assert described("seed: 1", "data.pieces=3") is None
