import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import partita.recipe.logger_options
import partita.training.loggers
from partita.errors import PartitaError, RecipeError
from partita.recipe.logger_options import check_loggers
from partita.recipe.plan import load_recipe
from partita.training.loggers import log_clip, make_loggers, supports_clips
from partita.training.report import read_curves
from partita.training.training import train


@pytest.mark.parametrize(
    ("value", "word"),
    [
        ("wandbb", "did you mean 'wandb'"),
        ("[csv, tensorbord]", "did you mean 'tensorboard'"),
        ("{wandb: {projekt: x}}", "takes no option 'projekt': did you mean 'project'"),
        ("{csv: {log_model: true}}", "takes no option 'log_model'"),
        ("3", "expected the name of a logger"),
        ("{wandb: 3}", "expected the name of a logger"),
    ],
)
def test_what_is_wrong_with_a_logger_is_said_before_anything_is_built(toy_recipe, monkeypatch, value, word):
    monkeypatch.setattr(partita.recipe.logger_options, "find_spec", lambda name: object())
    with pytest.raises(RecipeError, match=r"trainer\.logger") as error:
        load_recipe(toy_recipe, [f"trainer.logger={value}"])
    assert word in str(error.value)


def test_a_tracker_that_is_not_installed_is_named_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setattr(partita.recipe.logger_options, "find_spec", lambda name: None)
    assert check_loggers(["csv", "trackio"]) == [
        "the logger trackio needs a package that is not installed: pip install trackio"
    ]


def test_a_tracker_that_cannot_start_ends_in_one_message(monkeypatch, tmp_path):
    def refuse(*args):
        raise OSError("nobody is logged in")

    monkeypatch.setitem(partita.training.loggers._TRACKERS, "wandb", refuse)
    with pytest.raises(PartitaError, match=r"trainer\.logger: wandb cannot start: nobody is logged in"):
        make_loggers("wandb", tmp_path, "stages/main", {})


def test_csv_is_always_kept_for_the_report_unless_there_is_no_logger_at_all(toy_recipe, tmp_path):
    kinds = {v: [type(m) for m in make_loggers(v, tmp_path, "a/b", {})] for v in (None, "tensorboard", False)}
    assert kinds == {None: [CSVLogger, TensorBoardLogger], "tensorboard": [CSVLogger, TensorBoardLogger], False: []}
    train(load_recipe(toy_recipe, ["trainer.logger=tensorboard"]), tmp_path / "run")
    assert "train/loss" in read_curves(tmp_path / "run", "stages/main")
    train(load_recipe(toy_recipe, ["trainer.logger=false"]), tmp_path / "silent")
    files = {path.name for path in (tmp_path / "silent" / "logs").rglob("*") if path.is_file()}
    assert files == {"train.log", "trained_on.json"}


def test_clips_and_spectrograms_of_a_training_are_in_tensorboard(toy_recipe, tmp_path):
    train(load_recipe(toy_recipe, ["trainer.logger=null"]), tmp_path / "run")
    board = EventAccumulator(str(tmp_path / "run" / "logs" / "stages" / "main" / "tensorboard"))
    board.Reload()
    assert {"original/0", "rendered/0"} <= set(board.Tags()["audio"])
    assert {"original/0", "rendered/0"} <= set(board.Tags()["images"])


class Recorder(Logger):
    """Has the methods that trackers of Lightning with media have."""

    name, version = "recorder", "0"

    def __init__(self):
        self.audio, self.images = {}, {}

    def log_metrics(self, metrics, step=None):
        pass

    def log_hyperparams(self, params):
        pass

    def log_audio(self, key, audios, step, sample_rate):
        self.audio[key, step] = (audios[0], sample_rate[0])

    def log_image(self, key, images, step):
        self.images[key, step] = images[0]


def test_trackers_with_media_get_each_clip_with_its_channels_and_rate():
    clip, recorder = torch.linspace(-1, 1, 2000).reshape(2, 1000), Recorder()
    assert supports_clips(recorder)
    log_clip(recorder, "rendered/0", clip, 16000, 7)
    audio, rate = recorder.audio["rendered/0/audio", 7]
    assert rate == 16000
    np.testing.assert_array_equal(audio, clip.T.numpy())
    assert recorder.images["rendered/0/spectrogram", 7].axes


def test_clips_that_are_too_loud_are_clipped_before_they_are_logged(tmp_path, capsys):
    recorder, logger = Recorder(), TensorBoardLogger(tmp_path)
    for one in (recorder, logger):
        log_clip(one, "rendered/0", torch.full((1, 1000), 1.5), 16000, 7)
    assert recorder.audio["rendered/0/audio", 7][0].max() == 1
    assert "out of range" not in capsys.readouterr().out
