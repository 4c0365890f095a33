import logging
from datetime import datetime
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.utilities import rank_zero_only

import partita
from partita.core.fit import Fit
from partita.core.logs import shared_logger
from partita.recipe.plan import load_recipe
from partita.training.callbacks import ProgressLines
from partita.training.run_log import FILE_ONLY, log_to_file
from partita.training.training import train


def test_lines_say_speed_and_the_time_that_is_left(lines, monkeypatch):
    now = [100.0]
    monkeypatch.setattr("partita.training.callbacks.time.monotonic", lambda: now[0])
    trainer = SimpleNamespace(is_global_zero=True, callback_metrics={"train/loss": torch.tensor(0.5)})
    part = SimpleNamespace(fit_options=Fit())
    shown = ProgressLines(10_000, shared_logger("partita.training.trainer"))
    for step in range(1601):  # eight steps a second, in sums that floating point holds exactly
        shown.on_train_batch_end(trainer, part, None, None, step)
        now[0] += 0.125
    assert lines[0] == "  step 121 of 10,000, loss 0.500, 8.00 steps/s, 20 min 35 s left"
    assert len(lines) == 13  # one each 15 seconds of 200


def test_a_run_keeps_what_was_said_with_its_time(lines, toy_recipe, tmp_path):
    train(load_recipe(toy_recipe), tmp_path / "run")
    kept = (tmp_path / "run" / "logs" / "train.log").read_text().splitlines()
    assert [line[20:] for line in kept] == lines
    assert any(line.startswith("stages/main: 8 steps") for line in lines)


def test_steps_that_a_bar_shows_are_kept_alone(lines, tmp_path):
    with log_to_file(tmp_path / "logs" / "train.log"):
        FILE_ONLY.info("  step 1 of 2")
        logging.getLogger("partita.training.training").info("stages/%s", "main")
    FILE_ONLY.info("  step 2 of 2")
    assert lines == ["stages/main"]
    found = (tmp_path / "logs" / "train.log").read_text().splitlines()
    assert [line[20:] for line in found] == ["  step 1 of 2", "stages/main"]
    datetime.strptime(found[0][:19], "%Y-%m-%d %H:%M:%S")


def test_whoever_did_not_ask_for_lines_gets_none(caplog, tmp_path):
    """The file of a run gets them, but not the log of the program around it."""
    caplog.set_level(logging.WARNING)
    with log_to_file(tmp_path / "train.log"):
        logging.getLogger("partita.training.training").info("data: toys")
    assert not caplog.records
    assert "data: toys" in (tmp_path / "train.log").read_text()
    caplog.set_level(logging.INFO)
    with log_to_file(tmp_path / "train.log"):
        logging.getLogger("partita.training.training").info("trained")
    assert caplog.messages == ["trained"]


def test_only_the_first_process_speaks(lines, monkeypatch, tmp_path):
    with log_to_file(tmp_path / "train.log"):
        for rank in (1, 0):
            monkeypatch.setattr(rank_zero_only, "rank", rank, raising=False)
            shared_logger("partita.training.training").info("rank %d", rank)
    assert lines == ["rank 0"]
    assert "rank 1" not in (tmp_path / "train.log").read_text()


@pytest.mark.parametrize("progress", [True, False])
def test_training_prints_its_lines_unless_told_not_to(toy_recipe, tmp_path, capsys, progress):
    partita.train(toy_recipe, tmp_path / "run", report=False, progress=progress)
    printed = capsys.readouterr().out.splitlines()
    kept_lines = [line[20:] for line in (tmp_path / "run" / "logs" / "train.log").read_text().splitlines()]
    assert kept_lines
    assert printed == ([*kept_lines, f"trained: {tmp_path / 'run'}"] if progress else [])
