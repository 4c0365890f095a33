"""What people and files can write in the place of a value: a message each, and nothing is executed or enumerated."""

import json
import re
import sys

import pytest

import partita
from partita.cli.main import main
from partita.core.schema import build, check
from partita.evaluation.ablation import read_ablation, variants
from partita.evaluation.embedders import read_embedder
from partita.evaluation.evaluation_options import Evaluation
from partita.layers.sampling import Sampling
from partita.recipe.plan import load_recipe
from partita.recipe.recipe_files import read_value
from partita.system.prompts import read_prompts
from partita.system.system import System

TAGS = [
    "!!python/object/apply:os.system ['touch OWNED']",
    "!!python/name:os.system",
    "!!binary aGVsbG8=",
    "!custom x",
    "&a [*a]",
]
BOMB = "[&a0 [l,l,l,l,l,l,l,l,l]" + "".join(f", &a{i + 1} [{','.join([f'*a{i}'] * 9)}]" for i in range(8)) + "]"


@pytest.fixture
def command(monkeypatch, capsys, tmp_path):
    """Runs a command line; returns its status and what it says."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["partita", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit:
            main()
        return exit.value.code, capsys.readouterr().err

    return run


@pytest.mark.parametrize(
    "value", ["[", "{a", "'", "a: b: c", "@x", "[" * 5000, "9" * 9000, "0x" + "f" * 9000, BOMB, *TAGS]
)
def test_settings_are_yaml_as_in_a_file(command, saved_toy, tmp_path, value):
    value = value.replace("OWNED", str(tmp_path / "owned"))
    for arguments in (
        ("generate", saved_toy, "tone 1", "-s", f"temperature={value}"),
        ("ablate", saved_toy / "recipe.yaml", f"stages.main.window={value}", "--dry-run"),
        ("evaluate", saved_toy, "--score", f"fad={value}"),
        ("check", saved_toy / "recipe.yaml", f"stages.main.window={value}"),
    ):
        status, said = command(*arguments)
        assert (status, said.count("error:"), "Traceback" in said) == (2, 1, False), said
    assert not (tmp_path / "owned").exists()


def test_numbers_are_read_as_in_a_recipe(saved_toy):
    """PyYAML reads 1e-3 as a text."""
    assert read_value("1e-3") == 0.001
    stage = partita.load(saved_toy).stages["main"]
    assert stage.changed_sampling({"temperature": "0.5"}).temperature == 0.5
    with pytest.raises(partita.PartitaError, match="temperature"):
        stage.changed_sampling({"temperature": "cold"})


@pytest.mark.parametrize(
    "setting", ["main=1 main.temperature=1", "temperature=.nan", "temperature=.inf", "temperature=${oc.env:HOME}"]
)
def test_settings_that_no_stage_can_have(command, saved_toy, setting):
    status, said = command(
        "generate", saved_toy, "tone 1", *(word for text in setting.split() for word in ("-s", text))
    )
    assert (status, said.count("error:")) == (2, 1), said


@pytest.mark.parametrize("amount", ["nan", "inf", "1e999", "1e300", "-1", "0", "9" * 9000, "x"])
def test_budgets_are_finite(command, saved_toy, tmp_path, amount):
    status, said = command("ablate", saved_toy / "recipe.yaml", "--budget", f"steps={amount}", "--dry-run")
    assert (status, said.count("--budget takes")) == (2, 1), said
    number = {"nan": ".nan", "inf": ".inf"}.get(amount, amount)
    (tmp_path / "study.yaml").write_text(
        f"recipe: {saved_toy / 'recipe.yaml'}\nbudget: {{stages: {{steps: {number}}}}}\n"
    )
    status, said = command("ablate", tmp_path / "study.yaml", "--dry-run")
    assert (status, said.count("error:"), "Traceback" in said) == (2, 1, False), said


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_no_number_of_a_part_is_endless(toy_recipe, number):
    assert check(Sampling, {"temperature": number, "top_p": 0.5})[0].key == "temperature"
    text = {"nan": ".nan", "inf": ".inf", "-inf": "-.inf"}[str(number)]
    for key in ("stages.main.generator.condition_dropout.together",
                "stages.main.generator.fit.lr", "stages.main.generator.fit.ema",
                "stages.main.window", "tokenizers.acoustic.fit.eps"):  # fmt: skip
        with pytest.raises(partita.PartitaError, match=re.escape(key)):
            load_recipe(toy_recipe, [f"{key}={text}"])
    with pytest.raises(partita.PartitaError, match=r"data\.validation"):
        load_recipe("chorales-tiny", [f"data.validation={text}"])
    with pytest.raises(partita.PartitaError, match="duration"):
        Evaluation(duration=number)


def test_a_value_cannot_read_the_environment(monkeypatch):
    """Recipes are resolved before, and what is saved is resolved; nothing else refers to anything."""
    monkeypatch.setenv("PARTITA_SECRET", "secret")
    with pytest.raises(ValueError, match=r"only recipes can refer"):
        build(Evaluation, {"scores": {"fad": {"embeddings": ["${oc.env:PARTITA_SECRET}"]}}})


def test_combinations_are_counted_before_they_are_made(tmp_path, saved_toy, monkeypatch):
    study = {"recipe": str(saved_toy / "recipe.yaml")}
    study["vary"] = {f"stages.main.generator.key{i}": list(range(300)) for i in range(4)}
    (tmp_path / "study.yaml").write_text(json.dumps(study))
    with pytest.raises(partita.PartitaError, match="8,100,000,000 runs"):
        read_ablation(tmp_path / "study.yaml")
    study["vary"] = {"seed": list(range(9_000))}
    (tmp_path / "study.yaml").write_text(json.dumps(study))
    with pytest.raises(partita.PartitaError, match="9,000 runs"):
        read_ablation(tmp_path / "study.yaml")
    study["vary"] = {"seed": list(range(10))}
    study["variants"] = {f"v{i}": {"stages.main.window": i + 1} for i in range(101)}
    (tmp_path / "study.yaml").write_text(json.dumps(study))
    with pytest.raises(partita.PartitaError, match="1,010 runs"):
        read_ablation(tmp_path / "study.yaml")
    del study["variants"]["v100"]
    (tmp_path / "study.yaml").write_text(json.dumps(study))
    assert len(variants(read_ablation(tmp_path / "study.yaml"))) == 100


@pytest.mark.parametrize("name", ["x" * 101, "é" * 60, "x" * 9000])
@pytest.mark.parametrize("group", ["tokenizers", "conditioners", "stages"])
def test_names_of_parts_that_no_folder_can_have(toy_recipe, name, group):
    """The names of temporary folders and of tasks are longer than that of a part, and a file system takes 255 bytes."""
    with pytest.raises(partita.PartitaError, match="cannot be used as a name") as error:
        load_recipe(toy_recipe, [f"{group}.{name}={{name: toy-codec}}"])
    assert len(str(error.value)) < 5000
    load_recipe(
        toy_recipe,
        [f"conditioners.{'x' * 100}=toy-letters", f"stages.main.given=[{'x' * 100}]", "conditioners.text=null"],
    )


def test_names_of_files_and_of_the_hub_that_cannot_be(command, saved_toy, tmp_path):
    long = "x" * 300
    recipe = saved_toy / "recipe.yaml"
    for arguments in (
        ("generate", saved_toy, "--prompts", f"{long}.jsonl"),
        ("generate", saved_toy, "tone 1", "-d", "0.2", "-o", f"{long}.wav"),
        ("generate", saved_toy, "tone 1", "-d", "0.9", "--continue", f"{long}.wav"),
        ("generate", f"user/{long}", "tone 1"),
        ("push", saved_toy, f"user/{long}", "--dry-run"),
        ("pull", f"user/{long}"),
        ("train", recipe, "-o", long),
        ("ablate", recipe, "--dry-run", "-o", long),
        ("ablate", recipe, f"conditioners.text={long}", "--dry-run"),
        ("check", recipe, f"tokenizers.acoustic={{preset: {long}}}"),
        ("check", recipe, f"tokenizers.acoustic={{name: toy-codec, weights: {long}}}"),
        ("check", recipe, f"data={{name: folder, path: {long}}}"),
        ("check", recipe, f"data={{name: folder, path: ., manifest: {long}}}"),
        ("check", recipe, f"data.{'9' * 9000}.pieces=2"),
        ("check", recipe, f"stages.main.target=acoustic[:{'9' * 9000}]"),
        ("evaluate", saved_toy, "-o", long),
    ):
        status, said = command(*arguments)
        assert (status, "Traceback" in said, bool(said.strip())) == (2, False, True), (arguments, said)
    (tmp_path / "study.yaml").write_text(f"recipe: {long}\n")
    status, said = command("ablate", tmp_path / "study.yaml", "--dry-run")
    assert (status, said.count("error:")) == (2, 1), said


@pytest.mark.parametrize("name", ["x" * 300, "a/" + "x" * 300, "x\0y", "\ud800"])
def test_names_of_files_in_python(saved_toy, name):
    """What the file system says to a name that cannot be is no error of its own."""
    part = partita.load(saved_toy).tokenizers["acoustic"]
    for attempt in (partita.load, partita.load_part, part.load_weights, load_recipe):
        with pytest.raises(partita.PartitaError):
            attempt(name)


def test_a_variant_of_any_name_has_a_folder(saved_toy):
    changes = [f"stages.main.target=acoustic,{'é' * 300},{'x' * 300}"]
    names = [variant.name for variant in variants(read_ablation(str(saved_toy / "recipe.yaml"), changes))]
    assert len(set(names)) == 3
    assert max(len(name.encode()) for name in names) < 100


@pytest.mark.parametrize(
    "row", ['"seed": 1' + "0" * 30, '"duration": 1' + "0" * 4000, '"duration": 1e999', '"seed": 1' + "0" * 9000]
)
def test_numbers_of_prompts_without_end(saved_toy, tmp_path, row):
    system = partita.load(saved_toy)
    (tmp_path / "prompts.jsonl").write_text(f'{{"text": "tone 1", {row}}}\n')
    with pytest.raises(partita.PartitaError, match=r"line 1|64 bits"):
        list(partita.generate_each(system, read_prompts(tmp_path / "prompts.jsonl", system)))


@pytest.mark.parametrize("seed", [2**63, -(2**63), [10**30]])
def test_seeds_fit_into_a_machine(saved_toy, seed):
    with pytest.raises(partita.PartitaError, match="64 bits"):
        partita.load(saved_toy).generate(["tone 1"], duration=0.2, seed=seed)


def test_embedders_are_named_in_yaml(tmp_path):
    with pytest.raises(partita.PartitaError, match="could not determine a constructor"):
        read_embedder("!!python/name:os.system")
    assert read_embedder("{preset: log-mel-16khz}").dim == read_embedder("log-mel-16khz").dim


def test_parts_without_end(toy_recipe, tmp_path):
    """Each is checked, which takes milliseconds."""
    many = ", ".join(f"t{i}: toy-letters" for i in range(250))
    (tmp_path / "many.yaml").write_text(f"base: {toy_recipe}\nconditioners: {{{many}}}\n")
    with pytest.raises(partita.PartitaError, match="more than 200 parts"):
        System.checked(tmp_path / "many.yaml")


def test_a_message_has_an_end(toy_recipe):
    """However many mistakes there are, and however long what they quote is."""
    many = ", ".join(f"key{i}: 1" for i in range(2_000))
    toy_recipe.write_text(f"{toy_recipe.read_text()}extra: {{{many}}}\nseed: {'x' * 500_000}\n")
    with pytest.raises(partita.PartitaError, match="seed: expected int") as error:
        System.checked(toy_recipe, [f"more{i}=1" for i in range(100)])
    assert "and 52 more" in str(error.value)
    assert len(str(error.value)) < 50_000
    assert len(error.value.problems) == 102


@pytest.mark.parametrize("value", ["!!bool maybe", "!!int ''", "!!int x", "!!float x", "!!timestamp x", "!!binary ?"])
def test_tags_of_what_is_not_theirs(command, saved_toy, tmp_path, value):
    (tmp_path / "recipe.yaml").write_text(f"seed: {value}\n")
    for arguments in (("check", "recipe.yaml"), ("check", saved_toy / "recipe.yaml", f"seed={value}")):
        status, said = command(*arguments)
        assert (status, said.count("error:"), "Traceback" in said) == (2, 1, False), said


@pytest.mark.parametrize("text", ["1.5", "7", "true", "word", "[1]", "2001-01-01", "null", "", "# nothing"])
def test_a_file_that_holds_a_single_value(command, tmp_path, text):
    (tmp_path / "recipe.yaml").write_text(text)
    for arguments in (("check", "recipe.yaml"), ("ablate", "recipe.yaml", "--dry-run")):
        status, said = command(*arguments)
        assert (status, said.count("error:"), "Traceback" in said) == (2, 1, False), said
