import pytest

from partita.compose import compose
from partita.errors import PartitaError


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


def test_interpolation_refers_to_other_keys(folder):
    values = compose(folder / "base.yaml", ["seed=4", "tokenizers.acoustic.hop=${seed}"]).values
    assert values["tokenizers"]["acoustic"]["hop"] == 4


@pytest.mark.parametrize(
    ("override", "key", "word"),
    [
        ("tokenizers.acoustic=toy-codek", "tokenizers.acoustic", "did you mean 'toy-codec'"),
        ("tokenizers.acoustic.hop=${nowhere}", "tokenizers.acoustic.hop", "refers to nothing"),
        ("tokenizers.acoustic.hop=${oc.env:HOME}", "tokenizers.acoustic.hop", "resolver"),
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
        ("x" * 2_000_000, "larger"),
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
