"""Playing clips while they are generated, on a device that only counts what it gets."""

import sys
import types

import numpy as np
import pytest
import soundfile

from command_line import run


class Device(types.ModuleType):
    """sounddevice, with a device that keeps what it plays, or without one."""

    class PortAudioError(Exception):
        pass

    def __init__(self, present=True, rates=(4000,)):
        super().__init__("sounddevice")
        self.present, self.rates, self.played, self.log = present, rates, [], []

    def query_devices(self, kind):
        if not self.present:
            raise self.PortAudioError("no default output device")

    def open_stream(self, samplerate, channels, dtype):
        if samplerate not in self.rates:
            raise self.PortAudioError("Invalid sample rate")
        device = self

        class Stream:
            def __getattr__(self, name):
                return lambda: device.log.append(name)

            def write(self, samples):
                assert samples.dtype == np.float32
                assert samples.shape[1] == channels
                device.played.append(samples.copy())

        return Stream()

    OutputStream = open_stream


@pytest.fixture
def generate(monkeypatch, capfd, saved_toy, tmp_path):
    def generate(device, *arguments):
        monkeypatch.setitem(sys.modules, "sounddevice", device)
        arguments = ("generate", saved_toy, *arguments, "--play", "-o", tmp_path / "out.wav")
        return run(*arguments, monkeypatch=monkeypatch, capfd=capfd)

    return generate


def test_clips_are_played_in_chunks_and_written(generate, tmp_path):
    device = Device()
    status, text = generate(device, "tone 1", "-d", "3", "--loudness", "-20")
    assert status == 0, text
    assert len(device.played) > 1
    assert device.log == ["start", "stop", "close"]
    written = soundfile.read(tmp_path / "out.wav")[0]
    played = np.concatenate(device.played)[:, 0]
    assert len(played) == len(written) == 12000
    gain = np.linalg.lstsq(played[:, None], written, rcond=None)[0]  # the file has the loudness that was asked for
    assert np.abs(played * gain - written).max() < 2e-3


def test_several_clips_are_played_one_after_the_other(generate, tmp_path):
    device = Device()
    status, text = generate(device, "tone 1", "tone 2", "-d", "1.5")
    assert status == 0, text
    assert sum(map(len, device.played)) == 12000
    assert [soundfile.info(tmp_path / f"out-{i}.wav").frames for i in (1, 2)] == [6000, 6000]


@pytest.mark.parametrize(
    ("device", "words"),
    [
        (None, "pip install 'partita[play]'"),
        (Device(present=False), "no audio device"),
        (Device(rates=()), "does not play 4000 Hz"),
    ],
)
def test_machines_that_cannot_play_get_one_sentence(generate, tmp_path, device, words):
    status, text = generate(device, "tone 1")
    assert (status, words in text, "Traceback" in text) == (2, True, False), text
    assert not (tmp_path / "out.wav").exists()
