"""Files that are no audio, or only nearly: each is refused with its reason, soon, and without reading it whole."""

import os
import re
import struct
import threading

import numpy as np
import pytest
import soundfile

from partita.errors import PartitaError
from partita.storage.audio_file import check_audio, inspect_audio, read_clip, write_audio

RATE = 44100


@pytest.fixture
def music():
    """Two seconds of stereo ``[T, C]``."""
    return (0.3 * np.random.default_rng(0).standard_normal((2 * RATE, 2))).clip(-1, 1).astype(np.float32)


def in_time(call, *arguments):
    """What a call raises; it fails the test where it is still waiting after ten seconds."""
    raised = []

    def run():
        try:
            call(*arguments)
        except Exception as error:
            raised.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(10)
    assert not thread.is_alive()
    return raised[0]


def test_what_is_not_a_regular_file_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.wav")
    (tmp_path / "folder.wav").mkdir()
    (tmp_path / "loop.wav").symlink_to(tmp_path / "loop.wav")
    places = {"pipe.wav": "regular", "folder.wav": "folder", "loop.wav": "cannot be read", "gone.wav": "no such file"}
    for name, reason in places.items():
        for call in (inspect_audio, check_audio, lambda path: read_clip(path, 0.0, None, 16000, 1)):
            error = in_time(call, tmp_path / name)
            assert isinstance(error, PartitaError)
            assert reason in str(error)


def test_a_device_is_not_opened(tmp_path):
    (tmp_path / "endless.wav").symlink_to("/dev/zero")
    assert "regular" in str(in_time(read_clip, tmp_path / "endless.wav", 0.0, None, 16000, 1))


def test_what_is_too_long_is_refused_by_its_header(tmp_path, monkeypatch):
    path = tmp_path / "hours.wav"
    soundfile.write(path, np.zeros(RATE, np.float32), RATE, subtype="PCM_16")
    size = 10 * 3600 * RATE * 2
    header = bytearray(path.read_bytes()[:44])
    header[4:8], header[40:44] = struct.pack("<I", size + 36), struct.pack("<I", size)
    path.write_bytes(header)
    os.truncate(path, size + 44)  # ten hours that take no place on the disk
    monkeypatch.setattr(soundfile.SoundFile, "read", lambda *a, **k: pytest.fail("read before it was refused"))
    with pytest.raises(PartitaError, match=r"hours\.wav: it lasts 36,000\.0 s, and at most 30 s can be used here"):
        read_clip(path, 0.0, None, 16000, 1, longest=30)
    with pytest.raises(PartitaError, match="31"):
        read_clip(path, 0.0, 31.0, 16000, 1, longest=30)


def test_a_short_enough_clip_is_read_whatever_the_limit(tmp_path, music):
    soundfile.write(tmp_path / "a.wav", music, RATE)
    clip, count = read_clip(tmp_path / "a.wav", 0.0, None, RATE, 2, longest=2.0)
    assert (clip.shape, count) == ((2, 2 * RATE), 2 * RATE)


@pytest.mark.parametrize(
    ("value", "said"), [(np.nan, "not a number"), (np.inf, "not a number"), (3.4e38, "3.4e+38"), (-32000, "-3.2e+04")]
)
def test_one_impossible_sample_is_found_where_it_is(tmp_path, music, value, said):
    path = tmp_path / "song.wav"
    music[RATE + RATE // 2, 1] = value
    soundfile.write(path, music, RATE, subtype="FLOAT")
    assert inspect_audio(path).seconds == 2
    with pytest.raises(PartitaError, match=re.escape(said) + r".* at 1\.50 s"):
        check_audio(path)
    with pytest.raises(PartitaError, match=r"song\.wav: .*" + re.escape(said)):
        read_clip(path, 1.2, 0.5, 16000, 1)
    assert np.isfinite(read_clip(path, 0.1, 0.5, 16000, 1)[0]).all()


def test_loud_music_is_no_damage(tmp_path, music):
    soundfile.write(tmp_path / "loud.wav", music * 8, RATE, subtype="FLOAT")
    check_audio(tmp_path / "loud.wav")
    assert np.abs(read_clip(tmp_path / "loud.wav", 0.0, 1.0, RATE, 2)[0]).max() == 1


def test_damage_inside_a_flac_is_found(tmp_path, music):
    path = tmp_path / "song.flac"
    soundfile.write(path, music, RATE)
    check_audio(path)
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 2000] = bytes(2000)
    path.write_bytes(data)
    assert inspect_audio(path).seconds == 2  # neither end shows it
    with pytest.raises(PartitaError, match="cannot be decoded between"):
        check_audio(path)
    with pytest.raises(PartitaError, match=r"song\.flac"):
        read_clip(path, 0.0, 2.0, RATE, 2)


def test_headers_that_claim_the_impossible(tmp_path, music):
    path = tmp_path / "song.wav"
    soundfile.write(path, music[:100], RATE, subtype="PCM_16")
    whole = path.read_bytes()
    for rate in (1, 2_000_000_000):
        path.write_bytes(whole[:24] + struct.pack("<I", rate) + whole[28:])
        with pytest.raises(PartitaError, match=f"sample rate of {rate:,} Hz"):
            inspect_audio(path)
    soundfile.write(path, np.zeros((100, 500), np.float32), RATE, format="WAV")
    with pytest.raises(PartitaError, match="500 channels"):
        inspect_audio(path)
    path = tmp_path / "song.raw"  # a name for which libsndfile wants to be told the format
    path.write_bytes(whole)
    assert inspect_audio(path).num_samples == 100


def test_a_name_that_is_not_utf8(tmp_path, music):
    path = tmp_path / os.fsdecode(b"caf\xe9.wav")
    with path.open("wb") as file:
        soundfile.write(file, music, RATE, format="WAV", subtype="PCM_16")
    assert inspect_audio(path).seconds == 2
    path.write_bytes(b"no audio")
    with pytest.raises(PartitaError) as caught:
        read_clip(path, 0.0, 1.0, 16000, 1)
    assert "caf" in str(caught.value)
    str(caught.value).encode()  # whatever a terminal takes


@pytest.mark.parametrize(("extension", "subtype"), [("mp3", "MPEG_LAYER_III"), ("ogg", "VORBIS")])
def test_a_clip_of_a_compressed_file_is_that_of_the_whole_file(tmp_path, extension, subtype):
    path, generator = tmp_path / f"a.{extension}", np.random.default_rng(0)
    time = np.arange(8 * 48000) / 48000
    sound = 0.3 * np.sin(2 * np.pi * 440 * time) + 0.1 * generator.standard_normal(len(time)) * (time % 0.25 < 0.05)
    soundfile.write(path, sound, 48000, subtype=subtype, compression_level=0.99)
    whole = soundfile.read(path, dtype="float32")[0]
    starts = [*generator.integers(0, len(whole) - 20000, 10), *(len(whole) - generator.integers(1000, 20000, 20))]
    for start in starts:
        length = min(1500, len(whole) - start)
        clip, _ = read_clip(path, start / 48000, length / 48000, 48000, 1)
        assert np.abs(clip[0] - whole[start : start + length].clip(-1, 1)).max() < 1e-4


def test_a_file_holds_one_clip(tmp_path):
    with pytest.raises(PartitaError, match=r"one clip \[C, T\], such as audio\[0\], not \[1, 2, 100\]"):
        write_audio(tmp_path / "two.wav", np.zeros((1, 2, 100), np.float32), 16000)
    assert not (tmp_path / "two.wav").exists()
