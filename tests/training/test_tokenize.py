"""Tokens on disk: what is stored, resumed, refused, and trained on."""

import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from processes import in_a_process, train_until_killed

import partita
from partita.core.part_key import PartKey
from partita.core.seeds import derive_seed
from partita.data.shards import Shards
from partita.data.token_catalog import CATALOG, PLAN
from partita.evaluation.training_clips import training_clips
from partita.recipe.plan import load_recipe
from partita.recipe.token_options import TokenOptions
from partita.storage.audio_file import write_audio
from partita.storage.shard_folder import ShardReader
from partita.system.system import System
from partita.training import token_store
from partita.training.fit_data import FitData
from partita.training.report import read_curves
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
    return {name: curve for name, curve in read_curves(run, PartKey("stages/main")).items() if "loss" in name}


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


@pytest.mark.parametrize("tokens", ["store", "{versions: 3, clip: 1.5}"])
def test_memorization_is_studied_on_the_clips_that_a_stage_was_trained_on(trained, tmp_path, tokens):
    """Of long pieces, a training on stored tokens sees the crops that start at frames, of the stored versions only."""
    music = write_music(tmp_path / "long", [4.0] * 8)
    plan = load_recipe(trained.values, [f"data.path={music}", f"tokens={tokens}"])
    system = train(plan, tmp_path / "run", only=PartKey("tokenizers/acoustic"))
    partita.tokenize(plan, tmp_path / "shards", progress=False)
    stored = System(from_shards(plan, tmp_path / "shards", "tokens="))
    stored.source.setup()
    stage = PartKey("stages/main")
    seen = FitData(stored, stage).examples("train", 12, derive_seed(plan.seed, stage, "data"))
    clips = training_clips(system, "main", 12)
    for number in range(12):
        expected = seen[number]
        codes = system.tokenizers["acoustic"].encode(clips[number].audio[None])[0]
        assert torch.equal(codes, next(iter(expected.representations.values())).long())
        np.testing.assert_allclose(clips[number].fields["beats"], expected.fields["beats"])


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stage_trains_from_shards_to_the_same_losses(trained, tmp_path, workers):
    """Pieces are as long as the window, so that the crop is fixed; the noise depends on the step alone."""
    partita.tokenize(trained, tmp_path / "shards", workers=workers, progress=False)
    logged = "trainer.log_every_n_steps=1"
    train(load_recipe(trained.values, [logged]), tmp_path / "audio")
    train(from_shards(trained, tmp_path / "shards", logged), tmp_path / "tokens")
    assert len(losses(tmp_path / "audio")["train/loss"][0]) == 8
    assert losses(tmp_path / "tokens") == losses(tmp_path / "audio")
    assert same(weights(tmp_path / "audio"), weights(tmp_path / "tokens"))


def killed_after(examples, plan, folder):
    """Store tokens, and die by SIGKILL when this many readings are encoded."""
    encode, done = token_store.TokenEncoder.__call__, 0

    def dying(self, reading):
        nonlocal done
        done += 1
        if done > examples:
            os.kill(os.getpid(), signal.SIGKILL)
        return encode(self, reading)

    token_store.TokenEncoder.__call__ = dying
    partita.tokenize(plan, folder, progress=False)


def killed_at_write(number, plan, folder):
    """Store tokens, and die by SIGKILL when this file has been written but not yet moved to its place."""
    replace, done = Path.replace, 0

    def dying(self, target):
        nonlocal done
        done += 1
        if done == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return replace(self, target)

    Path.replace = dying
    partita.tokenize(plan, folder, progress=False)


@pytest.fixture
def small_jobs(monkeypatch):
    monkeypatch.setattr(token_store, "JOB", 2)


@pytest.mark.usefixtures("small_jobs")
def test_killed_anywhere_it_resumes_without_duplicates_or_holes(trained, tmp_path):
    partita.tokenize(trained, tmp_path / "whole", progress=False)
    whole = contents(tmp_path / "whole")
    assert len(whole) == 8
    for n, (how, when) in enumerate(
        [(killed_after, 0), (killed_after, 3), *((killed_at_write, k) for k in (1, 2, 4, 5, 9))]
    ):
        folder = tmp_path / f"killed{n}"
        assert in_a_process(how, when, trained, folder) == -signal.SIGKILL
        assert not (folder / CATALOG).exists()
        with pytest.raises(partita.PartitaError, match=r"incomplete|holds no shards"):
            Shards(str(folder)).setup()
        partita.tokenize(trained, folder, progress=False)
        assert contents(folder) == whole
        left = {path.name for path in folder.rglob(".*")}
        assert left == {".tokens-0.lock"}
        assert {p.name for p in folder.glob("*/shard*")} == {p.name for p in (tmp_path / "whole").glob("*/shard*")}


@pytest.mark.parametrize("spoil", [Path.unlink, lambda path: path.write_text("{")])
def test_a_damaged_index_is_written_again(trained, tmp_path, spoil):
    folder = tmp_path / "shards"
    partita.tokenize(trained, folder, progress=False)
    whole = contents(folder)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    spoil(folder / "train" / "index.json")
    partita.tokenize(trained, folder, progress=False)
    assert contents(folder) == whole
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


@pytest.mark.usefixtures("small_jobs")
def test_nodes_share_the_work_and_the_last_one_completes_it(trained, tmp_path):
    partita.tokenize(trained, tmp_path / "alone", progress=False)
    for node in (2, 0):
        partita.tokenize(trained, tmp_path / "shared", node=(node, 3), progress=False)
        assert (tmp_path / "shared" / PLAN).is_file()
    partita.tokenize(trained, tmp_path / "shared", node=(1, 3), progress=False)
    assert contents(tmp_path / "shared") == contents(tmp_path / "alone")
    with pytest.raises(partita.PartitaError, match="from 0 to 2, not 3"):
        partita.tokenize(trained, tmp_path / "shared", node=(3, 3), progress=False)


def test_long_pieces_are_stored_in_excerpts_that_hold_every_window(toy_recipe, trained, tmp_path, monkeypatch):
    music = write_music(tmp_path / "long", [9.3, 2.0, 0.4])
    plan = load_recipe(trained.values, [f"data={{name: folder, path: {music}, validation: 0.0, test: 0.0}}"])
    partita.tokenize(plan, tmp_path / "shards", options=TokenOptions(longest=2.0), progress=False)
    shards = Shards(str(tmp_path / "shards"))
    shards.setup()
    codec = partita.load_part(plan.tokenizers["acoustic"].weights)
    found = {}
    for seed in range(200):
        for piece in range(3):
            example = shards.read("train", piece, seed=seed, seconds=1.0, sample_rate=4000, channels=1)
            codes = example.representations[codec.fingerprint()].long()
            start = example.fields["seconds_start"]
            whole = codec.encode_audio(music / example.fields["id"])[0]
            first = round(start * 40)
            assert abs(start * 40 - first) < 1e-6
            assert torch.equal(codes, whole[:, first : first + 40])
            assert example.num_samples == round(4000 * min(1.0, whole.shape[-1] / 40))
            beats = np.array(example.fields["beats"]) + start
            assert np.allclose(beats * 2, np.round(beats * 2))
            assert ((beats >= start) & (beats < start + 1)).all()
            found.setdefault(example.fields["id"], set()).add(first)
    assert found["2.wav"] == {0}
    assert min(found["0.wav"]) < 10
    assert max(found["0.wav"]) > 320
    assert len(found["0.wav"]) > 100


def test_the_crop_is_the_frame_that_is_nearest_to_the_crop_on_the_fly(toy_recipe, trained, tmp_path):
    music = write_music(tmp_path / "long", [9.3, 5.0, 3.3])
    plan = load_recipe(trained.values, [f"data={{name: folder, path: {music}, validation: 0.0, test: 0.0}}"])
    partita.tokenize(plan, tmp_path / "shards", progress=False)
    system, shards = System(plan), Shards(str(tmp_path / "shards"))
    for source in (system.source, shards):
        source.setup()
    data = FitData(system, PartKey("stages/main"))
    live, kept = (data.examples("train", 50, 3, source) for source in (system.source, shards))
    for i in range(50):
        assert kept[i].fields["id"] == live[i].fields["id"]
        assert kept[i].seed == live[i].seed
        assert abs(kept[i].fields["seconds_start"] - live[i].fields["seconds_start"]) <= 0.5 / 40 + 1e-3


@pytest.mark.parametrize("workers", [0, 2])
def test_a_training_killed_on_shards_resumes_bit_by_bit(trained, tmp_path, workers):
    music = write_music(tmp_path / "long", [3.0, 2.5, 4.2, 1.5])
    plan = load_recipe(trained.values, [f"data={{name: folder, path: {music}}}"])
    partita.tokenize(plan, tmp_path / "shards", progress=False)
    plan = from_shards(plan, tmp_path / "shards", f"stages.main.generator.fit.num_workers={workers}")
    train(plan, tmp_path / "uninterrupted")
    assert in_a_process(train_until_killed, plan, tmp_path / "killed") == -signal.SIGKILL
    assert not (tmp_path / "killed" / "stages" / "main").exists()
    train(plan, tmp_path / "killed")
    assert same(weights(tmp_path / "uninterrupted"), weights(tmp_path / "killed"))


def test_a_run_can_store_tokens_before_its_stages(trained, tmp_path):
    train(trained, tmp_path / "audio")
    train(load_recipe(trained.values, ["tokens=store"]), tmp_path / "stored")
    assert (tmp_path / "stored" / "tokens" / CATALOG).is_file()
    assert same(weights(tmp_path / "audio"), weights(tmp_path / "stored"))
    assert "tokens: stored" in (tmp_path / "stored" / "logs" / "train.log").read_text()
    text = System(load_recipe(trained.values, ["tokens.versions=3"])).overview()
    from partita.core.console import written

    assert "3 readings of each training piece" in written(text)


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("tokens=yes please", "tokens: expected store, or a mapping of options"),
        ("tokens.version=3", "tokens.version: .*versions"),
        ("tokens.versions=0", "versions must be between 1 and 10,000, not 0"),
        ("tokens.longest=0.5", "longest must be between 1 and 36,000"),
    ],
)
def test_mistakes_in_the_options_are_named(trained, option, words):
    with pytest.raises(partita.PartitaError, match=words):
        load_recipe(trained.values, [option])
