"""Tokens on disk: what is stored, resumed, refused, and trained on."""

import json
import multiprocessing
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

import partita
from partita.core.part_key import PartKey
from partita.data.shards import Shards
from partita.data.token_catalog import CATALOG, PLAN
from partita.recipe.plan import load_recipe
from partita.recipe.token_options import TokenOptions
from partita.storage.audio_file import write_audio
from partita.storage.packed import unpack
from partita.storage.shards import ShardReader
from partita.system.system import System
from partita.training import token_store, tokenize
from partita.training.fit_data import FitData
from partita.training.training import train
from saved_systems import same, weights


def write_music(folder, seconds):
    """Files of noise at the codec's rate, with captions, and with beats at every half second."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number, length in enumerate(seconds):
        audio = rng.uniform(-0.5, 0.5, (1, round(length * 4000))).astype(np.float32)
        write_audio(folder / f"{number}.wav", audio, 4000)
        beats = np.arange(0, length, 0.5).tolist()
        (folder / f"{number}.json").write_text(json.dumps({"text": f"noise {number}", "beats": beats}))
    return folder


@pytest.fixture
def trained(toy_recipe, tmp_path):
    """A recipe over files of a second, whose codec is trained."""
    music = write_music(tmp_path / "music", [1.0] * 8)
    overrides = [f"data={{name: folder, path: {music}, validation: 0.2, test: 0.2}}"]
    run = tmp_path / "codec"
    train(load_recipe(toy_recipe, [*overrides, "stages.main.generator.fit.steps=1"]), run)
    return load_recipe(
        toy_recipe, [*overrides, f"tokenizers.acoustic={{weights: {run}/tokenizers/acoustic, fit: null}}"]
    )


def stored(folder, split="train"):
    """All examples of a split: tensors and values."""
    count = sum(json.loads((Path(folder) / CATALOG).read_text())["counts"][split])
    reader = ShardReader(Path(folder) / split)
    return [reader[number] for number in range(count)]


def contents(folder):
    """What a folder of shards holds, split by split."""
    found = []
    for split in ("train", "validation", "test"):
        for tensors, values in stored(folder, split):
            found.append((split, values, {name: tensor.tolist() for name, tensor in tensors.items()}))
    return found


def from_shards(plan, folder, *overrides):
    return load_recipe(plan.values, [f"data={{name: shards, path: {folder}}}", *overrides])


def losses(run):
    """Every logged loss of the stage."""
    lines = (Path(run) / "logs" / "stages-main" / "csv" / "metrics.csv").read_text().splitlines()
    names = lines[0].split(",")
    rows = [dict(zip(names, line.split(","), strict=True)) for line in lines[1:]]
    return [(row["step"], row.get("train/loss"), row.get("val/loss")) for row in rows]


def test_stored_codes_are_those_of_whole_pieces_with_their_fields(trained, tmp_path):
    partita.tokenize(trained, tmp_path / "shards", progress=False)
    codec = partita.load_part(trained.tokenizers["acoustic"].weights)
    found = {
        values["id"]: (tensors, values)
        for split in ("train", "validation", "test")
        for tensors, values in stored(tmp_path / "shards", split)
    }
    assert sorted(found) == [f"{number}.wav" for number in range(8)]
    for name, (tensors, values) in found.items():
        codes = codec.encode_audio(tmp_path / "music" / name)[0]
        assert torch.equal(tensors[f"representation {codec.fingerprint()}"].long(), codes)
        assert values["fields"]["text"] == f"noise {name[0]}"
        assert values["fields"]["beats"] == [0, 0.5]
    shards, folder = Shards(str(tmp_path / "shards")), System(trained).source
    shards.setup()
    folder.setup()
    for split in ("train", "validation", "test"):
        own = {values["id"] for _, values in stored(tmp_path / "shards", split)}
        assert own == {entry.id for entry in folder._splits[split]}
        assert [shards.draw(split, n, 5) for n in range(9)] == [folder.draw(split, n, 5) for n in range(9)]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stage_trains_from_shards_to_the_same_losses(trained, tmp_path, workers):
    """Pieces are as long as the window, so that the crop is fixed; the noise depends on the step alone."""
    partita.tokenize(trained, tmp_path / "shards", workers=workers, progress=False)
    logged = "trainer.log_every_n_steps=1"
    train(load_recipe(trained.values, [logged]), tmp_path / "audio")
    train(from_shards(trained, tmp_path / "shards", logged), tmp_path / "tokens")
    assert len(losses(tmp_path / "audio")) >= 8
    assert losses(tmp_path / "tokens") == losses(tmp_path / "audio")
    assert same(weights(tmp_path / "audio"), weights(tmp_path / "tokens"))
