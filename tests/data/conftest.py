"""Fixtures of the tests of data."""

import numpy as np
import pytest
import soundfile

from folder_toys import tone


@pytest.fixture
def songs(tmp_path):
    """Four good files, and four that cannot be used."""
    (tmp_path / "sub").mkdir()
    for i in range(2):
        soundfile.write(tmp_path / f"stereo{i}.ogg", tone(440, 3, 44100, 2), 44100)
        soundfile.write(tmp_path / "sub" / f"mono{i}.wav", tone(300, 2, 22050), 22050)
    whole = (tmp_path / "stereo0.ogg").read_bytes()
    (tmp_path / "cut.ogg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.wav").write_bytes(b"")
    (tmp_path / "noise.flac").write_bytes(b"this is not audio" * 50)
    soundfile.write(tmp_path / "silent.wav", np.zeros((0, 1)), 16000)
    (tmp_path / "readme.md").write_text("not looked at")
    return tmp_path
