import math

import pytest
import torch
from torchmetrics.functional.audio import scale_invariant_signal_distortion_ratio

from partita.metrics.reconstruction import mel_distance, si_sdr, stft_distance


def test_the_ratio_is_that_of_torchmetrics():
    target = torch.randn(4, 2, 8000)
    estimate = 0.3 * target + torch.tensor([0.001, 0.1, 1.0, 10.0])[:, None, None] * torch.randn(4, 2, 8000) + 0.2
    expected = scale_invariant_signal_distortion_ratio(estimate.double(), target.double(), zero_mean=True).mean(1)
    torch.testing.assert_close(si_sdr(estimate, target), expected.float(), rtol=0, atol=1e-3)


def test_silence_has_no_ratio_and_is_no_good_reconstruction():
    noise, silence = torch.randn(1, 1, 4000), torch.zeros(1, 1, 4000)
    assert si_sdr(noise, silence).isnan().all()
    assert si_sdr(silence, silence).isnan().all()
    assert si_sdr(silence, noise) == -60
    assert si_sdr(silence + 0.1, noise) == -60  # a constant is silence
    assert si_sdr(noise, noise).isfinite().all()
    half = torch.cat([noise, silence], 1)
    torch.testing.assert_close(si_sdr(half + 0.1 * torch.randn_like(half), half), torch.tensor([20.0]), rtol=0, atol=1)


@pytest.mark.parametrize("rate", [4000, 16000, 44100])
def test_twice_the_amplitude_is_one_log_of_two_for_each_window(rate):
    audio = torch.randn(2, 1, 6000)
    torch.testing.assert_close(
        mel_distance(2 * audio, audio, rate), torch.full((2,), 7 * math.log10(2)), rtol=0, atol=0.02 * 7
    )
    magnitudes = [
        torch.stft(audio[:, 0], window, window // 4, window=torch.hann_window(window), return_complex=True).abs()
        for window in (2048, 512)
    ]
    expected = 2 * 2 * math.log10(2) + sum(each.mean((1, 2)) for each in magnitudes)
    torch.testing.assert_close(stft_distance(2 * audio, audio), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("samples", [10, 1500, 4000])
def test_each_clip_has_finite_distances_of_its_own(samples):
    target, estimate = torch.randn(3, 2, samples), torch.randn(3, 2, samples)
    target[1] = estimate[2] = 0
    for distances in (mel_distance(estimate, target, 24000), stft_distance(estimate, target)):
        assert distances.shape == (3,)
        assert distances.isfinite().all()
        assert (distances > 0).all()
    alone = mel_distance(estimate[:1], target[:1], 24000)
    torch.testing.assert_close(alone, mel_distance(estimate, target, 24000)[:1])
    assert not mel_distance(target, target, 24000).any()
    assert not stft_distance(target, target).any()
