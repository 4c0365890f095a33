import csv
import signal
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

import partita.training.training
from partita.core.fit import Fit
from partita.core.part_key import PartKey
from partita.errors import PartitaError
from partita.recipe.plan import load_recipe
from partita.training.callbacks import Reseed, StepProgressBar
from partita.training.fit_data import FitData
from partita.training.report import read_curves
from partita.training.trainer import check_nodes
from partita.training.training import seconds_per_step, train
from saved_systems import weights
from toys import ToyBigram, ToyCodec

FIT = "stages.main.generator.fit."
STAGE = ["stages.main.generator.condition_dropout.together=0", FIT + "ema=null", FIT + "lr=0.01"]


class Killed(BaseException):
    pass


def rows(run, folder, name):
    """(step, value) of every point that the CSV logger wrote."""
    files = sorted((run / "logs" / folder / "csv").glob("version_*/metrics.csv"))
    found = [row for file in files for row in csv.DictReader(file.read_text().splitlines())]
    return [(int(row["step"]), float(row[name])) for row in found if row.get(name)]


def test_accumulated_batches_make_the_step_of_one_large_batch(toy_recipe, tmp_path):
    train(load_recipe(toy_recipe, [*STAGE, FIT + "batch_size=8"]), tmp_path / "large")
    train(load_recipe(toy_recipe, [*STAGE, FIT + "batch_size=2", FIT + "accumulate=4"]), tmp_path / "small")
    large, small = weights(tmp_path / "large"), weights(tmp_path / "small")
    assert large.keys() == small.keys()
    for key in large:
        torch.testing.assert_close(small[key], large[key], atol=1e-5, rtol=1e-4)


def test_whatever_counts_steps_agrees_under_accumulation(lines, toy_recipe, tmp_path, monkeypatch):
    """The schedule ends at its end, and progress, curves, validations and checkpoints count updates, not batches."""
    monkeypatch.setattr("partita.training.callbacks.ProgressLines.__init__.__defaults__", (1e-9,))
    batches, saved, loss = [], [], ToyBigram.loss

    def counted(self, *args):
        batches.append(self.training)
        return loss(self, *args)

    def keep(self, path, weights_only=None):
        saved.append((self.global_step, self.fit_loop.epoch_loop.batch_progress.current.completed))

    monkeypatch.setattr(ToyBigram, "loss", counted)
    monkeypatch.setattr("lightning.Trainer.save_checkpoint", keep)
    overrides = [FIT + "accumulate=4", FIT + "schedule=linear", "trainer.log_every_n_steps=1"]
    train(load_recipe(toy_recipe, [*STAGE, *overrides]), tmp_path / "run")
    assert sum(batches) == 8 * 4
    assert "stages/main: 8 steps of 8" in lines
    assert [line for line in lines if " of 8" in line and "step 8" in line]
    assert [step for step in saved if step[0] < 8][-2:] == [(3, 12), (6, 24)]
    rates = dict(rows(tmp_path / "run", "stages/main", "lr-AdamW"))
    assert rates == pytest.approx({step: 0.01 * (1 - step / 8) for step in range(8)})
    curves = read_curves(tmp_path / "run", PartKey("stages/main"))
    assert curves["train/loss"][0] == list(range(8))
    assert curves["val/loss"][0] == [3, 7]
    steps, audio = curves["speed/steps_per_second"][1][-1], curves["speed/audio_seconds_per_second"][1][-1]
    assert audio == pytest.approx(steps * 8 * 1.0)


def test_curves_go_on_at_the_right_step_after_an_interruption(toy_recipe, tmp_path, monkeypatch):
    plan = load_recipe(toy_recipe, ["trainer.log_every_n_steps=1"])
    batch = Reseed.on_train_batch_start

    def dying(self, trainer, module, data, batch_idx):
        if batch_idx == 4 and isinstance(module, ToyBigram):
            raise Killed
        batch(self, trainer, module, data, batch_idx)

    monkeypatch.setattr(Reseed, "on_train_batch_start", dying)
    with pytest.raises(Killed):
        train(plan, tmp_path / "run")
    monkeypatch.undo()
    train(plan, tmp_path / "run")
    train(plan, tmp_path / "whole")
    assert (
        rows(tmp_path / "run", "stages/main", "train/loss")[-5:]
        == rows(tmp_path / "whole", "stages/main", "train/loss")[-5:]
    )


def test_the_bar_shows_steps():
    bar = StepProgressBar()
    bar._trainer = SimpleNamespace(
        max_epochs=1,
        max_steps=-1,
        num_training_batches=32,
        lightning_module=SimpleNamespace(fit_options=Fit(steps=8, accumulate=4)),
    )
    assert bar.total_train_batches == 8


def test_clips_are_logged_from_the_weights_that_are_saved(toy_recipe, tmp_path, monkeypatch):
    rendered, validated = [], []
    render, validate = FitData.render, ToyCodec.validation_step

    def watched(self, *args):
        rendered.append(float(self.system.parts[self.key].gain))
        return render(self, *args)

    monkeypatch.setattr(FitData, "render", watched)
    monkeypatch.setattr(
        ToyCodec, "validation_step", lambda s, b, i: (validated.append(float(s.gain)), validate(s, b, i))[1]
    )
    fit, alone = "tokenizers.acoustic.fit.", ["stages.main=null", "conditioners.text=null"]
    changes = [fit + "ema=0.5", fit + "lr=0.1", "trainer.logger=tensorboard"]
    train(load_recipe(toy_recipe, [*changes, *alone]), tmp_path / "run")
    saved = float(load_file(tmp_path / "run" / "tokenizers" / "acoustic" / "model.safetensors")["gain"])
    assert rendered[-1] == validated[-1] == saved


def test_averaged_weights_are_where_the_training_is():
    part = ToyCodec()
    part.fit_options = Fit(ema=0.9)
    (callback,) = part.configure_callbacks()
    callback.on_train_batch_end(SimpleNamespace(global_step=1), part.to("meta"), None, None, 0)
    assert callback.average["gain"].device.type == "meta"


def test_a_step_of_several_batches_is_timed_whole(toy_recipe, monkeypatch):
    ended = []
    monkeypatch.setattr("partita.training.training.StepTimer.on_step_end", lambda self, t, m, done: ended.append(done))
    monkeypatch.setattr(partita.training.training.statistics, "median", lambda times: 0.0)
    assert seconds_per_step(load_recipe(toy_recipe, [FIT + "accumulate=3"]), PartKey("stages/main"), steps=6) == 0.0
    assert ended == [1, 2, 3, 4, 5, 6]


def test_an_average_that_would_never_leave_the_initial_weights_is_refused():
    with pytest.raises(ValueError, match="ema must be below 1"):
        Fit(ema=1.0)
    assert Fit(ema=0.0).ema == 0


@pytest.mark.parametrize("port", ["abc", "0", "99999", "-1", ""])
def test_a_wrong_port_is_named(monkeypatch, port):
    monkeypatch.setenv("MASTER_PORT", port)
    trainer = SimpleNamespace(world_size=2, num_nodes=1)
    with pytest.raises(PartitaError, match=f"MASTER_PORT is '{port}': set it to a free port"):
        check_nodes(trainer)
    trainer.world_size = 1
    check_nodes(trainer)


def test_processes_that_could_not_connect_do_not_stay_behind(toy_recipe, tmp_path, monkeypatch):
    """The first process cannot listen at the port; those that it started would try to connect for minutes."""
    ended = []

    def fit(*args, **options):
        raise torch.distributed.DistNetworkError("The server socket has failed to listen")

    launcher = SimpleNamespace(kill=ended.append)
    trainer = SimpleNamespace(
        fit=fit, strategy=SimpleNamespace(launcher=launcher), loggers=[], world_size=2, num_nodes=1
    )
    monkeypatch.setattr("partita.training.training.make_trainer", lambda *args: trainer)
    with pytest.raises(PartitaError, match=r"did not connect.*failed to listen"):
        train(load_recipe(toy_recipe), tmp_path / "run")
    assert ended == [signal.SIGKILL]
