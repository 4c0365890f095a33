import pytest
import torch
import torchaudio

from partita.layers.convnext import ConvNeXt
from partita.layers.mel import MelSpectrum, mel_filterbank
from partita.layers.stft import STFT


@pytest.mark.parametrize(("hop", "overlap"), [(64, 2), (64, 4), (75, 3), (40, 5), (63, 2)])
@pytest.mark.parametrize("frames", [1, 2, 9])
def test_stft_is_inverted_exactly(hop, overlap, frames):
    stft = STFT(hop, overlap)
    audio = torch.randn(2, 2, frames * hop)
    spectrum = stft(audio)
    assert spectrum.shape == (2, 2, frames, stft.bins)
    assert torch.allclose(stft.inverse(spectrum), audio, atol=1e-4)


def test_stft_agrees_with_torch():
    audio = torch.randn(1, 640)
    ours = STFT(64, 4)(audio)
    padded = torch.nn.functional.pad(audio, (96, 96))
    theirs = torch.stft(padded, 256, 64, window=torch.hann_window(256), center=False, return_complex=True).mT
    assert torch.allclose(ours, theirs, atol=1e-4)


def test_stft_refuses_an_overlap_that_cannot_be_inverted():
    with pytest.raises(ValueError, match="overlap"):
        STFT(64, 1)


@pytest.mark.parametrize("f_min", [0.0, 64.0])
def test_filterbank_agrees_with_torchaudio(f_min):
    theirs = torchaudio.functional.melscale_fbanks(513, f_min, 8000.0, 64, 16000, norm=None, mel_scale="htk")
    assert torch.allclose(mel_filterbank(513, 64, 16000, f_min), theirs, atol=1e-4)


@pytest.mark.parametrize(
    ("bands", "fft", "rate", "low", "high"), [(64, 512, 16000, 125, 7500), (128, 1024, 32000, 0, 15000)]
)
def test_mel_bands_are_those_of_kaldi(bands, fft, rate, low, high):
    expected, _ = torchaudio.compliance.kaldi.get_mel_banks(bands, fft, rate, low, high, 100.0, -500.0, 1.0)
    ours = mel_filterbank(fft // 2 + 1, bands, rate, low, high, straight_in="mel")
    assert torch.allclose(ours[:-1], expected.T, atol=2e-5)  # Kaldi's are computed in float32
    assert not ours[-1].any()


@pytest.mark.parametrize("rate", [11025, 16000, 44100])
def test_filterbank_agrees_with_librosa_at_odd_rates_too(rate):
    librosa = pytest.importorskip("librosa")
    theirs = librosa.filters.mel(sr=rate, n_fft=1024, n_mels=40, htk=True, norm=None, dtype=float)
    assert torch.allclose(mel_filterbank(513, 40, rate), torch.tensor(theirs.T).float(), atol=1e-6)


@pytest.mark.parametrize(("rate", "f_min"), [(11025, 0), (16000, 50), (44100, 0)])
def test_slaneys_bands_are_those_of_librosa(rate, f_min):
    librosa = pytest.importorskip("librosa")
    theirs = librosa.filters.mel(sr=rate, n_fft=1024, n_mels=40, fmin=f_min, dtype=float)
    ours = mel_filterbank(513, 40, rate, f_min, scale="slaney")
    assert torch.allclose(ours, torch.tensor(theirs.T).float(), rtol=1e-5, atol=1e-9)


def test_mel_spectrum_finds_a_tone():
    time = torch.arange(16000) / 16000
    spectrum = MelSpectrum(16000, 1024)(torch.sin(2 * torch.pi * 1000 * time)[None, None])
    assert spectrum.shape == (1, 1, 63, 80)
    # 1000 Hz is mel 1000 of 2840, in steps of 2840 / 81
    assert spectrum[0, 0, 30].argmax() == round(1000 / (2840 / 81)) - 1


def test_mel_spectrum_of_white_noise_is_flat_in_power():
    """The window has unit energy: each frequency of unit noise has unit power."""
    identity = MelSpectrum(16000, 512)
    noise = torch.randn(1, 1, 160000)
    bands = identity.filterbank.sum(0)
    mean_magnitude = (identity(noise).mean((0, 1, 2)) / bands)[10:]
    # the magnitude of a complex normal variable of unit power has mean sqrt(pi) / 2
    assert torch.allclose(mean_magnitude, torch.full_like(mean_magnitude, torch.pi**0.5 / 2), rtol=0.05)


def test_convnext_keeps_shape_and_passes_gradient():
    x = torch.randn(2, 11, 8, requires_grad=True)
    y = ConvNeXt(8, 3)(x)
    assert y.shape == x.shape
    y.square().sum().backward()
    assert x.grad.abs().sum() > 0
