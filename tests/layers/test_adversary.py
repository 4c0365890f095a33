import numpy as np
import pytest
import torch
import torchaudio

from partita.layers.codec_losses import (
    Balancer,
    MultiScaleSpectralLoss,
    SpectralDistance,
    discriminator_hinge,
    discriminator_least_squares,
    feature_matching,
    generator_hinge,
    generator_hinge_linear,
    generator_least_squares,
)


def judgment(scores, *features):
    return torch.tensor(scores), [torch.tensor(f) for f in features]


def test_hinge():
    real = [judgment([2.0, 0.5]), judgment([-1.0])]
    fake = [judgment([-3.0, 0.5]), judgment([1.0])]
    assert discriminator_hinge(real, fake) == pytest.approx(((0.25 + 0.75) + (2.0 + 2.0)) / 2)
    assert generator_hinge(fake) == pytest.approx(((4.0 + 0.5) / 2 + 0.0) / 2)
    assert generator_hinge_linear(fake) == pytest.approx(((3.0 - 0.5) / 2 - 1.0) / 2)


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


def test_balancer_over_several_steps():
    """Norms are means over steps with the weights 1, 0.999, 0.999², …; a loss that comes later has its own."""
    shares = {"first": 1.0, "second": 0.1, "late": 3.0}
    balancer, history = Balancer(shares), {name: [] for name in shares}
    for step in range(6):
        output = torch.randn(3, 2, 40, dtype=torch.float64, requires_grad=True)
        slopes = {name: 10 ** torch.randn(3, 1, 1) * torch.randn(3, 2, 40).double() for name in shares}
        if step < 3:
            del slopes["late"]
        total = torch.zeros(3, 2, 40, dtype=torch.float64)
        for name, slope in slopes.items():
            history[name].insert(0, slope.square().sum((1, 2)).sqrt().mean().item())
            weights = 0.999 ** np.arange(len(history[name]))
            norm = (weights * history[name]).sum() / weights.sum()
            total += shares[name] / sum(shares[other] for other in slopes) * slope / norm
        balancer({name: (slope * output).sum() for name, slope in slopes.items()}, output).backward()
        torch.testing.assert_close(output.grad, total, rtol=1e-5, atol=1e-7)


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


@pytest.mark.filterwarnings("ignore:At least one mel filterbank has all zero values")
@pytest.mark.parametrize("length", [6000, 6100])
def test_audiocrafts_distance(length):
    """Over spectra of torchaudio: L1 of powers and squares of decimal logarithms of 1e-5 + power, in equal parts."""
    audio, estimate = 0.1 * torch.randn(2, 2, 1, length)
    audio[..., 2000:3500] = 0
    expected, windows = 0.0, (64, 128, 256, 512, 1024)
    for window in windows:
        transform = torchaudio.transforms.MelSpectrogram(
            24000, window, window, window // 4, f_min=64, n_mels=64, normalized=True, center=False
        )
        edge = (window - window // 4) // 2
        extended = [torch.nn.functional.pad(signal, (edge, edge), "reflect") for signal in (estimate, audio)]
        missing = -(extended[0].shape[-1] - window) % (window // 4)  # of the last frame
        one, other = (transform(torch.nn.functional.pad(signal, (0, missing))) for signal in extended)
        expected += (one - other).abs().mean() + ((1e-5 + one).log10() - (1e-5 + other).log10()).square().mean()
    config = SpectralDistance(
        windows=windows, f_min=64, root=False, scaled=False, decimal=True, reduction="mean", spectrum="audiocraft"
    )
    loss = MultiScaleSpectralLoss(config, 24000)(estimate, audio)
    torch.testing.assert_close(loss, expected / 5, rtol=1e-5, atol=1e-6)


def test_spectral_loss_of_silence_has_a_finite_gradient():
    loss = MultiScaleSpectralLoss(SpectralDistance(), 16000)
    silence = torch.zeros(1, 1, 4000, requires_grad=True)
    loss(silence, torch.zeros(1, 1, 4000)).backward()
    assert silence.grad.isfinite().all()
