"""What another version of Partita saved is refused in one sentence that says so."""

import json
import re
import warnings
from shutil import copytree

import pytest
import yaml
from safetensors.torch import save_file
from torch import zeros

import partita
from partita.errors import PartitaError
from partita.recipe.plan import load_recipe
from partita.storage.saved_format import FORMAT
from partita.training.training import train

OLDER = (
    "{} was saved by an older version of Partita and cannot be read by this one: load it with the version that saved "
    "it, or train it again"
)

ARGUMENTS = {
    "sample_rate": 16000,
    "frame_rate": 25.0,
    "overlap": 4,
    "dim": 64,
    "encoder_width": 32,
    "encoder_depth": 2,
    "decoder_width": 32,
    "decoder_depth": 2,
    "num_codebooks": None,
    "quantizer": {"num_codebooks": 4, "cardinality": 256, "decay": 0.95, "warmup_steps": 4},
    "losses": {"spectral": 1.0, "adversarial": 0.05, "relative_features": True, "balanced": True},
    "spectral": {"windows": [512, 1024, 2048], "bands": 80, "log_power": 1},
    "discriminators": {"wave_scales": [], "stft_windows": [512], "stft_width": 8, "stft_kind": "dilated"},
    "adversarial_start": 8,
}
"""Of the tokenizer ``spectral``, as the version before wrote them: all in one list."""


@pytest.fixture
def old(tmp_path):
    """A system that the version before trained."""
    folder, part = tmp_path / "old", tmp_path / "old" / "tokenizers" / "acoustic"
    part.mkdir(parents=True)
    recipe = {"tokenizers": {"acoustic": {"name": "spectral", **ARGUMENTS}}, "data": {"name": "chorales"}, "seed": 0}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    config = {"family": "tokenizer", "name": "spectral", "arguments": ARGUMENTS}
    (part / "config.json").write_text(json.dumps(config, indent=2))
    save_file({"encoder.0.weight": zeros(2, 2)}, part / "model.safetensors")
    return folder


@pytest.fixture
def saved(saved_toy, tmp_path):
    """A system of this version, to be changed."""
    return copytree(saved_toy, tmp_path / "saved")


def message(action, *arguments):
    with pytest.raises(PartitaError) as caught:
        action(*arguments)
    return str(caught.value)


def test_a_system_of_an_older_version(old):
    assert message(partita.load, old) == OLDER.format(old)


def test_a_part_of_an_older_version(old, toy_recipe):
    part = old / "tokenizers" / "acoustic"
    assert message(partita.load_part, part) == OLDER.format(part)
    for key in ("weights", "init"):
        plan = load_recipe(toy_recipe, [f"tokenizers.acoustic.{key}={part}"])
        assert message(train, plan, old.parent / key) == OLDER.format(part)


def test_a_run_of_an_older_version_is_not_gone_on_with(old, toy_recipe):
    assert message(train, load_recipe(toy_recipe), old) == OLDER.format(old)


def test_a_saved_system_of_which_one_part_is_older(saved):
    part = saved / "tokenizers" / "acoustic"
    config = json.loads((part / "config.json").read_text())
    assert config.pop("format") == FORMAT
    (part / "config.json").write_text(json.dumps(config))
    assert message(partita.load, saved) == OLDER.format(part)


@pytest.mark.parametrize("number", [FORMAT + 1, 10**6])
def test_a_newer_version(saved, number):
    index = saved / "recipe.yaml"
    text = index.read_text()
    assert text.startswith(f"format: {FORMAT}\n")
    index.write_text(re.sub(r"^format: .*", f"format: {number}", text))
    newer = "was saved by a newer version of Partita and cannot be read by this one: update Partita to load it"
    assert message(partita.load, saved) == f"{saved} {newer}"
    assert f"this recipe {newer}" in message(load_recipe, index)


@pytest.mark.parametrize("value", [1, 0, -1, True, 2.0, "2", None, []])
def test_what_is_no_such_number_is_taken_for_older(saved, value):
    part = saved / "tokenizers" / "acoustic"
    config = json.loads((part / "config.json").read_text()) | {"format": value}
    (part / "config.json").write_text(json.dumps(config))
    assert message(partita.load_part, part) == OLDER.format(part.resolve())


def test_a_saved_recipe_is_a_recipe(saved, tmp_path):
    """It can be trained again, and what is saved then has the number once more."""
    system = train(load_recipe(saved / "recipe.yaml"), tmp_path / "again")
    system.save(tmp_path / "copy")
    index = (saved / "recipe.yaml").read_text()
    assert (tmp_path / "again" / "recipe.yaml").read_text() == index == (tmp_path / "copy" / "recipe.yaml").read_text()
    assert partita.load(tmp_path / "copy").stages.keys() == system.stages.keys()


def test_weights_that_were_made_with_other_arguments_are_used_with_a_warning(saved, tmp_path):
    codec = partita.load(saved).tokenizers["acoustic"]
    slot = {"name": "toy-codec", "weights": str(saved / "tokenizers/acoustic")} | codec.config["arguments"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        partita.load_part(slot)
    with pytest.warns(UserWarning, match=f"made with other arguments: cardinality was {codec.cardinality} and is 7"):
        partita.load_part(slot | {"cardinality": 7})
