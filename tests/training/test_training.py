import os
import signal
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file, save_file

import partita
from partita.core.part_key import PartKey
from partita.errors import PartitaError, Stopped
from partita.recipe.plan import load_recipe
from partita.system.system import System
from partita.training.callbacks import Reseed
from partita.training.fit_data import FitData
from partita.training.report import read_curves
from partita.training.training import train
from saved_systems import same, weights
from toys import ToyBigram


class Killed(BaseException):
    pass


@pytest.mark.parametrize(
    ("overrides", "deadly"),
    [
        ([], (2, 5, 9, 11, 16, 20, 21)),
        (
            ["stages.main.generator.fit.accumulate=4", "tokenizers.acoustic.fit.accumulate=3"],
            (2, 9, 17, 30, 45, 50, 66, 67),
        ),
    ],
    ids=["steps", "accumulated"],
)
def test_a_run_interrupted_anywhere_ends_with_the_same_weights(toy_recipe, tmp_path, monkeypatch, overrides, deadly):
    """Also within the batches that a step accumulates."""
    plan = load_recipe(toy_recipe, overrides)
    train(plan, tmp_path / "whole")
    batches, batch = 0, Reseed.on_train_batch_start

    def dying(self, *args):
        nonlocal batches
        batches += 1
        if batches in deadly:
            raise Killed
        batch(self, *args)

    monkeypatch.setattr(Reseed, "on_train_batch_start", dying)
    deaths = 0
    while True:
        try:
            train(plan, tmp_path / "broken")
            break
        except Killed:
            deaths += 1
    assert deaths == len(deadly)
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "broken"))
    assert not list((tmp_path / "broken").rglob("*.ckpt"))


def test_a_run_killed_between_saving_a_conditioner_and_its_stage_starts_that_stage_anew(
    toy_recipe, tmp_path, monkeypatch
):
    plan = load_recipe(toy_recipe, ["stages.main.generator.fit.checkpoint_every=1000"])
    save = ToyBigram.save

    def dying(self, folder):
        raise Killed

    monkeypatch.setattr(ToyBigram, "save", dying)
    with pytest.raises(Killed):
        train(plan, tmp_path / "run")
    assert (tmp_path / "run" / "conditioners" / "text" / "model.safetensors").is_file()
    monkeypatch.setattr(ToyBigram, "save", save)
    train(plan, tmp_path / "run")
    train(plan, tmp_path / "whole")
    assert same(weights(tmp_path / "run"), weights(tmp_path / "whole"))


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_asked_to_stop_it_keeps_what_is_done(lines, toy_recipe, tmp_path, monkeypatch, number, status):
    plan = load_recipe(toy_recipe, ["tokenizers.acoustic.fit.checkpoint_every=1000"])
    step, before = Reseed.on_train_batch_start, signal.getsignal(signal.SIGINT)

    def interrupted(self, trainer, module, batch, batch_idx):
        step(self, trainer, module, batch, batch_idx)
        if batch_idx == 3:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(Reseed, "on_train_batch_start", interrupted)
    with pytest.raises(Stopped) as stopped:
        train(plan, tmp_path / "run")
    assert 128 + stopped.value.signal == status
    assert signal.getsignal(signal.SIGINT) is before
    checkpoint = torch.load(tmp_path / "run" / "checkpoints" / "tokenizers-acoustic.ckpt", weights_only=True)
    assert checkpoint["global_step"] in (3, 4)
    monkeypatch.undo()
    train(plan, tmp_path / "run")
    assert "tokenizers/acoustic: 6 steps of 2, resuming from the last checkpoint" in lines
    train(plan, tmp_path / "whole")
    assert "tokenizers/acoustic: 6 steps of 2" in lines
    assert same(weights(tmp_path / "run"), weights(tmp_path / "whole"))


def test_a_failed_start_leaves_the_folder_free(toy_recipe, tmp_path):
    for override in ("data={name: folder, path: /nowhere}", "trainer.accelerator=tpu"):
        with pytest.raises(PartitaError):
            train(load_recipe(toy_recipe, [override]), tmp_path / "run")
    train(load_recipe(toy_recipe), tmp_path / "run")


def test_weights_are_as_readable_as_other_files(toy_recipe, tmp_path):
    train(load_recipe(toy_recipe), tmp_path / "run")
    modes = {path.stat().st_mode & 0o777 for path in (tmp_path / "run" / "tokenizers" / "acoustic").iterdir()}
    assert modes == {(tmp_path / "run" / "recipe.yaml").stat().st_mode & 0o777}


def test_seed_and_batch_order_decide_the_weights(toy_recipe, tmp_path):
    train(load_recipe(toy_recipe), tmp_path / "a")
    train(load_recipe(toy_recipe), tmp_path / "b")
    train(load_recipe(toy_recipe, ["seed=1"]), tmp_path / "c")
    assert same(weights(tmp_path / "a"), weights(tmp_path / "b"))
    assert not same(weights(tmp_path / "a"), weights(tmp_path / "c"))


def test_a_trained_run_loads_and_generates_the_same_from_run_and_export(toy_recipe, tmp_path):
    system = train(load_recipe(toy_recipe), tmp_path / "run")
    expected = system.generate(["tone 3", "tone 5"], duration=0.5, seed=7)
    assert expected.shape == (2, 1, 2000)
    loaded = partita.load(tmp_path / "run")
    loaded.save(tmp_path / "export")
    for again in (loaded, partita.load(tmp_path / "export")):
        assert torch.equal(again.generate(["tone 3", "tone 5"], duration=0.5, seed=7), expected)


def test_a_part_with_weights_is_not_trained_again(lines, toy_recipe, tmp_path):
    train(load_recipe(toy_recipe), tmp_path / "first")
    codec = tmp_path / "first" / "tokenizers" / "acoustic"
    train(load_recipe(toy_recipe, [f"tokenizers.acoustic.weights={codec}"]), tmp_path / "second")
    assert any("weights from" in line for line in lines)
    first, second = (
        load_file(tmp_path / r / "tokenizers" / "acoustic" / "model.safetensors") for r in ("first", "second")
    )
    assert torch.equal(first["gain"], second["gain"])


def test_the_conditioner_learns_with_its_stage(toy_recipe, tmp_path):
    from partita.system.system import System

    before = System(load_recipe(toy_recipe)).conditioners["text"].embedding.weight.detach().clone()
    train(load_recipe(toy_recipe), tmp_path / "run")
    after = load_file(tmp_path / "run" / "conditioners" / "text" / "model.safetensors")["embedding.weight"]
    letters = sorted(set(b"tone 1"))
    assert (after[letters] - before[letters]).abs().min() > 0
    assert not any("joint" in key for _, key in weights(tmp_path / "run"))


def test_a_stage_is_not_kept_for_a_tokenizer_that_it_was_not_trained_on(toy_recipe, tmp_path):
    plan = load_recipe(toy_recipe)
    train(plan, tmp_path / "run")
    path = tmp_path / "run/tokenizers/acoustic/model.safetensors"
    original = path.read_bytes()
    save_file({name: -tensor for name, tensor in load_file(path).items()}, path)
    with pytest.raises(PartitaError, match=r"stages/main was trained on another tokenizers/acoustic .* delete .*main"):
        train(plan, tmp_path / "run")
    path.write_bytes(original)
    train(plan, tmp_path / "run")


def test_a_run_whose_recipe_is_no_text_is_refused(toy_recipe, tmp_path):
    (tmp_path / "recipe.yaml").write_bytes(b"\xff\xfe")
    with pytest.raises(PartitaError, match=r"recipe.yaml is not a text in UTF-8"):
        train(load_recipe(toy_recipe), tmp_path)


def test_another_recipe_is_refused_and_the_difference_named(toy_recipe, tmp_path):
    train(load_recipe(toy_recipe), tmp_path / "run")
    with pytest.raises(PartitaError, match="seed: unset → 1"):
        train(load_recipe(toy_recipe, ["seed=1"]), tmp_path / "run")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("mine")
    with pytest.raises(PartitaError, match="not empty"):
        train(load_recipe(toy_recipe), tmp_path / "other")


def test_an_unfinished_run_says_what_is_missing(toy_recipe, tmp_path):
    from partita.system.system import System

    System(load_recipe(toy_recipe)).save_index(tmp_path / "run")
    with pytest.raises(PartitaError, match=r"tokenizers/acoustic.*partita train"):
        partita.load(tmp_path / "run")


def test_a_loss_that_is_no_number_is_named_at_once(toy_recipe, tmp_path, monkeypatch):
    import toys

    step = toys.ToyCodec.training_step

    def exploding(self, batch, batch_idx):
        loss = step(self, batch, batch_idx)
        self.log("train/spectral", loss * (float("nan") if batch_idx == 3 else 1))
        return loss

    monkeypatch.setattr(toys.ToyCodec, "training_step", exploding)
    with pytest.raises(PartitaError, match="spectral became nan at step 3 of toy-codec"):
        train(load_recipe(toy_recipe), tmp_path / "run")


def test_what_lightning_refuses_is_one_message(toy_recipe, tmp_path):
    with pytest.raises(PartitaError, match=r"L\.Trainer refuses"):
        train(load_recipe(toy_recipe, ["trainer.accelerator=tpu"]), tmp_path / "run")


@pytest.mark.parametrize(
    ("native", "changes", "half"),
    [
        (True, [], True),
        (False, [], False),
        (False, ["trainer.precision=bf16-mixed"], True),
        (False, ["stages.main.generator.fit.trainer.precision=bf16-mixed"], True),
    ],
)
def test_half_precision_that_the_cpu_emulates_is_only_used_on_demand(
    lines, toy_recipe, tmp_path, monkeypatch, native, changes, half
):
    used, loss = [], ToyBigram.loss

    def watched(self, *args):
        used.append(torch.is_autocast_enabled("cpu"))
        return loss(self, *args)

    monkeypatch.setattr(ToyBigram, "loss", watched)
    monkeypatch.setattr("partita.core.precision.has_bfloat16", lambda: native)
    recipe = load_recipe(
        toy_recipe, ["trainer.accelerator=cpu", "stages.main.generator.fit.precision=bf16-mixed", *changes]
    )
    train(recipe, tmp_path / "run")
    assert set(used) == {half}
    assert any("bf16-mixed is slow on this CPU" in line for line in lines) is not half


def test_logs_hold_losses_rate_and_throughput(toy_recipe, tmp_path):
    train(load_recipe(toy_recipe, ["trainer.log_every_n_steps=2", "trainer.logger=tensorboard"]), tmp_path / "run")
    curves = read_curves(tmp_path / "run", "stages/main")
    assert curves["train/loss"][0] == [1, 3, 5, 7]
    assert {"val/loss", "lr-AdamW", "speed/steps_per_second"} <= curves.keys()
    events = list((tmp_path / "run" / "logs" / "stages" / "main" / "tensorboard").glob("events*"))
    assert b"rendered/0" in events[0].read_bytes()


def test_a_folder_of_mixed_files_trains_and_the_bad_ones_are_named(lines, toy_recipe, tmp_path):
    folder = tmp_path / "music"
    folder.mkdir()
    draw = np.random.default_rng(0)
    for i in range(4):
        soundfile.write(folder / f"stereo{i}.ogg", draw.uniform(-0.5, 0.5, (44100 * 2, 2)), 44100)
        (folder / f"stereo{i}.txt").write_text(f"noise {i}")
        soundfile.write(folder / f"mono{i}.wav", draw.uniform(-0.5, 0.5, 22050 * 2), 22050)
    whole = (folder / "stereo0.ogg").read_bytes()
    (folder / "cut.ogg").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.wav").touch()
    (folder / "text.wav").write_text("this is no audio")
    plan = load_recipe(toy_recipe, [f"data={{name: folder, path: {folder}}}"])
    system = train(plan, tmp_path / "run")
    assert system.generate(["noise 1"], duration=0.2).shape == (1, 1, 800)
    for name in ("cut.ogg", "empty.wav", "text.wav"):
        assert any(name in line for line in lines), lines
    assert not any("stereo1.ogg" in line for line in lines)


def test_a_folder_without_captions_cannot_train_what_reads_them(toy_recipe, tmp_path):
    folder = tmp_path / "music"
    folder.mkdir()
    soundfile.write(folder / "a.wav", np.zeros(8000), 8000)
    with pytest.raises(PartitaError, match=r"none of 1 file in music has a caption"):
        train(load_recipe(toy_recipe, [f"data={{name: folder, path: {folder}}}"]), tmp_path / "run")


def test_with_more_processes_than_clips_each_has_one_to_validate(toy_recipe):
    """What one process logs and others do not is waited for without end."""
    plan = load_recipe(toy_recipe)
    for processes in (1, 2, 3, 5):
        dealt = []
        for rank in range(processes):
            data = FitData(System(plan), PartKey("stages/main"))
            data.trainer = SimpleNamespace(global_rank=rank, world_size=processes)
            dealt.append([list(batch) for batch in data.val_dataloader().batch_sampler])
        assert min(map(len, dealt)) >= 1
        assert sorted(i for batches in dealt for batch in batches for i in batch) == list(range(max(2, processes)))


def test_two_files_train_and_it_is_said_that_none_is_held_out(lines, toy_recipe, tmp_path):
    folder = tmp_path / "music"
    folder.mkdir()
    for i in range(2):
        soundfile.write(folder / f"{i}.wav", np.random.default_rng(i).uniform(-0.5, 0.5, 8000), 4000)
        (folder / f"{i}.txt").write_text(f"noise {i}")
    train(load_recipe(toy_recipe, [f"data={{name: folder, path: {folder}}}"]), tmp_path / "run")
    assert "val/loss" in read_curves(tmp_path / "run", "stages/main")
    assert any("no validation pieces, so training pieces replace them" in line for line in lines)


def test_data_that_is_all_held_out_cannot_be_trained_on(toy_recipe, tmp_path):
    soundfile.write(tmp_path / "a.wav", np.zeros(8000), 4000)
    manifest = tmp_path / "m.csv"
    manifest.write_text("file,text,split\na.wav,silence,test\n")
    data = f"data={{name: folder, path: {tmp_path}, manifest: {manifest}}}"
    with pytest.raises(PartitaError, match=r"the data has no training pieces: 1 file.*0 train, 0 validation, 1 test"):
        train(load_recipe(toy_recipe, [data]), tmp_path / "run")


def interrupted(plan, run, monkeypatch, step):
    """Train until ``step`` of the first part, and die there."""
    begin = Reseed.on_train_batch_start

    def dying(self, trainer, module, batch, batch_idx):
        begin(self, trainer, module, batch, batch_idx)
        if batch_idx == step:
            raise Killed

    monkeypatch.setattr(Reseed, "on_train_batch_start", dying)
    with pytest.raises(Killed):
        train(plan, run)
    monkeypatch.setattr(Reseed, "on_train_batch_start", begin)


def test_a_run_goes_on_when_only_keys_without_effect_on_its_weights_have_changed(toy_recipe, tmp_path, monkeypatch):
    interrupted(load_recipe(toy_recipe), tmp_path / "run", monkeypatch, 5)
    changes = [
        "description=mine",
        "tokenizers.acoustic.fit.checkpoint_every=1",
        "tokenizers.acoustic.fit.num_workers=1",
        "stages.main.generator.fit.checkpoint_seconds=5",
        "trainer.profiler=simple",
        "stages.main.generator.fit.trainer.log_every_n_steps=3",
        "trainer.logger=[csv]",
        "trainer.log_every_n_steps=2",
    ]
    train(load_recipe(toy_recipe, changes), tmp_path / "run")
    train(load_recipe(toy_recipe), tmp_path / "whole")
    assert same(weights(tmp_path / "run"), weights(tmp_path / "whole"))


@pytest.mark.parametrize("change", ["tokenizers.acoustic.fit.lr=0.5", "seed=4", "trainer.precision=bf16-mixed"])
def test_a_run_does_not_go_on_as_another_one(toy_recipe, tmp_path, monkeypatch, change):
    interrupted(load_recipe(toy_recipe), tmp_path / "run", monkeypatch, 5)
    with pytest.raises(PartitaError, match=rf"(?s)holds a run of another recipe.*{change.split('=')[0]}"):
        train(load_recipe(toy_recipe, [change, "description=mine"]), tmp_path / "run")


def test_a_run_whose_recipe_is_damaged_is_refused_by_name(toy_recipe, tmp_path, monkeypatch):
    interrupted(load_recipe(toy_recipe), tmp_path / "run", monkeypatch, 5)
    (tmp_path / "run" / "recipe.yaml").write_text("tokenizers: [unfinished")
    with pytest.raises(PartitaError, match=r"recipe\.yaml"):
        train(load_recipe(toy_recipe), tmp_path / "run")
