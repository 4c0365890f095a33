"""Several sources as one: shares, splits, names, and the same examples however they are read."""

import json
import pickle

import numpy as np
import pytest
import soundfile
import torch

from partita.data.base import UnreadableClip
from partita.data.examples import Collate, Examples, StepSampler
from partita.data.folder import Folder
from partita.data.mixture import Mixture
from partita.data.overview import generation_gaps, overview, supplies, training_gaps
from toys import ToySilent, ToySines


class Elsewhere(ToySines):
    """The same under another name."""

    registered_name = "elsewhere"


def examples(source, split="train", length=300, seed=0):
    return Examples(source, split, length=length, seconds=0.1, sample_rate=8000, channels=1, seed=seed)


def mixed(weights=(2, 1), pieces=(4, 7)):
    return Mixture([ToySines(pieces=pieces[0]), Elsewhere(pieces=pieces[1])], weights)


def sources_of(read, count):
    return [read[i].fields["id"].split("/")[0] for i in range(count)]


@pytest.mark.parametrize("weights", [(2, 1), (1, 1), (0.3, 0.7), (1, 5.5)])
def test_shares_are_exact_at_any_point(weights):
    drawn = sources_of(examples(mixed(weights)), 300)
    share = weights[0] / sum(weights)
    for count in (1, 10, 33, 300):
        assert abs(drawn[:count].count("toy-sines") - share * count) <= 1


def test_shares_of_three():
    source = Mixture([ToySines(), Elsewhere(), ToySilent()], [3, 2, 1])
    drawn = sources_of(examples(source), 60)
    assert [drawn.count(name) for name in ("toy-sines", "elsewhere", "toy-silent")] == [30, 20, 10]


def test_each_source_comes_in_rounds_of_its_own():
    read = examples(mixed((1, 1)))
    drawn = [read[i].fields["id"] for i in range(112)]
    for name, pieces in (("toy-sines", 4), ("elsewhere", 7)):
        own = [piece for piece in drawn if piece.startswith(name)]
        for start in range(0, 56, pieces):
            assert len(set(own[start : start + pieces])) == pieces


def test_steps_read_the_same_wherever_a_run_is_taken_up_and_however_many_share_it():
    whole = [example.audio for example in map(examples(mixed()).__getitem__, range(48))]
    copy = pickle.loads(pickle.dumps(mixed()))
    for rank in range(2):
        for start in (0, 3):
            numbers = list(StepSampler(6, 4, start=start, rank=rank, world_size=2))
            other = examples(copy)
            assert all(torch.equal(other[i].audio, whole[i]) for i in reversed(numbers))
    numbers = sorted(i for rank in range(2) for i in StepSampler(6, 4, rank=rank, world_size=2))
    assert numbers == list(range(48))


def test_what_one_source_does_not_know_is_unknown():
    source = Mixture([ToySines(), ToySilent()], [1, 1])
    assert source.fields == {"text", "id"}
    batch = Collate()([examples(source)[i] for i in range(8)])
    assert sum(text is None for text in batch["text"]) == 4
    assert training_gaps(source, {"conditioners.text": ("text",)}) == [
        "24 of 24 pieces in toy-silent have no caption, and conditioners.text learns nothing from them"
    ]


def test_clips_whose_pieces_have_no_caption_are_counted():
    told = [{"text": "one", "tempo": 90}, {"id": "2"}, {"id": "3", "tempo": 60}]
    reads = {"conditioners.text": ("text",), "conditioners.speed": ("tempo",)}
    assert [line.split(":")[0] for line in generation_gaps(told, reads)] == [
        "2 of 3 clips are of pieces without caption",
        "1 of 3 clips are of pieces without tempo",
    ]
    assert not generation_gaps(told[:1], reads)


def test_a_damaged_piece_is_replaced_from_its_own_source():
    class Worn(ToySines):
        registered_name = "worn"

        def read(self, split, index, **options):
            if index == 0:
                raise UnreadableClip("0", "it is worn")
            return super().read(split, index, **options)

    source = Mixture([Worn(pieces=3), ToySines()], [1, 1])
    assert sources_of(examples(source), 40).count("worn") == 20
    assert source.report == ["worn/0: it is worn"]


@pytest.fixture
def folders(tmp_path):
    """Two folders of the same name: one of five files with a caption, one of two files without."""
    for place, count in (("a", 5), ("b", 2)):
        (tmp_path / place / "music").mkdir(parents=True)
        for i in range(count):
            soundfile.write(tmp_path / place / "music" / f"{i}.wav", 0.1 * np.ones((4000, 2)), 8000)
    (tmp_path / "a" / "music" / "0.json").write_text(json.dumps({"text": "dull"}))
    (tmp_path / "b" / "music" / "bad.wav").write_bytes(b"no")
    return [str(tmp_path / place / "music") for place in ("a", "b")]


@pytest.mark.filterwarnings("ignore:.*skipped")
def test_described_split_and_reported_by_source(folders):
    source = Mixture([Folder(folders[0]), Folder(folders[1])], [1, 3])
    assert [line.split(": may supply")[0] for line in supplies(source)] == [
        "music 1, 25% of the clips",
        "music 2, 75% of the clips",
    ]
    source.setup()
    assert overview(source) == [
        "music 1, 25% of the clips: 5 files, 2 s, 1 with captions; 3 train, 1 validation, 1 test",
        "music 2, 75% of the clips: 2 files, 1 s, none with captions; 2 train, 0 validation, 0 test",
    ]
    assert str(source.summary) == "7 files, 4 s, 1 with captions; 5 train, 1 validation, 1 test"
    (damaged,) = source.report
    assert damaged.startswith("music 2/bad.wav: cannot be read as audio: Format not recogni")  # as libsndfile spells it
    assert {"text", "id"} <= source.fields
    # of the second nothing is held out, so that it has no part in what measures
    assert set(sources_of(examples(source, "test", 8), 8)) == {"music 1"}
    assert set(sources_of(examples(source), 8)) == {"music 1", "music 2"}


def test_what_is_not_there_is_named_by_number(folders):
    source = Mixture([Folder(folders[0]), Folder(folders[1] + "x", manifest="none.csv")], [1, 1])
    assert [name for name, _ in source.missing()] == ["1.path", "1.manifest"]


@pytest.mark.parametrize("weights", [(1,), (1, 0), (1, -1), (1, float("nan")), (1, float("inf"))])
def test_weights_that_cannot_be(weights):
    with pytest.raises(ValueError, match="weight"):
        Mixture([ToySines(), ToySines()], weights)
