"""Training on a torch Dataset."""

import pytest
import torch
from torch.utils.data import Dataset

import partita
from partita.data.dataset import DatasetSource, supply_dataset


class Sines(Dataset):
    """Pieces at 8 kHz in stereo; ``form`` makes an item of audio, rate and text."""

    def __init__(self, form, pieces=40):
        self.form, self.pieces = form, pieces

    def __len__(self):
        return self.pieces

    def __getitem__(self, i):
        time = torch.arange(16000) / 8000
        return self.form(0.5 * torch.sin(2 * torch.pi * 50 * (i + 1) * time).repeat(2, 1), 8000, f"tone {i}")


def as_mapping(audio, rate, text):
    return {"audio": audio, "sample_rate": rate, "text": text}


def as_tuple(audio, rate, text):
    return audio, rate, text


@pytest.mark.parametrize("form", [as_mapping, as_tuple])
def test_clips_are_resampled_cut_and_divided(form):
    with supply_dataset(Sines(form)):
        source = DatasetSource(fields=("text",))
    source.setup()
    assert sum(source.size(split) for split in ("train", "validation", "test")) == 40
    texts = []
    for split in ("train", "validation", "test"):
        assert source.size(split) > 0
        for i in range(source.size(split)):
            example = source.read(split, i, seed=3, seconds=1.0, sample_rate=4000, channels=1)
            assert example.audio.shape == (1, 4000)
            assert example.num_samples == 4000
            texts.append(example.fields["text"])
    assert sorted(texts) == sorted(f"tone {i}" for i in range(40))
    again = source.read("train", 0, seed=3, seconds=1.0, sample_rate=4000, channels=1)
    other = source.read("train", 0, seed=4, seconds=1.0, sample_rate=4000, channels=1)
    assert again.fields["seconds_start"] != other.fields["seconds_start"]
    padded = source.read("train", 0, seed=3, seconds=3.0, sample_rate=4000, channels=2)
    assert (padded.audio.shape, padded.num_samples) == ((2, 12000), 8000)
    assert not padded.audio[:, 8000:].any()


def test_five_lines_train_on_a_data_set(toy_recipe, tmp_path, capfd):
    music = Sines(as_mapping)
    system = partita.train(toy_recipe, tmp_path / "run", data=music, report=False)
    assert system.source.size("train") > 30
    printed = capfd.readouterr().out
    assert "stages/main: 8 steps of 2" in printed
    assert f"trained: {tmp_path / 'run'}" in printed
    assert partita.load(tmp_path / "run").generate(["tone 1"], duration=0.5).shape == (1, 1, 2000)
    assert partita.train(toy_recipe, tmp_path / "run", data=music, report=False, progress=False)
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (iter([1]), "torch Dataset with a length"),
        ([], "no training items"),
        ([3], "item 0 of the data must be a mapping"),
        ([{"audio": torch.zeros(9)}], "must be a mapping with audio and sample_rate"),
        ([(torch.zeros(9, 2).T.repeat(50, 1), 8000)], "item 0 of the data: .*channels"),
        ([(torch.full((9,), torch.nan), 8000)], "item 0 of the data: .*not finite"),
        ({"training": Sines(as_tuple)}, "unknown split 'training'"),
    ],
)
def test_what_is_no_data_is_one_message(toy_recipe, tmp_path, data, word):
    with pytest.raises(partita.PartitaError, match=word):
        partita.train(toy_recipe, tmp_path / "run", data=data, progress=False)


def test_a_run_says_that_its_data_must_come_with_it():
    with pytest.raises(partita.PartitaError, match="the run does not store"):
        DatasetSource().setup()
