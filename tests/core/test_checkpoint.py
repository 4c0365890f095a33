"""Checkpoint formats: which part takes which, and what is said of those that none can read."""

import json
from typing import ClassVar

import pytest
import torch
from safetensors.torch import load_file, save_file

from partita.core.checkpoint import Checkpoint
from partita.core.registry import lookup, names, register
from partita.errors import PartitaError
from partita.generators.autoregressive import Autoregressive
from toys import ToyCodec, ToyLetters


@register("tokenizer", "toy-numbered")
class ToyNumbered(ToyCodec):
    """A toy codec that others have made, too."""


@register("checkpoint", "toy-numbers")
class ToyNumbers(Checkpoint):
    """The weights of a toy codec under another name."""

    reads = "toy numbers (toy)"
    parts: ClassVar = {"tokenizer": ("toy-numbered",)}

    @classmethod
    def detect(cls, config):
        return config.get("model_type") == "toy"

    @classmethod
    def convert(cls, part, folder, config):
        return {"gain": load_file(folder / "model.safetensors")["loudness"]}


@pytest.fixture
def folder(tmp_path):
    save_file({"loudness": torch.tensor(0.25)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "toy"}))
    return tmp_path


def test_a_part_of_any_family_reads_the_formats_that_are_for_it(folder):
    codec = ToyNumbered()
    codec.load_weights(folder)
    assert codec.gain.item() == 0.25
    with pytest.raises(PartitaError, match="not of this toy-letters"):  # for which there is no format
        ToyLetters().load_weights(folder)


def test_what_can_be_read_is_named(folder):
    (folder / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(PartitaError, match=r"a model of type bert, which toy-numbered cannot .* toy numbers \(toy\)"):
        ToyNumbered().load_weights(folder)


def test_saved_parts_and_their_files_are_read_as_before(tmp_path):
    codec = ToyNumbered()
    codec.save(tmp_path / "saved")
    for source in (tmp_path / "saved", tmp_path / "saved" / "model.safetensors"):
        other = ToyNumbered()
        other.load_weights(source)
        assert torch.equal(other.gain, codec.gain)


def test_a_hub_id_is_believed_by_parts_that_read_other_formats_alone(tmp_path):
    assert ToyNumbered.missing_weights("someone/something") is None
    assert Autoregressive.missing_weights("facebook/musicgen-small") is None
    assert "there is no file or folder" in ToyLetters.missing_weights("someone/something")
    assert "and this is no hub id" in ToyNumbered.missing_weights("/nowhere/at/all")


def test_formats_are_found_by_name_without_being_imported_first():
    assert "musicgen" in names("checkpoint")
    assert lookup("checkpoint", "musicgen").registered_name == "musicgen"
