"""MusicCaps's table, and the clips of it that a person has."""

import csv

import numpy as np
import pytest
import soundfile

from folder_toys import quiet, read
from partita.data.musiccaps import MusicCaps
from partita.errors import PartitaError

HEADER = "ytid,start_s,end_s,audioset_positive_labels,aspect_list,caption,author_id,is_balanced_subset,is_audioset_eval"
ROWS = [
    ("-0Gj8-vB1q4", 30, 40, "eval", "a slow ballad, with piano"),
    ("-0SdAVK79lg", 30, 40, "balanced", "a guitar riff"),
    ("_-EFWBb_Xyz", 5, 15, "train", "a drum solo"),
    ("0-9hDqk3xzA", 200, 210, "train", "a choir"),
    ("0-9hDqk3xzB", 0, 10, "eval", "nobody has this one"),
]


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "musiccaps-public.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(HEADER.split(","))
        for name, start, stop, split, caption in ROWS:
            flags = split == "balanced", split != "train"
            writer.writerow([name, start, stop, "/m/04rlf", "['slow']", caption, 4, *flags])
    return path


def ramp(path, seconds, rate=1000):
    """Audio whose value is its time, in units of 1000 s."""
    soundfile.write(path, np.arange(seconds * rate) / rate / 1000, rate, subtype="FLOAT")


@pytest.fixture
def audio(tmp_path):
    folder = tmp_path / "audio"
    (folder / "more").mkdir(parents=True)
    ramp(folder / "-0Gj8-vB1q4.wav", 10)  # the clip alone
    ramp(folder / "-0SdAVK79lg_30.wav", 60)  # the whole video
    ramp(folder / "more" / "Drums [_-EFWBb_Xyz].wav", 10)
    ramp(folder / "0-9hDqk3xzA.wav", 100)  # a video that ends before its clip
    ramp(folder / "something else.wav", 10)
    return folder


def test_clips_are_found_by_the_ids_of_their_videos(table, audio):
    source = quiet(MusicCaps(str(table), str(audio), validation=0.0))
    assert [source.size(split) for split in ("train", "validation", "test")] == [1, 0, 2]
    found = {clip.fields["id"]: clip for clip in (read(source, i, split="test") for i in range(2))}
    assert found.keys() == {"-0Gj8-vB1q4", "-0SdAVK79lg"}
    assert found["-0Gj8-vB1q4"].fields["text"] == "a slow ballad, with piano"
    assert source.report == [
        "0-9hDqk3xzA.wav: it ends before its clip does, at 210 s",
        "0-9hDqk3xzB: there is no audio file of this video",
    ]


def test_a_title_can_begin_with_a_word_as_long_as_an_id(table, audio):
    (audio / "more" / "Drums [_-EFWBb_Xyz].wav").rename(audio / "Performance of drums [_-EFWBb_Xyz].wav")
    source = quiet(MusicCaps(str(table), str(audio), validation=0.0))
    assert read(source).fields["id"] == "_-EFWBb_Xyz"


def test_clips_of_the_same_video_have_ids_of_their_own_and_share_a_split(audio, tmp_path):
    videos = [11 * letter for letter in "abcdef"]
    rows = [f"{name},{start},{start + 10},,,a clip,4,False,False" for start in (0, 20, 40) for name in videos]
    table = tmp_path / "videos.csv"
    table.write_text("\n".join([HEADER, *rows]))
    for name in videos:
        ramp(audio / f"{name}.wav", 60)
    source = quiet(MusicCaps(str(table), str(audio), validation=0.5))
    found = {}
    for split in ("train", "validation"):
        for i in range(source.size(split)):
            clip = read(source, i, split=split, seconds=None, sample_rate=1000)
            found[clip.fields["id"]] = (split, round(float(clip.audio[0, 0]) * 1000))
    assert {split for split, _ in found.values()} == {"train", "validation"}
    assert len(found) == 18
    for name in videos:
        clips = [found[name + number] for number in ("", "#2", "#3")]
        assert [start for _, start in clips] == [0, 20, 40]
        assert len({split for split, _ in clips}) == 1


def test_a_short_clip_after_the_end_of_its_video_is_left_out(audio, tmp_path):
    """However short it is: the video of 60 s ends before the second one."""
    table = tmp_path / "videos.csv"
    rows = [f"-0SdAVK79lg,{start},{start + 0.4},,,a clip,4,False,False" for start in (30, 60.2)]
    table.write_text("\n".join([HEADER, *rows]))
    source = quiet(MusicCaps(str(table), str(audio), validation=0.0))
    assert source.size("train") == 1
    assert source.report == ["-0SdAVK79lg_30.wav: it ends before its clip does, at 60.6 s"]


def test_only_the_clip_of_a_whole_video_is_read(table, audio):
    source = quiet(MusicCaps(str(table), str(audio)))
    names = [read(source, i, split="test").fields["id"] for i in range(2)]
    index = names.index("-0SdAVK79lg")
    starts = set()
    for seed in range(20):
        example = source.read("test", index, seed=seed, seconds=4.0, sample_rate=1000, channels=1)
        starts.add(float(example.audio[0, 0]))
        assert 0.030 <= example.audio[0, 0] <= 0.036
        assert example.audio[0, -1] < 0.040
    assert len(starts) > 10
    whole = source.read("test", index, seed=0, seconds=None, sample_rate=1000, channels=1)
    assert whole.audio.shape == (1, 10_000)
    assert whole.audio[0, 0] == pytest.approx(0.030)
    longer = source.read("test", index, seed=0, seconds=12.0, sample_rate=1000, channels=1)
    assert (longer.audio.shape, longer.num_samples) == ((1, 12_000), 10_000)
    assert longer.audio[0, 10_000:].eq(0).all()


def test_the_balanced_subset(table, audio):
    source = quiet(MusicCaps(str(table), str(audio), balanced=True))
    assert [source.size(split) for split in ("train", "validation", "test")] == [0, 0, 1]


def test_other_tables_and_missing_places_are_named(table, audio, tmp_path):
    (tmp_path / "other.csv").write_text("file,text\na.wav,hello\n")
    with pytest.raises(PartitaError, match=r"not MusicCaps's table: it lacks ytid, start_s, .*and has file, text"):
        MusicCaps(str(tmp_path / "other.csv"), str(audio)).setup()
    missing = MusicCaps("nowhere.csv", str(tmp_path / "nothing")).missing()
    assert [key for key, _ in missing] == ["audio", "csv"]
    with pytest.raises(ValueError, match="csv is empty"):
        MusicCaps("", str(audio))
