"""Hugging Face data sets as a source: saved folders, Parquet files, streams."""

import io
import json
import pickle
import sys

import datasets
import numpy as np
import pytest
import soundfile
import torch

import partita
from partita.data.base import UnreadableClip
from partita.data.examples import Collate, ExampleLoader, Examples
from partita.data.folder import Folder
from partita.data.hub import HubData, HubOptions

RATE = 8000


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


def wav(number, seconds=2.0, kind="WAV"):
    """A tone per row, as the bytes of a file."""
    buffer = io.BytesIO()
    time = np.arange(round(seconds * RATE)) / RATE
    soundfile.write(buffer, 0.5 * np.sin(2 * np.pi * 50 * (number + 1) * time), RATE, format=kind)
    return buffer.getvalue()


def rows(count, **changes):
    found = {
        "song": [{"bytes": wav(n), "path": f"{n}.wav"} for n in range(count)],
        "words": [f"tone {n}" for n in range(count)],
        "bpm": [60.0 + n for n in range(count)],
        "beats": [[0.0, 0.5, 1.0, 1.5]] * count,
        "mood": ["calm"] * count,
    }
    return found | changes


def made(count=12, **changes):
    return datasets.Dataset.from_dict(rows(count, **changes)).cast_column("song", datasets.Audio(decode=False))


def source(path, **options):
    found = HubData(path=str(path), audio="song", text="words", columns={"tempo": "bpm"}, **options)
    found.setup()
    return found


def read(found, split, index, seed=0, seconds=0.5):
    return found.read(split, index, seed=seed, seconds=seconds, sample_rate=RATE, channels=1)


@pytest.fixture(params=["saved", "parquet", "folder", "stream", "decoded"])
def stored(request, tmp_path):
    """The same twelve rows, each stored in another way."""
    if request.param == "saved":
        made().save_to_disk(tmp_path / "set")
        return source(tmp_path / "set")
    if request.param == "decoded":  # a column that would be decoded with torchcodec
        made().cast_column("song", datasets.Audio()).save_to_disk(tmp_path / "set")
        return source(tmp_path / "set")
    (tmp_path / "set").mkdir()
    made().to_parquet(tmp_path / "set" / "train-0.parquet")
    streaming = request.param == "stream"
    path = tmp_path / "set" / ("train-0.parquet" if request.param == "parquet" else "")
    return source(path, streaming=streaming, options=HubOptions(rows=12 if streaming else None))


def test_rows_are_read_with_their_fields(stored):
    sizes = {split: stored.size(split) for split in ("train", "validation", "test")}
    assert sum(sizes.values()) == 12
    assert min(sizes.values()) >= 1
    assert stored.fields == {"text", "tempo", "beats", "id", "seconds_start", "seconds_total"}
    seen = set()
    for split, size in sizes.items():
        for index in range(size):
            example = read(stored, split, index, seed=index)
            number = int(example.fields["id"].removeprefix("train/"))
            seen.add(number)
            assert example.fields["text"] == f"tone {number}"
            assert example.fields["tempo"] == 60 + number
            assert example.fields["seconds_total"] == 2.0
            start = example.fields["seconds_start"]
            time = start + np.arange(RATE // 2) / RATE
            expected = 0.5 * np.sin(2 * np.pi * 50 * (number + 1) * time)
            assert np.abs(example.audio[0].numpy() - expected).max() < 1e-3
            beats = np.array(example.fields["beats"]) + start
            assert set(np.round(beats, 6)) <= {0.0, 0.5, 1.0, 1.5}
    assert seen == set(range(12))
    assert stored.summary.known["text"] == 12
    assert [wrong for _, wrong in stored.verify()] == [None] * 12


def test_every_row_is_drawn_once_per_epoch_and_by_its_number_alone(stored):
    size = stored.size("train")
    for epoch in range(2):
        drawn = [stored.draw("train", epoch * size + n, 7)[0] for n in range(size)]
        assert sorted(drawn) == list(range(size))
    assert [stored.draw("train", n, 7) for n in (5, 0)] == [stored.draw("train", n, 7) for n in (5, 0)]
    again = pickle.loads(pickle.dumps(stored))  # as for a worker process
    ours, theirs = read(stored, "train", 3), read(again, "train", 3)
    assert ours.fields["text"] == theirs.fields["text"]
    assert np.array_equal(ours.audio, theirs.audio)


def test_named_splits_are_kept_apart(tmp_path):
    whole = datasets.DatasetDict({"train": made(5), "dev": made(2), "test": made(3)})
    whole.save_to_disk(tmp_path / "set")
    found = source(tmp_path / "set")
    assert [found.size(split) for split in ("train", "validation", "test")] == [5, 2, 3]
    assert read(found, "validation", 1).fields["id"] == "dev/1"
    with pytest.raises(partita.PartitaError, match="no split 'trian': did you mean 'train'"):
        source(tmp_path / "set", split="trian")


def test_unreadable_rows_are_named_and_skipped(tmp_path):
    songs = rows(12)["song"]
    songs[0] = {"bytes": b"no audio at all", "path": None}
    songs[1] = {"bytes": wav(1)[:5000], "path": "x.wav"}
    songs[2] = {"bytes": None, "path": str(tmp_path / "missing.wav")}
    songs[3] = None
    tempos = [60.0] * 12
    tempos[4] = -1.0
    datasets.Dataset.from_dict(rows(12, song=songs, bpm=tempos)).save_to_disk(tmp_path / "set")
    found = source(tmp_path / "set", options=HubOptions(validation=0.0, test=0.0))
    wrong = {piece: reason for piece, reason in found.verify() if reason is not None}
    assert set(wrong) == {f"train/{n}" for n in range(5)}
    for n in range(5):
        with pytest.raises(UnreadableClip, match=f"train/{n}: ") as error:
            read(found, "train", n)
        assert "partita-audio" not in str(error.value)
    assert "truncated" in wrong["train/1"]
    assert "bpm cannot be -1.0" in wrong["train/4"]
    examples = Examples(found, "train", length=24, seconds=0.5, sample_rate=RATE, channels=1, seed=0)
    names = {examples[i].fields["id"] for i in range(24)}
    assert names == {f"train/{n}" for n in range(5, 12)}
    assert len(found.report) == 5


def test_a_failure_without_a_message_is_named_by_its_type(tmp_path, monkeypatch):
    def fail(*_):
        raise ConnectionResetError

    found = source(made().save_to_disk(tmp_path / "set") or tmp_path / "set")
    found.setup()
    monkeypatch.setattr(datasets.Dataset, "__getitem__", fail)
    with pytest.raises(UnreadableClip, match="ConnectionResetError"):
        read(found, "train", 0)


@pytest.mark.parametrize(
    ("audio", "words"),
    [
        ({"array": [0.0, 0.5], "sampling_rate": 8000}, r"a mapping of array, sampling_rate, not .*datasets\.Audio"),
        ([0.0, 0.5], r"list, not .*datasets\.Audio"),
        ({"bytes": None, "path": None}, "it has no audio"),
    ],
)
def test_what_is_no_audio_file_is_told(audio, words, tmp_path):
    datasets.Dataset.from_dict({"audio": [audio] * 3}).save_to_disk(tmp_path / "set")
    found = HubData(path=str(tmp_path / "set"))
    found.setup()
    with pytest.raises(UnreadableClip, match=words):
        read(found, "train", 0)


def test_audio_of_all_formats_is_the_same_as_in_a_folder(tmp_path):
    (tmp_path / "music").mkdir()
    songs = []
    for n, kind in enumerate(("FLAC", "OGG", "MP3", "WAV")):
        content = wav(n, kind=kind)
        (tmp_path / "music" / f"{n}.{kind.lower()}").write_bytes(content)
        songs.append({"bytes": content, "path": None})
    made(4, song=songs).save_to_disk(tmp_path / "set")
    found = source(tmp_path / "set", options=HubOptions(validation=0.0, test=0.0))
    folder = Folder(str(tmp_path / "music"), validation=0.0, test=0.0)
    for n in range(4):
        ours = read(found, "train", n, seconds=None)
        theirs = folder.read("train", n, seed=0, seconds=None, sample_rate=RATE, channels=1)
        assert np.array_equal(ours.audio, theirs.audio)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "set either repository .* or path"),
        ({"path": "x", "repository": "a/b"}, "set either"),
        ({"path": "x", "columns": {"tmpo": "bpm"}}, "no field 'tmpo'.*tempo"),
        ({"path": "x", "columns": {"stems": "stems"}}, "no field 'stems'"),
    ],
)
def test_contradictory_arguments_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        HubData(**options)


def test_mistakes_are_one_message(tmp_path, monkeypatch):
    def refused(words, **options):
        with pytest.raises(partita.PartitaError, match=words) as error:
            HubData(**options).setup()
        assert "\n" not in str(error.value)

    refused("does not exist", path=str(tmp_path / "none"))
    (tmp_path / "empty").mkdir()
    refused("neither .parquet files nor what save_to_disk writes", path=str(tmp_path / "empty"))
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "train.parquet").write_bytes(b"PAR1 nothing")
    refused("cannot be read as a data set", path=str(tmp_path / "bad"))
    (tmp_path / "cut").mkdir()
    made().save_to_disk(tmp_path / "cut")
    (tmp_path / "cut" / "state.json").write_text('{"_data_files": 3}')
    refused("cannot be read as a data set", path=str(tmp_path / "cut"))
    made().save_to_disk(tmp_path / "set")
    refused("no column 'audio'", path=str(tmp_path / "set"))
    refused("no column 'caption' for text", path=str(tmp_path / "set"), audio="song", text="caption")
    refused("not a hub id", repository="../set")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "user" / "name").mkdir(parents=True)
    refused("is also a folder here", repository="user/name")
    made().to_parquet(tmp_path / "one.parquet")
    refused("does not state its number of rows", path=str(tmp_path / "one.parquet"), audio="song", streaming=True)
    monkeypatch.setitem(sys.modules, "datasets", None)
    refused(r"pip install 'partita\[hub\]'", path=str(tmp_path / "set"))


def test_a_repository_runs_no_code_and_names_no_file_of_ours(tmp_path, monkeypatch):
    """What the client returns for a repository is replaced, because tests have no network."""
    asked = {}
    secret = tmp_path / "secret.wav"
    secret.write_bytes(wav(0))
    songs = [{"bytes": None, "path": str(secret)}, *rows(12)["song"][1:]]
    stems = [json.dumps({"drums": str(secret)})] * 12

    def load(repository, config, **options):
        asked.update(options, repository=repository)
        return datasets.DatasetDict({"train": made(12, song=songs, stems=stems)})

    monkeypatch.setattr(datasets, "load_dataset", load)
    found = HubData(repository="user/name", audio="song", options=HubOptions(validation=0.0, test=0.0, revision="v1"))
    found.setup()
    assert asked == {"repository": "user/name", "revision": "v1", "streaming": False}
    assert read(found, "train", 1).fields["id"] == "train/1"
    assert "stems" not in found.fields | set(read(found, "train", 1).fields)
    with pytest.raises(UnreadableClip, match="names a file outside the data set: refused"):
        read(found, "train", 0)


def test_a_stream_that_ends_early_is_named(tmp_path):
    made(5).to_parquet(tmp_path / "one.parquet")
    found = source(tmp_path / "one.parquet", streaming=True, options=HubOptions(rows=9, validation=0.0, test=0.0))
    with pytest.raises(UnreadableClip, match="ends after 5 of 9 rows"):
        read(found, "train", 8)
    assert read(found, "train", 2).fields["text"] == "tone 2"


@pytest.mark.parametrize("streaming", [False, True])
def test_worker_processes_read_the_same_rows(tmp_path, streaming):
    made().to_parquet(tmp_path / "train.parquet")
    options = HubOptions(rows=12, validation=0.0, test=0.0)
    found = source(tmp_path / "train.parquet", streaming=streaming, options=options)
    batches = []
    for workers in (0, 2):
        examples = Examples(found, "train", length=18, seconds=0.5, sample_rate=RATE, channels=1, seed=4)
        loader = ExampleLoader(examples, batch_size=3, num_workers=workers, collate_fn=Collate())
        batches.append([(batch["id"], batch["audio"]) for batch in loader])
    assert [ids for ids, _ in batches[0]] == [ids for ids, _ in batches[1]]
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(*batches, strict=True))
