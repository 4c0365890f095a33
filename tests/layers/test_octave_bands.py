"""Bands in octaves: tones are found at their pitch, and a transposition is a shift."""

import math

import pytest
import torch

from partita.layers.octave_bands import OctaveSpectrum, octave_filterbank, shifted_bands

RATE = 8000


def tone(frequency, seconds=1.0):
    time = torch.arange(round(seconds * RATE)) / RATE
    return (0.5 * torch.sin(2 * math.pi * frequency * time))[None, None]


@pytest.fixture(scope="module")
def spectrum():
    return OctaveSpectrum(RATE, 2048, hop=512, bands=216, f_min=55.0, per_octave=36)


@pytest.mark.parametrize("semitones", [24, 31, 40, 50, 60])
def test_a_tone_is_loudest_in_the_band_of_its_pitch(spectrum, semitones):
    magnitude = spectrum(tone(55 * 2 ** (semitones / 12)))[0, 0]
    assert magnitude.shape == (RATE // 512 + 1, 216)
    assert abs(int(magnitude[5:10].mean(0).argmax()) - 3 * semitones) <= 1


def test_a_transposition_is_a_shift(spectrum):
    low, high = (spectrum(tone(frequency))[0, 0, 5:10].mean(0) for frequency in (440.0, 440 * 2 ** (7 / 12)))
    assert torch.cosine_similarity(low[72:180], high[72 + 21 : 180 + 21], dim=0) > 0.9
    assert torch.cosine_similarity(low[72:180], high[72:180], dim=0) < 0.1


def test_every_band_has_weights_that_sum_to_one():
    weights = octave_filterbank(1025, 216, RATE, 55.0, 36)
    torch.testing.assert_close(weights.sum(0), torch.ones(216))
    assert (weights >= 0).all()


def test_bands_beyond_half_the_sample_rate_are_refused():
    with pytest.raises(ValueError, match="half the sample rate is 4000 Hz: take fewer bands"):
        OctaveSpectrum(RATE, 2048, hop=512, bands=252, f_min=55.0, per_octave=36)


def test_a_shift_by_bands_is_a_change_of_the_tuning(spectrum):
    tuned = spectrum(tone(440.0))[:, 0]
    for cents in (-40.0, 20.0, 100 / 3):
        detuned = spectrum(tone(440.0 * 2 ** (cents / 1200)))[:, 0]
        shifted = shifted_bands(tuned, torch.tensor([36 * cents / 1200]), silence=0.0)
        assert (shifted - detuned).norm() < 0.45 * (tuned - detuned).norm()
    numbers = torch.arange(5.0).expand(2, 1, 5)
    moved = shifted_bands(numbers, torch.tensor([1.0, -1.5]), silence=-1.0)
    assert moved[0, 0].tolist() == [-1, 0, 1, 2, 3]
    assert moved[1, 0].tolist() == [1.5, 2.5, 3.5, 1.5, -1]
    far = shifted_bands(numbers, torch.tensor([9.0, -9.0]), silence=-1.0)
    assert (far == -1).all()
