import math

import numpy as np
import pyloudnorm
import pytest
import soundfile
from scipy.signal import resample

from command_line import run
from partita.errors import PartitaError
from partita.recipe.plan import load_recipe
from partita.storage.audio_file import check_writable, inspect_audio, write_audio
from partita.system.mastering import Mastering, faded, limited, loudness, true_peak
from partita.system.system import System

RATE = 32000


@pytest.fixture
def partita(monkeypatch, capfd):
    return lambda *arguments: run(*arguments, monkeypatch=monkeypatch, capfd=capfd)


@pytest.fixture
def toy_export(toy_recipe, tmp_path):
    System(load_recipe(toy_recipe)).save(tmp_path / "export")
    return tmp_path / "export"


def sine(frequency, seconds=1.0, amplitude=0.5, phase=0.0, rate=RATE):
    time = np.arange(round(seconds * rate)) / rate
    return (amplitude * np.sin(2 * np.pi * frequency * time + phase)).astype(np.float32)[None]


def bursts(seconds=3.0, seed=0):
    """Stereo noise with loud knocks, up to 85 % of the band: music has hardly anything above."""
    draw = np.random.default_rng(seed)
    audio = 0.05 * draw.standard_normal((2, round(seconds * RATE)))
    for start in draw.integers(0, audio.shape[1] - 400, 12):
        audio[:, start : start + 400] += 0.8 * draw.standard_normal((2, 400))
    spectrum = np.fft.rfft(audio, axis=1)
    spectrum[:, round(0.85 * spectrum.shape[1]) :] = 0
    return np.fft.irfft(spectrum, axis=1).astype(np.float32)


def test_a_full_scale_sine_of_997_hz_has_the_loudness_that_the_standard_says():
    # BS.1770-4, annex 1: 0 dBFS in one front channel is -3.01 LKFS.
    assert loudness(sine(997, 4, 1.0, rate=48000), 48000) == pytest.approx(-3.01, abs=0.05)


@pytest.mark.parametrize("target", [-14.0, -23.0, -30.0])
def test_a_clip_comes_out_as_loud_as_asked(target):
    done = Mastering(target)(sine(440, 2), RATE)
    assert pyloudnorm.Meter(RATE).integrated_loudness(done.audio.T.astype(float)) == pytest.approx(target, abs=0.01)
    assert done.loudness == pytest.approx(target, abs=0.01)
    assert done.reduction == 0


@pytest.mark.parametrize("samples", [40, 3199, 12799, 12800, 12801, 17777])
def test_clips_about_as_short_as_a_block_are_measured(samples):
    audio = sine(1000, 1.0)[:, :samples]
    assert loudness(np.tile(audio, 100)[:, : 4 * RATE], RATE) == pytest.approx(loudness(audio, RATE), abs=1.2)


def test_the_true_peak_of_a_sine_is_between_its_samples():
    audio = sine(RATE / 4, 1.0, 0.9, math.pi / 4)
    assert np.abs(audio).max() == pytest.approx(0.9 * math.sqrt(0.5), abs=1e-4)
    middle = faded(audio, RATE, 0.1)  # without the steps at its ends
    assert true_peak(middle, RATE) == pytest.approx(20 * math.log10(0.9), abs=0.02)


@pytest.mark.parametrize("rate", [8000, RATE, 44100])
@pytest.mark.parametrize("ceiling", [-1.0, -9.0])
def test_no_peak_is_above_the_ceiling_and_quiet_stretches_stay(rate, ceiling):
    audio = 3 * bursts()
    done = limited(audio, rate, ceiling)
    assert done.shape == audio.shape
    assert true_peak(done, rate) <= ceiling
    # All that is between the samples, by the Fourier series: 4× oversampling can miss a little of it.
    between = resample(np.pad(done.astype(float), ((0, 0), (rate, rate))), 8 * (done.shape[1] + 2 * rate), axis=1)
    assert -1 < 20 * math.log10(np.abs(between).max()) - ceiling < 0.3
    # With nothing above the ceiling for a second, the gain is back at one.
    quiet = np.concatenate([audio, 0.01 * audio[:, : 4 * rate]], axis=1)
    again = limited(quiet, rate, ceiling)
    np.testing.assert_allclose(again[:, -rate // 2 :], quiet[:, -rate // 2 :], rtol=2e-2)


def test_the_limiter_turns_down_and_does_not_distort():
    audio = sine(100, 2, 2.0)
    done = limited(audio, RATE, -6.0)[0, RATE // 4 : -RATE // 4]
    spectrum = np.abs(np.fft.rfft(done * np.hanning(len(done)))) ** 2
    bin_of = round(100 * len(done) / RATE)
    assert spectrum[bin_of - 4 : bin_of + 5].sum() / spectrum.sum() > 0.9999


def test_loudness_does_not_clip_unless_told():
    done = Mastering(-14.0)(bursts(), RATE)
    assert done.true_peak <= -1 + 1e-3
    assert done.reduction > 0
    assert done.loudness < -14
    assert "peaks lowered by" in str(done)


def test_fades_begin_and_end_in_silence_and_leave_the_rest():
    audio = np.ones((2, RATE), np.float32)
    done = faded(audio, RATE, 0.1)
    assert done[0, 0] == done[0, -1] == 0
    assert done[0, RATE // 20] == pytest.approx(0.5, abs=1e-3)
    assert (done[:, RATE // 10 : -RATE // 10] == 1).all()
    assert (audio == 1).all()
    assert faded(audio[:, :11], RATE, 9.0).max() == 1


def test_silence_stays_and_is_said_so():
    for level in (0.0, 1e-6):
        done = Mastering(-14.0, fade=0.1)(sine(440, 1, level), RATE)
        assert np.abs(done.audio).max() <= level
        assert done.loudness is None
        assert "silent" in str(done)
    assert true_peak(np.zeros((1, 100), np.float32), RATE) == -math.inf
    assert Mastering(-14.0)(np.zeros((1, 0), np.float32), RATE).audio.shape == (1, 0)


@pytest.mark.parametrize("wrong", [{"loudness": 3.0}, {"loudness": -90.0}, {"peak": 0.5}, {"fade": -1.0}])
def test_numbers_out_of_range_are_refused(wrong):
    with pytest.raises(PartitaError, match=next(iter(wrong))):
        Mastering(**wrong)


def test_what_cannot_be_measured_is_refused():
    with pytest.raises(PartitaError, match="NaN or infinite"):
        Mastering(-14.0)(np.full((1, RATE), np.nan, np.float32), RATE)
    with pytest.raises(PartitaError, match="five channels"):
        Mastering(-14.0)(np.ones((6, RATE), np.float32), RATE)


@pytest.mark.parametrize(
    ("name", "bits", "loss"),
    [
        *(
            (f"x{suffix}", bits, 2.0 ** (1 - bits))
            for suffix in (".wav", ".aiff", ".caf", ".w64", ".au")
            for bits in (16, 24)
        ),
        ("x.wav", 32, 0.0),
        ("x.wav", None, 2.0**-15),
        ("x.flac", 16, 2.0**-15),
        ("X.FLAC", 24, 2.0**-23),
        ("x.ogg", None, 0.05),
        ("x.oga", None, 0.05),
        ("x.mp3", None, 0.05),
    ],
)
def test_what_is_written_is_read_back(name, bits, loss, tmp_path):
    audio = np.concatenate([sine(440, 2), sine(660, 2, 0.3)])
    write_audio(tmp_path / name, audio, RATE, bits)
    info = inspect_audio(tmp_path / name)
    assert (info.sample_rate, info.channels) == (RATE, 2)
    again = soundfile.read(tmp_path / name, dtype="float32")[0].T
    assert abs(again.shape[1] - audio.shape[1]) <= 2 * 1152
    np.testing.assert_allclose(again[:, RATE // 2 : RATE], audio[:, RATE // 2 : RATE], atol=loss + 1e-9)


def test_opus_keeps_the_sound(tmp_path):
    audio = sine(440, 2, rate=48000)
    write_audio(tmp_path / "x.opus", audio, 48000)
    again = soundfile.read(tmp_path / "x.opus")[0]
    spectrum = np.abs(np.fft.rfft(again[:48000]))
    assert spectrum.argmax() == 440


def test_long_ogg_files_are_written_whole(tmp_path):
    # Handed over at once, this much ends in a crash of libsndfile's encoder.
    write_audio(tmp_path / "x.ogg", np.tile(sine(440, 1, rate=8000), (2, 400)), 8000)
    assert inspect_audio(tmp_path / "x.ogg").seconds == pytest.approx(400, abs=0.1)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("x.doc",), ".wav"),
        (("x.raw",), ".wav"),
        (("x.flac", 32), "16, 24"),
        (("x.mp3", 16), "no number of bits"),
        (("x.wav", 20), "16, 24, 32"),
        (("x.mp3", None, 4000), "44100"),
        (("x.opus", None, 44100), "48000"),
        (("x.mp3", None, 48000, 6), "6 channels"),
    ],
)
def test_what_cannot_be_written_is_known_before(arguments, word, tmp_path):
    with pytest.raises(PartitaError, match=word):
        check_writable(tmp_path / arguments[0], *arguments[1:])


def test_generated_clips_are_finished(partita, toy_export, tmp_path):
    finishing = ("--loudness", "-20", "--fade", "0.05", "--bits", "24")
    status, text = partita("generate", toy_export, "tone 1", "-o", tmp_path / "x.flac", *finishing)
    assert status == 0, text
    audio = soundfile.read(tmp_path / "x.flac", always_2d=True)[0]
    assert soundfile.info(tmp_path / "x.flac").subtype == "PCM_24"
    assert audio[0, 0] == audio[-1, 0] == 0
    assert "LUFS" in text or "silent" in text
    for wrong, word in ((["--loudness", "14"], "LUFS"), (["--bits", "20"], "bits"), (["--fade", "-1"], "seconds")):
        status, text = partita("generate", "nowhere", "tone 1", "-o", tmp_path / "y.wav", *wrong)
        assert (status, word in text) == (2, True), text
    status, text = partita("generate", toy_export, "tone 1", "-o", tmp_path / "y.mp3")
    assert (status, "4000 Hz" in text) == (2, True), text
