from types import SimpleNamespace

import torch

from partita.core.fit import Fit
from partita.recipe.plan import load_recipe
from partita.training.callbacks import Lines
from partita.training.training import train


def test_lines_say_speed_and_the_time_that_is_left(monkeypatch):
    now, said = [100.0], []
    monkeypatch.setattr("partita.training.callbacks.time.monotonic", lambda: now[0])
    trainer = SimpleNamespace(is_global_zero=True, callback_metrics={"train/loss": torch.tensor(0.5)})
    part = SimpleNamespace(fit_options=Fit())
    lines = Lines(10_000, said.append)
    for step in range(1601):  # eight steps a second, in sums that floating point holds exactly
        lines.on_train_batch_end(trainer, part, None, None, step)
        now[0] += 0.125
    assert said[0] == "  step 121 of 10,000, loss 0.500, 8.00 steps/s, 20 min 35 s left"
    assert len(said) == 13  # one each 15 seconds of 200


def test_a_run_keeps_what_was_said_with_its_time(toy_recipe, tmp_path):
    said = []
    train(load_recipe(toy_recipe), tmp_path / "run", say=said.append)
    kept = (tmp_path / "run" / "logs" / "train.log").read_text().splitlines()
    assert [line[20:] for line in kept] == said
    assert any(line.startswith("stages/main: 8 steps") for line in said)
