import numpy as np
import pytest
import torch

from partita.layers.codec_losses import (
    Balancer,
    MultiScaleSpectralLoss,
    SpectralDistance,
    discriminator_hinge,
    discriminator_least_squares,
    feature_matching,
    generator_hinge,
    generator_least_squares,
)


def judgment(scores, *features):
    return torch.tensor(scores), [torch.tensor(f) for f in features]


def test_hinge():
    real = [judgment([2.0, 0.5]), judgment([-1.0])]
    fake = [judgment([-3.0, 0.5]), judgment([1.0])]
    assert discriminator_hinge(real, fake) == pytest.approx(((0.25 + 0.75) + (2.0 + 2.0)) / 2)
    assert generator_hinge(fake) == pytest.approx(((4.0 + 0.5) / 2 + 0.0) / 2)


def test_least_squares():
    """Sums over discriminators of means over scores, as in HiFi-GAN and DAC."""
    real = [judgment([2.0, 0.5]), judgment([-1.0])]
    fake = [judgment([-3.0, 0.5]), judgment([1.0])]
    on_real, on_fake = (1.0 + 0.25) / 2 + 4.0, (9.0 + 0.25) / 2 + 1.0
    assert discriminator_least_squares(real, fake) == pytest.approx(on_real + on_fake)
    assert generator_least_squares(fake) == pytest.approx((16.0 + 0.25) / 2 + 0.0)


def test_feature_matching():
    real, fake = [judgment([0.0], [1.0, -3.0], [2.0])], [judgment([0.0], [2.0, -3.0], [0.0])]
    assert feature_matching(real, fake) == pytest.approx((0.5 + 2.0) / 2)
    assert feature_matching(real, fake, relative=True) == pytest.approx((0.5 / 2 + 2.0 / 2) / 2)
    assert feature_matching(real, fake, summed=True) == pytest.approx(0.5 + 2.0)


def test_balancer_makes_weights_shares_of_the_gradient():
    balancer = Balancer({"small": 1.0, "large": 3.0})
    output = torch.randn(4, 1, 50, requires_grad=True)
    direction = torch.nn.functional.normalize(torch.randn(2, 50), dim=1)
    losses = {"small": 1e-4 * (output[:, 0] @ direction[0]).sum(), "large": 1e3 * (output[:, 0] @ direction[1]).sum()}
    balancer(losses, output).backward()
    assert torch.allclose(output.grad[0, 0], 0.25 * direction[0] + 0.75 * direction[1], atol=1e-5)


def test_balancer_shares_among_the_losses_there_are():
    balancer = Balancer({"always": 1.0, "later": 3.0})
    output = torch.randn(4, 1, 50, requires_grad=True)
    balancer({"always": 7 * output.sum()}, output).backward()
    assert torch.allclose(output.grad.flatten(1).norm(dim=1), torch.ones(4), atol=1e-5)


@pytest.mark.parametrize("log_power", [1, 2])
def test_spectral_loss_is_zero_for_equal_signals_only(log_power):
    loss = MultiScaleSpectralLoss(SpectralDistance(windows=(64, 256, 1024), log_power=log_power), 16000)
    audio = torch.randn(2, 1, 4000)
    assert loss(audio, audio) < 1e-5
    near, far = loss(audio + 0.01 * torch.randn_like(audio), audio), loss(torch.randn_like(audio), audio)
    assert 0 < near < far


def test_spectral_loss_in_closed_form():
    """Twice the amplitude: magnitudes differ by themselves, logarithms by log 2."""
    audio = torch.randn(1, 1, 8000)
    log_only = SpectralDistance(windows=(512,), bands=20, magnitude=0.0, log_power=1, scaled=False, reduction="mean")
    assert MultiScaleSpectralLoss(log_only, 16000)(2 * audio, audio) == pytest.approx(0.6931, abs=1e-3)
    scaled = SpectralDistance(windows=(512,), bands=20, magnitude=0.0, log_power=2, scaled=True)
    expected = 0.6931 * (256 * 20) ** 0.5
    assert MultiScaleSpectralLoss(scaled, 16000)(2 * audio, audio) == pytest.approx(expected, rel=1e-3)


def test_the_default_is_soundstreams_distance():
    """Equations 4 and 5 of 2107.03312, over spectra of librosa: norms of each frame, summed over six windows."""
    librosa = pytest.importorskip("librosa")
    generator = np.random.default_rng(0)
    audio, estimate = generator.standard_normal((2, 6000))
    expected = 0.0
    for window in (64, 128, 256, 512, 1024, 2048):
        bands = min(64, window * 5 // 32)  # a short window has no 64
        filters = librosa.filters.mel(sr=24000, n_fft=window, n_mels=bands, fmax=12000, htk=True, norm=None)
        mels = []
        for signal in (estimate, audio):
            spectrum = librosa.stft(signal, n_fft=window, hop_length=window // 4, window="hann", pad_mode="constant")
            hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window)
            mels.append(filters @ np.abs(spectrum) / np.sqrt((hann**2).sum()))
        alpha = np.sqrt(window / 2)
        linear = np.abs(mels[0] - mels[1]).sum(0)
        logarithmic = np.sqrt(((np.log(mels[0]) - np.log(mels[1])) ** 2).sum(0))
        expected += (linear + alpha * logarithmic).mean()
    signals = [torch.tensor(signal, dtype=torch.float32)[None, None] for signal in (estimate, audio)]
    assert MultiScaleSpectralLoss(SpectralDistance(), 24000)(*signals) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("rate", [16000, 44100])
def test_dacs_distance(rate):
    """The published loss (2306.06546 §3.4), over spectra of librosa: decimal logarithms only, of at least 1e-5."""
    librosa = pytest.importorskip("librosa")
    generator = np.random.default_rng(0)
    audio, estimate = 0.1 * generator.standard_normal((2, 6000))
    audio[2000:3500] = 0  # below 1e-5
    expected, windows = 0.0, (32, 64, 128, 256, 512, 1024, 2048)
    for window, bands in zip(windows, (5, 10, 20, 40, 80, 160, 320), strict=True):
        options = {"n_fft": window, "hop_length": window // 4, "window": "hann", "pad_mode": "reflect"}
        filters = librosa.filters.mel(sr=rate, n_fft=window, n_mels=bands, dtype=float)
        mels = [filters @ np.abs(librosa.stft(signal, **options)) for signal in (estimate, audio)]
        expected += np.abs(np.diff([np.log10(np.maximum(mel, 1e-5)) for mel in mels], axis=0)).mean()
    config = SpectralDistance(
        windows=windows,
        bands=320,
        magnitude=0.0,
        log_power=1,
        scaled=False,
        reduction="sum-of-means",
        decimal=True,
        spectrum="librosa",
    )
    signals = [torch.tensor(signal, dtype=torch.float32)[None, None] for signal in (estimate, audio)]
    assert MultiScaleSpectralLoss(config, rate)(*signals) == pytest.approx(expected, rel=1e-5)
    short = torch.randn(1, 1, 500)  # less than half a window, which cannot be reflected
    assert MultiScaleSpectralLoss(config, rate)(short, short) == 0


def test_spectral_loss_of_silence_has_a_finite_gradient():
    loss = MultiScaleSpectralLoss(SpectralDistance(), 16000)
    silence = torch.zeros(1, 1, 4000, requires_grad=True)
    loss(silence, torch.zeros(1, 1, 4000)).backward()
    assert silence.grad.isfinite().all()
