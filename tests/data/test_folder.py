"""A person's own folder: any format, damaged files named, clips by random access."""

import json
import os
import warnings

import numpy as np
import pytest
import soundfile
import torch

from folder_toys import quiet, read, report_of, tone
from partita.data.base import UnreadableClip
from partita.data.folder import Folder
from partita.errors import PartitaError
from partita.storage.audio_file import inspect_audio, read_clip


def test_damaged_files_are_skipped_and_named(songs):
    source = Folder(str(songs))
    with pytest.warns(UserWarning, match="4 skipped, 4 used"):
        source.setup()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        source.setup()  # warns once
    assert [line.split(":")[0] for line in source.report] == ["cut.ogg", "empty.wav", "noise.flac", "silent.wav"]
    for line, reason in zip(
        source.report, ("truncated", "empty", "cannot be read as audio", "no samples"), strict=True
    ):
        assert reason in line
    sizes = [source.size(split) for split in ("train", "validation", "test")]
    assert sum(sizes) == 4
    assert min(sizes) == 1


@pytest.mark.parametrize(("sample_rate", "channels"), [(16000, 1), (32000, 2), (44100, 1), (48000, 2)])
def test_every_rate_and_channel_count(songs, sample_rate, channels):
    source = quiet(Folder(str(songs), validation=0.0, test=0.0))
    assert source.size("train") == 4
    for index in range(4):
        example = read(source, index, sample_rate=sample_rate, channels=channels)
        assert example.audio.shape == (channels, sample_rate)
        assert example.audio.dtype == torch.float32
        expected = 440 if "stereo" in example.fields["id"] else 300
        spectrum = np.abs(np.fft.rfft(example.audio[0].numpy()))
        assert abs(int(spectrum.argmax()) - expected) <= 1


@pytest.mark.parametrize(("suffix", "rate"), [("wav", 44100), ("flac", 22050), ("ogg", 48000), ("mp3", 44100)])
@pytest.mark.parametrize("target", [16000, 44100])
def test_a_clip_equals_that_part_of_the_whole(tmp_path, suffix, rate, target):
    path = tmp_path / f"long.{suffix}"
    noise = np.random.default_rng(0).normal(0, 0.1, (rate * 12, 2)) + tone(440, 12, rate, 2)
    soundfile.write(path, noise.clip(-1, 1), rate)
    whole, count = read_clip(path, 0.0, None, target, 1)
    assert count == whole.shape[1] == pytest.approx(12 * target, abs=1)
    for start in (0.0, 0.01, 4.321, 10.999):
        clip, num_samples = read_clip(path, start, 1.0, target, 1)
        first = round(start * target)
        assert num_samples == target
        assert np.abs(clip - whole[:, first : first + target]).max() < 1e-5
    tail, num_samples = read_clip(path, 11.5, 1.0, target, 1)
    assert num_samples == pytest.approx(target / 2, abs=1)
    assert not tail[:, num_samples:].any()


def test_long_files_are_not_read_whole(tmp_path, monkeypatch):
    path = tmp_path / "long.wav"
    soundfile.write(path, np.zeros(16000 * 120, np.float32), 16000)
    sizes = []
    original = soundfile.SoundFile.read
    monkeypatch.setattr(
        soundfile.SoundFile, "read", lambda self, frames=-1, **k: sizes.append(frames) or original(self, frames, **k)
    )
    read(Folder(str(tmp_path)), seconds=1.0, sample_rate=24000)
    assert 0 < sum(sizes) < 16000 * 2
    assert min(sizes) > 0


def test_crops_are_seeded(songs):
    source = quiet(Folder(str(songs)))
    starts = {read(source, 0, seed).fields["seconds_start"] for seed in range(5)}
    assert len(starts) == 5
    one, other = read(source, 0, 3), read(source, 0, 3)
    assert torch.equal(one.audio, other.audio)
    whole = read(source, 0, 3, seconds=None)
    assert whole.fields["seconds_start"] == 0
    assert whole.num_samples == whole.audio.shape[1] == round(whole.fields["seconds_total"] * 16000)


def test_short_files_are_padded(songs):
    example = read(quiet(Folder(str(songs))), seconds=10.0)
    assert example.audio.shape == (1, 160000)
    assert example.num_samples == round(example.fields["seconds_total"] * 16000)
    assert not example.audio[:, example.num_samples :].any()


def test_sidecars(songs):
    (songs / "stereo0.txt").write_text("a  bright\ntone ")
    (songs / "sub" / "mono0.json").write_text(
        json.dumps({"text": "low", "tempo": 90, "beats": [0.25, 0.75, 1.9], "chords": [[0, 1.5, "A:min"]], "mood": 3})
    )
    (songs / "sub" / "mono1.json").write_text("{broken")
    source = quiet(Folder(str(songs), validation=0.0, test=0.0))
    assert any("mono1.json" in line and "JSON" in line for line in source.report)
    assert source.fields == {"text", "tempo", "beats", "chords", "id", "seconds_start", "seconds_total"}
    fields = {(example := read(source, i, 1)).fields["id"]: example.fields for i in range(3)}
    assert fields["stereo0.ogg"]["text"] == "a bright tone"
    assert "text" not in fields["stereo1.ogg"]
    low = fields["sub/mono0.wav"]
    start = low["seconds_start"]
    assert low["tempo"] == 90
    assert np.allclose(low["beats"], [t - start for t in (0.25, 0.75, 1.9) if start <= t < start + 1])
    assert low["chords"] == [(0.0, pytest.approx(min(1.0, 1.5 - start)), "A:min")]
    assert "mood" not in low


def test_fewer_than_three_files_are_all_for_training(tmp_path):
    soundfile.write(tmp_path / "a.wav", tone(440, 1, 16000), 16000)
    source = Folder(str(tmp_path))
    assert [source.size(split) for split in ("train", "validation", "test")] == [1, 0, 0]
    assert [source.fallback_split(split) for split in ("train", "validation", "test")] == ["train"] * 3


def test_nothing_there(tmp_path):
    with pytest.raises(PartitaError, match=r"no folder .*missing"):
        Folder(str(tmp_path / "missing")).setup()
    (tmp_path / "notes.pdf").write_text("")
    with pytest.raises(PartitaError, match=r"no audio files .* found 1 × \.pdf"):
        Folder(str(tmp_path)).setup()
    (tmp_path / "a.wav").write_text("no")
    with pytest.raises(PartitaError, match=r"no usable audio in (.|\n)*a\.wav"):
        Folder(str(tmp_path)).setup()
    with pytest.raises(PartitaError, match=r"no manifest list\.csv"):
        Folder(str(tmp_path), manifest="list.csv").setup()
    (tmp_path / "list.csv").write_text("song,words\na,b\n")
    with pytest.raises(PartitaError, match="columns"):
        Folder(str(tmp_path), manifest="list.csv").setup()
    (tmp_path / "list.xml").write_text("")
    with pytest.raises(PartitaError, match="jsonl"):
        Folder(str(tmp_path), manifest="list.xml").setup()
    with pytest.raises(ValueError, match="path is empty"):
        Folder("")


def test_a_file_that_goes_bad_later_is_named(songs):
    source = quiet(Folder(str(songs), validation=0.0, test=0.0))
    for path in songs.rglob("*.ogg"):
        path.unlink()
    with pytest.raises(UnreadableClip, match=r"stereo0\.ogg: there is no such file"):
        read(source, 0)


@pytest.mark.parametrize("suffix", ["wav", "aiff", "flac", "mp3", "ogg", "w64"])
def test_truncation_is_noticed(tmp_path, suffix):
    path = tmp_path / f"song.{suffix}"
    noise = np.random.default_rng(0).normal(0, 0.1, (44100 * 4, 2))
    soundfile.write(path, noise, 44100)
    assert inspect_audio(path).seconds == pytest.approx(4, abs=0.1)
    whole = path.read_bytes()
    for part in (0.3, 0.7, 0.97):
        path.write_bytes(whole[: round(len(whole) * part)])
        with pytest.raises(PartitaError):
            inspect_audio(path)


def test_a_wav_written_to_a_pipe_is_whole(tmp_path):
    path = tmp_path / "piped.wav"
    soundfile.write(path, tone(440, 1, 16000), 16000)
    data = bytearray(path.read_bytes())
    size = data.find(b"data") + 4
    data[4:8] = data[size : size + 4] = b"\xff" * 4
    path.write_bytes(data)
    assert inspect_audio(path).num_samples == 16000


def test_what_there_is(songs):
    (songs / "stereo0.txt").write_text("a bright tone")
    source = quiet(Folder(str(songs)))
    assert str(source.summary) == "4 files, 10 s, 1 with captions; 2 train, 1 validation, 1 test"
    rows = [{"file": "stereo0.ogg", "text": "one"}, {"file": "stereo0.ogg", "text": "two"}, {"file": "stereo1.ogg"}]
    (songs / "list.jsonl").write_text("\n".join(map(json.dumps, rows)))
    source = quiet(Folder(str(songs), manifest="list.jsonl"))
    left_out = "6 more in the folder are not used (not in list.jsonl)"
    assert str(source.summary) == f"2 files, 6 s, 1 with captions; 2 train, 0 validation, 0 test; {left_out}"
    assert source.summary.known == {"text": 1}


SIDECARS = {
    "nested": ("[" * 100_000, "nested far too deep"),
    "infinite melody": ('{"melody": [[0, 1, Infinity]]}', "melody"),
    "huge number": ('{"tempo": 1' + "0" * 400 + "}", "tempo"),
    "thousands of digits": ('{"tempo": 1' + "0" * 9000 + "}", "not valid JSON"),
    "nested value": ('{"text": ' + "[" * 900 + "]" * 900 + "}", "text cannot be"),
    "half a character": ('{"text": "\\ud800"}', "text is not UTF-8"),
    "twice": ('{"text": "a", "text": "b"}', "twice"),
}


@pytest.mark.parametrize("kind", SIDECARS)
def test_a_damaged_sidecar_costs_its_own_file_only(songs, kind):
    content, said = SIDECARS[kind]
    (songs / "stereo0.json").write_text(content)
    report, used = report_of(songs)
    assert used == {"stereo1.ogg", "sub/mono0.wav", "sub/mono1.wav"}
    assert any(line.startswith("stereo0.ogg: ") and said in line for line in report.splitlines())


def test_a_caption_beside_an_object_without_one(songs):
    (songs / "stereo0.json").write_text('{"tempo": 90}')
    (songs / "stereo0.txt").write_text("from the text")
    (songs / "stereo1.json").write_text('{"caption": "from the object"}')
    (songs / "stereo1.txt").write_text("from the text")
    source = quiet(Folder(str(songs), validation=0.0, test=0.0))
    texts = {(f := read(source, i).fields)["id"]: f.get("text") for i in range(4)}
    assert (texts["stereo0.ogg"], texts["stereo1.ogg"]) == ("from the text", "from the object")


def test_names_that_are_not_utf8(songs):
    odd = songs / os.fsdecode(b"caf\xe9 \x1b[31m.wav")
    with odd.open("wb") as file:
        soundfile.write(file, tone(440, 1, 16000), 16000, format="WAV")
    (songs / os.fsdecode(b"bad\xe9.wav")).write_bytes(b"no audio")
    report, used = report_of(songs)
    assert len(used) == 5
    for text in (report, *used):
        text.encode()
        assert "\x1b" not in text
    assert any(name.startswith("caf") for name in used)
    assert "bad" in report


def test_a_name_as_long_as_names_can_be(tmp_path):
    """``NAME.json`` beside it would be one letter too long."""
    names = ["a" * 251 + ".wav", "b.wav"]
    for name in names:
        soundfile.write(tmp_path / name, np.zeros(800), 8000)
    (tmp_path / ("a" * 251 + ".txt")).write_text("long")
    source = Folder(str(tmp_path))
    source.setup()
    assert source.report == []
    found = [source.read("train", i, seed=0, seconds=None, sample_rate=8000, channels=1).fields for i in range(2)]
    assert {fields["id"]: fields.get("text") for fields in found} == dict(zip(names, ["long", None], strict=True))


def test_odd_things_in_the_folder(songs):
    (songs / "album.wav").mkdir()
    soundfile.write(songs / "album.wav" / "inside.wav", tone(440, 1, 16000), 16000)
    os.mkfifo(songs / "pipe.wav")
    (songs / "dangling.wav").symlink_to(songs / "nothing")
    (songs / "sub" / "loop").symlink_to(songs)
    (songs / "self.wav").symlink_to(songs / "self.wav")
    far = songs.parent / f"{songs.name} elsewhere"
    far.mkdir()
    (songs / "linked").symlink_to(far)
    soundfile.write(far / "far.wav", tone(440, 1, 16000), 16000)
    report, used = report_of(songs)
    own = {"stereo0.ogg", "stereo1.ogg", "sub/mono0.wav", "sub/mono1.wav"}
    assert used == own | {"album.wav/inside.wav", "linked/far.wav"}
    assert "pipe.wav: it is not a regular file" in report
    assert "dangling.wav: there is no such file" in report
    assert "self.wav: " in report


def test_a_folder_that_cannot_be_read_is_named(songs, monkeypatch):
    scandir = os.scandir

    def denied(path):
        if str(path).endswith("sub"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", denied)
    report, used = report_of(songs)
    assert "sub: this folder cannot be read: Permission denied" in report
    assert used == {"stereo0.ogg", "stereo1.ogg"}


def test_everything_is_decoded_once_on_request(songs):
    music = tone(440, 2, 44100, 2)
    music[44100, 0] = np.nan
    soundfile.write(songs / "nan.wav", music, 44100, subtype="FLOAT")
    found = dict(quiet(Folder(str(songs))).verify())
    assert {name for name, wrong in found.items() if wrong} == {"nan.wav"}
    assert len(found) == 5
    assert "not a number at 1.00 s" in found["nan.wav"]
