"""Everything that resamples, measured with sines: the level of what comes through, and of what should not."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from partita.core import resample
from partita.core.resample import convert
from partita.storage.audio_file import read_clip, write_audio

# all pairs of the presets' rates, and of files' rates to them
RATES = [
    (48000, 44100),
    (48000, 32000),
    (48000, 24000),
    (48000, 16000),
    (44100, 48000),
    (44100, 32000),
    (44100, 24000),
    (44100, 22050),
    (44100, 16000),
    (32000, 48000),
    (32000, 24000),
    (32000, 16000),
    (24000, 48000),
    (24000, 32000),
    (24000, 16000),
    (22050, 16000),
    (16000, 48000),
    (16000, 44100),
    (16000, 24000),
]


def by_files(audio, rate, to_rate, folder):
    path = folder / "sine.wav"
    write_audio(path, audio[0].numpy(), rate, bits=32)
    return torch.from_numpy(read_clip(path, 0, None, to_rate, audio.shape[1])[0])[None]


def by_tensors(audio, rate, to_rate, folder):
    return convert(audio, rate, to_rate, audio.shape[1])


def by_tensors_elsewhere(audio, rate, to_rate, folder):
    """The way that tensors on other devices take."""
    common = math.gcd(rate, to_rate)
    length = -(-audio.shape[-1] * to_rate // rate)
    return resample._by_filters(audio, rate // common, to_rate // common, length)


def sine(frequency, rate, seconds=1.0):
    return 0.5 * torch.sin(2 * math.pi * frequency * torch.arange(round(rate * seconds), dtype=torch.float64) / rate)


def levels(audio, rate, frequency):
    """In dB relative to the sine that went in: what is found at the frequency, and the loudest anywhere else."""
    middle = audio[len(audio) // 4 : -(len(audio) // 4)].double().numpy()
    window = np.blackman(len(middle))
    window *= window  # side lobes far below what is looked for
    spectrum = 20 * np.log10(np.abs(np.fft.rfft(middle * window)) / (0.25 * window.sum()) + 1e-12)
    apart = np.abs(np.fft.rfftfreq(len(middle), 1 / rate) - frequency) > 10 * rate / len(middle)
    return spectrum[~apart].max(initial=-240), spectrum[apart].max()


@pytest.mark.parametrize("way", [by_files, by_tensors, by_tensors_elsewhere])
@pytest.mark.parametrize(("rate", "to_rate"), RATES)
def test_keeps_what_it_can_and_nothing_aliases(way, rate, to_rate, tmp_path: Path):
    """From 48 to 16 kHz: 7.5 kHz above -1 dB, 8.5 kHz at -60 dB or below; the same relative to any lower rate."""
    half = min(rate, to_rate) / 2
    kept = 7.5 / 8 * half
    found, other = levels(way(sine(kept, rate)[None, None].float(), rate, to_rate, tmp_path)[0, 0], to_rate, kept)
    assert -1 < found < 0.01
    assert other < -90
    above = 8.5 / 8 * half
    if above < rate / 2:
        out = way(sine(above, rate)[None, None].float(), rate, to_rate, tmp_path)
        assert max(levels(out[0, 0], to_rate, above)) < -90


@pytest.mark.parametrize("way", [by_tensors, by_tensors_elsewhere])
@pytest.mark.parametrize(("rate", "to_rate"), RATES)
def test_a_slow_sine_comes_back_sample_by_sample(way, rate, to_rate, tmp_path):
    """No delay, no gain: truth is the same sine, sampled at the other rate."""
    out = way(sine(440, rate)[None, None].float(), rate, to_rate, tmp_path)[0, 0].double()
    edge = to_rate // 50
    assert (out - sine(440, to_rate))[edge:-edge].abs().max() < 1e-4


@pytest.mark.parametrize(("rate", "to_rate"), [(48000, 16000), (44100, 32000), (44100, 48000), (16000, 22050), (3, 2)])
def test_length_is_that_of_whole_numbers(rate, to_rate, tmp_path):
    for samples in (1, 2, 441, 1000, 4411):
        expected = math.ceil(samples * to_rate / rate)
        assert convert(torch.randn(2, 2, samples), rate, to_rate, 2).shape == (2, 2, expected)
        assert by_tensors_elsewhere(torch.randn(2, 2, samples), rate, to_rate, tmp_path).shape == (2, 2, expected)


@pytest.mark.parametrize("way", [by_files, by_tensors])
@pytest.mark.parametrize(("rate", "to_rate"), [(44100, 32000), (44100, 16000), (48000, 16000), (16000, 44100)])
def test_the_last_sample_is_as_the_others(way, rate, to_rate, tmp_path):
    """Also where audio ends between two samples of the new rate: truth is the same followed by a second of silence."""
    for samples in (5000, 5001, 5002):
        audio = 0.5 * sine(300, rate)[None, None, :samples].float()
        longer = torch.cat([audio, torch.zeros(1, 1, rate)], dim=-1)
        out = way(audio, rate, to_rate, tmp_path)
        assert out.shape[-1] == math.ceil(samples * to_rate / rate)
        expected = by_tensors_elsewhere(longer, rate, to_rate, tmp_path)[..., : out.shape[-1]]
        assert (out - expected)[..., -200:].abs().max() < 2e-3


def test_both_ways_agree():
    """On and off the CPU the same: noise below nine tenths of half the rate."""
    noise = torch.randn(1, 2, 48000, generator=torch.Generator().manual_seed(0))
    spectrum = torch.fft.rfft(noise)
    spectrum[..., round(0.9 * 8000) :] = 0
    noise = torch.fft.irfft(spectrum, 48000)
    difference = convert(noise, 48000, 16000, 2) - by_tensors_elsewhere(noise, 48000, 16000, None)
    assert difference[..., 400:-400].abs().max() < 1e-4 * noise.abs().max()


def test_rates_without_a_common_divisor_need_no_gigabytes(monkeypatch):
    """Off the CPU, filters are only made where they are small."""
    ways = []
    for way in ("_by_soxr", "_by_filters"):
        monkeypatch.setattr(resample, way, lambda audio, *sizes, way=way: ways.append(way))
    for rate, to_rate in ((44100, 48000), (44100, 16000), (44101, 47999)):
        convert(torch.empty(1, 1, 50, device="meta"), rate, to_rate, 1)
    assert ways == ["_by_filters", "_by_filters", "_by_soxr"]


def test_precision_is_full_under_autocast():
    audio = sine(1000, 48000)[None, None].float()
    with torch.autocast("cpu", torch.bfloat16):
        out = by_tensors_elsewhere(audio, 48000, 16000, None)
    assert out.dtype == torch.float32
    assert torch.equal(out, by_tensors_elsewhere(audio, 48000, 16000, None))


def test_channels():
    stereo = torch.stack([torch.ones(1, 8), -3 * torch.ones(1, 8)], dim=1)
    assert torch.equal(convert(stereo, 16000, 16000, 1), -torch.ones(1, 1, 8))
    assert torch.equal(convert(torch.ones(1, 1, 8), 16000, 16000, 2), torch.ones(1, 2, 8))
    assert torch.equal(convert(stereo, 16000, 16000, 2), stereo)
