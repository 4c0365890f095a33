import pytest

from partita.errors import PartitaError, RecipeError
from partita.recipe.compose import compose
from partita.recipe.plan import load_recipe


def write(folder, name, text):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


BASE = """
tokenizers: {acoustic: one}
conditioners: {text: {name: toy-letters, dim: 4}}
stages: {main: {generator: {name: toy-bigram, width: 8}, target: acoustic, given: [text], window: 2}}
data: {name: toy-sines}
"""


@pytest.fixture
def folder(tmp_path):
    write(tmp_path, "base.yaml", BASE)
    write(tmp_path, "tokenizer/one.yaml", "# first\nname: toy-codec\nhop: 50\nfit: {steps: 5, lr: 1e-3}\n")
    write(tmp_path, "tokenizer/two.yaml", "preset: one\nhop: 60\n")
    return tmp_path


def test_presets_are_found_beside_the_recipe_and_expanded(folder):
    tree = compose(folder / "base.yaml")
    assert not tree.problems
    assert tree.values["tokenizers"]["acoustic"] == {"name": "toy-codec", "hop": 50, "fit": {"steps": 5, "lr": 1e-3}}


def test_a_preset_can_start_from_a_preset(folder):
    tree = compose(folder / "base.yaml", ["tokenizers.acoustic=two"])
    assert tree.values["tokenizers"]["acoustic"]["hop"] == 60
    assert tree.values["tokenizers"]["acoustic"]["fit"]["steps"] == 5


def test_a_registered_name_stands_for_the_part_with_its_defaults(folder):
    tree = compose(folder / "base.yaml", ["tokenizers.acoustic=toy-codec"])
    assert tree.values["tokenizers"]["acoustic"] == {"name": "toy-codec"}


def test_overrides_reach_into_a_preset_and_remember_where_they_came_from(folder):
    tree = compose(
        folder / "base.yaml", ["tokenizers.acoustic.fit.steps=7", "tokenizers.acoustic.fit.lr=1e-4", "seed=3"]
    )
    assert tree.values["tokenizers"]["acoustic"]["fit"] == {"steps": 7, "lr": 1e-4}
    assert tree.values["seed"] == 3
    assert tree.origin("tokenizers.acoustic.fit.steps") == "command line"
    assert tree.origin("tokenizers.acoustic.hop").endswith("one.yaml")
    assert tree.origin("stages.main.window").endswith("base.yaml")


def test_a_base_is_changed_in_a_few_lines(folder):
    derived = write(
        folder,
        "derived.yaml",
        """
base: base
tokenizers: {acoustic: {hop: 25}}
conditioners: {text: null}
stages: {main: {given: [], generator: {width: 9}}}
""",
    )
    (folder / "base").write_text(BASE)
    values = compose(derived).values
    assert values["tokenizers"]["acoustic"]["hop"] == 25
    assert values["tokenizers"]["acoustic"]["fit"]["steps"] == 5
    assert values["conditioners"] == {}
    assert values["stages"]["main"]["generator"] == {"name": "toy-bigram", "width": 9}
    assert values["stages"]["main"]["window"] == 2


def test_naming_a_part_anew_drops_the_arguments_of_the_old_one(folder):
    values = compose(folder / "base.yaml", ["conditioners.text={name: other, size: 3}"]).values
    assert values["conditioners"]["text"] == {"name": "other", "size": 3}


@pytest.mark.parametrize(
    ("override", "key", "word"),
    [
        ("tokenizers.acoustic=toy-codek", "tokenizers.acoustic", "did you mean 'toy-codec'"),
        ("tokenizers.acoustic.hop=${seed}", "tokenizers.acoustic.hop", "cannot refer"),
        ("tokenizers.acoustic.hop=${oc.env:HOME}", "tokenizers.acoustic.hop", "cannot refer"),
        ("data.name.deep=3", "data.name.deep", "no keys of its own"),
        ("no-equals-sign", "no-equals-sign", "key=value"),
        ("seed={", "seed", "not a YAML value"),
    ],
)
def test_bad_overrides_name_key_and_reason(folder, override, key, word):
    problem = compose(folder / "base.yaml", [override]).problems[0]
    assert problem.key == key
    assert word in str(problem)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("a: [", "not valid YAML"),
        ("- 1", "mapping"),
        ("\x00", "YAML"),
        ("a: 1\na: 2", "duplicate"),
        ("x" * 2_000_000, "more than such a file can have"),
    ],
)
def test_files_that_are_no_recipe_are_refused_with_their_name(tmp_path, text, word):
    with pytest.raises(PartitaError, match=word) as error:
        compose(write(tmp_path, "bad.yaml", text))
    assert "bad.yaml" in str(error.value)


def test_a_base_of_itself_is_a_problem(tmp_path):
    path = write(tmp_path, "loop.yaml", "base: loop.yaml\n")
    assert "its own base" in str(compose(path).problems[0])


def test_an_unknown_recipe_is_answered_with_those_there_are():
    with pytest.raises(PartitaError, match="chorales-tiny"):
        compose("chorale-tiny")


@pytest.fixture
def inside(folder):
    """A recipe whose tokenizer is made from another one."""
    write(folder, "tokenizer/words.yaml", "name: kmeans\nfeatures: mels\ncardinality: 8\nfit: {steps: 3}\n")
    write(folder, "tokenizer/mels.yaml", "name: log-mel\nbands: 20\noverlap: 5\n")
    return write(folder, "words.yaml", "tokenizers: {semantic: words}\ndata: {name: toy-sines}\n")


def features(path, *overrides):
    tree = compose(path, overrides)
    assert not tree.problems
    return tree.values["tokenizers"]["semantic"]["features"]


def test_a_part_inside_another_is_a_slot_like_any_other(inside):
    assert features(inside) == {"name": "log-mel", "bands": 20, "overlap": 5}
    assert features(inside, "tokenizers.semantic.features.bands=30") == {"name": "log-mel", "bands": 30, "overlap": 5}
    assert features(inside, "tokenizers.semantic.features=log-mel") == {"name": "log-mel"}
    assert features(inside, "tokenizers.semantic.features={name: log-mel, bands: 9}") == {"name": "log-mel", "bands": 9}
    assert features(inside, "tokenizers.semantic.features={preset: mels, bands: 9}")["overlap"] == 5
    twice = ["tokenizers.semantic.features=log-mel", "tokenizers.semantic.features.bands=9"]
    assert features(inside, *twice) == {"name": "log-mel", "bands": 9}
    inside.write_text("tokenizers: {semantic: {preset: words, features: {overlap: 3}}}\ndata: {name: toy-sines}\n")
    assert features(inside) == {"name": "log-mel", "bands": 20, "overlap": 3}


def test_keys_of_a_part_inside_another_remember_where_they_came_from(inside):
    tree = compose(inside, ["tokenizers.semantic.features.bands=30"])
    assert tree.origin("tokenizers.semantic.features.bands") == "command line"
    assert tree.origin("tokenizers.semantic.features.overlap").endswith("mels.yaml")
    assert tree.origin("tokenizers.semantic.cardinality").endswith("words.yaml")


def test_parts_inside_parts_of_other_packages_and_of_unknown_names_are_left_alone(inside):
    values = compose(inside, ["tokenizers.semantic={name: unheard-of, features: mels}"]).values
    assert values["tokenizers"]["semantic"] == {"name": "unheard-of", "features": "mels"}


@pytest.mark.parametrize(
    ("value", "key", "word"),
    [
        ("3", "", "expected the name of a tokenizer or a mapping, got 3"),
        ("[mels]", "", "got ['mels']"),
        ("true", "", "got True"),
        ("null", "", "must be given"),
        ("''", "", "no tokenizer is called ''"),
        ("mel", "", "did you mean 'mels'"),
        ("lookup", "", "no tokenizer is called 'lookup'"),
        ("words", "", "preset 'words' is based on itself"),
        ("loop", ".features", "preset 'loop' is based on itself"),
        ("{preset: [1]}", "", "no tokenizer is called [1]"),
        ("{name: 3}", ".name", "no tokenizer is called '3'"),
        ("{name: kmeans}", ".features", "must be given"),
        ("{name: kmeans, features: {name: kmeans, features: 3}}", ".features.features", "got 3"),
        ("{name: log-mel, band: 3}", ".band", "did you mean 'bands'"),
        ("{name: log-mel, bands: many}", ".bands", "expected int, got 'many'"),
        ("{name: log-mel, weights: x}", ".weights", "has no weights"),
        ("{name: log-mel, fit: {steps: 3}}", ".fit", "log-mel has nothing to train: remove this key"),
        ("{name: vggish}", ".weights", "not trainable and has no weights"),
        ("{name: vggish, weights: 3}", ".weights", "expected a hub id or a path"),
        ("'${description}'", "", "no tokenizer is called"),
        ("{name: log-mel, bands: '${nowhere}'}", ".bands", "cannot refer"),
    ],
)
def test_what_is_wrong_with_a_part_inside_another(inside, value, key, word):
    write(inside.parent, "tokenizer/loop.yaml", "name: kmeans\nfeatures: loop\n")
    with pytest.raises(RecipeError) as error:
        load_recipe(inside, [f"tokenizers.semantic.features={value}"])
    found = [str(problem) for problem in error.value.problems if problem.key == f"tokenizers.semantic.features{key}"]
    assert any(word in problem for problem in found)


def test_the_plan_keeps_a_part_inside_another_apart(inside):
    plan = load_recipe(inside).tokenizers["semantic"]
    assert plan.arguments == {"cardinality": 8}
    assert plan.fit == {"steps": 3}
    part = plan.parts["features"]
    assert (part.key, part.cls.registered_name) == ("tokenizers.semantic.features", "log-mel")
    assert (part.arguments, part.weights, part.fit) == ({"bands": 20, "overlap": 5}, None, {})


def test_weights_of_a_part_without_any_are_refused_anywhere(inside):
    with pytest.raises(RecipeError, match="log-mel has no weights"):
        load_recipe(inside, ["tokenizers.semantic={name: log-mel, weights: some/where}"])
    assert load_recipe(inside, ["tokenizers.semantic=log-mel"]).tokenizers["semantic"].cls.weightless


CODEC = "name: codec, autoencoder: seanet, bottleneck: rvq, discriminator: multi-scale"


@pytest.mark.parametrize(
    ("recipe", "overrides", "refused"),
    [
        (f"{{{CODEC}, weights: x, fit: {{steps: 3}}}}", [], True),
        ("{preset: ready, fit: {steps: 3}}", [], True),  # the preset has the weights
        (f"{{{CODEC}, weights: x}}", ["tokenizers.acoustic.fit.steps=3"], True),
        ("spectral-tiny", ["tokenizers.acoustic.weights=x", "tokenizers.acoustic.fit.steps=3"], True),
        ("both", [], False),  # the options are for slots that train it
        ("{preset: both, fit: {lr: 1e-3}}", [], True),
        ("{preset: both, init: x, fit: {lr: 1e-3}}", [], False),
        ("{preset: spectral-tiny, weights: x}", [], False),  # the preset only says how it would be trained
        (f"{{{CODEC}, fit: {{steps: 3}}}}", ["tokenizers.acoustic.weights=x"], False),
        ("{preset: ready, weights: null, fit: {steps: 3}}", [], False),
    ],
)
def test_weights_and_training_together_are_refused(tmp_path, recipe, overrides, refused):
    write(tmp_path, "tokenizer/ready.yaml", f"{{{CODEC}, weights: there}}")
    write(tmp_path, "tokenizer/both.yaml", f"{{{CODEC}, weights: there, fit: {{steps: 3}}}}")
    path = write(tmp_path, "mine.yaml", f"tokenizers: {{acoustic: {recipe}}}\ndata: chorales\n")
    if refused:
        with pytest.raises(RecipeError, match=r"tokenizers.acoustic.fit: .*weights, which are final"):
            load_recipe(path, overrides)
    else:
        plan = load_recipe(path, overrides).tokenizers["acoustic"]
        assert plan.weights is None or plan.fit == {}
