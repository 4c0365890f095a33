import librosa
import numpy as np
import pytest
import torch

from partita.layers.chroma import Chroma, chroma_filterbank


@pytest.mark.parametrize(
    ("rate", "window", "width"), [(32000, 2**14, 2.0), (16000, 2**12, None), (44100, 2**11, 1.0), (8000, 2**13, 2.0)]
)
def test_filterbank_agrees_with_librosa(rate, window, width):
    ours = chroma_filterbank(window // 2 + 1, rate, octave_width=width)
    theirs = librosa.filters.chroma(sr=rate, n_fft=window, tuning=0, octwidth=width)
    assert np.allclose(ours.numpy().T, theirs, atol=1e-6)


def test_filterbank_of_a_band_is_the_filterbank_in_it():
    whole, part = chroma_filterbank(513, 16000), chroma_filterbank(513, 16000, band=(100.0, 1000.0))
    frequencies = torch.arange(513) * 15.625
    inside = (frequencies >= 100) & (frequencies <= 1000)
    assert torch.equal(part[inside], whole[inside])
    assert part[~inside].abs().sum() == 0


@pytest.mark.parametrize("samples", [5 * 32000, 2**14, 9999])
def test_melody_agrees_with_transformers(samples):
    transformers = pytest.importorskip("transformers")
    extractor = transformers.MusicgenMelodyFeatureExtractor()
    audio = torch.randn(2, 1, samples)
    theirs = extractor._torch_extract_fbank_features(audio[:, 0])
    assert torch.equal(Chroma(32000, one_hot=True)(audio), theirs)


@pytest.mark.parametrize("rate", [16000, 32000, 44100])
def test_a_tone_is_its_pitch_class_in_every_octave(rate):
    time = torch.arange(rate) / rate
    # A, the C above it, and the E above that
    for semitones, pitch_class in ((0, 9), (3, 0), (7, 4), (-12, 9), (15, 0)):
        audio = torch.sin(2 * torch.pi * 440 * 2 ** (semitones / 12) * time)[None, None]
        chroma = Chroma(rate)(audio)
        assert chroma.shape[1:] == (rate // Chroma(rate).hop + 1, 12)
        assert (chroma.argmax(-1) == pitch_class).all()
        assert torch.allclose(chroma.amax(-1), torch.ones(1))


def test_frame_rate_of_musicgen():
    chroma = Chroma(32000)
    assert chroma.frame_rate == 7.8125
    assert chroma(torch.zeros(1, 2, 30 * 32000)).shape == (1, 235, 12)


def test_channels_are_mixed_and_loudness_is_left_out():
    audio = torch.randn(1, 2, 32000)
    chroma = Chroma(16000)
    assert torch.allclose(chroma(audio), chroma(audio.mean(1, keepdim=True)), atol=1e-5)
    assert torch.allclose(chroma(audio), chroma(0.01 * audio), atol=1e-4)


def test_unnormalized_magnitudes_keep_loudness():
    audio = torch.randn(1, 1, 32000)
    chroma = Chroma(16000, normalize=False, power=1.0)
    assert torch.allclose(chroma(3 * audio), 3 * chroma(audio), rtol=1e-4)


def test_silence_is_finite():
    assert Chroma(16000)(torch.zeros(1, 1, 16000)).eq(0).all()
    one_hot = Chroma(16000, one_hot=True)(torch.zeros(1, 1, 16000))
    assert one_hot[..., 0].eq(1).all()
    assert one_hot.sum(-1).eq(1).all()
