import numpy as np
import pytest
import torch
from scipy.stats import entropy

from partita.metrics.codec import CodebookUsage, ConstantSpectrum, MelDistance


def test_mel_distance_of_twice_the_amplitude_is_log_two():
    audio = torch.randn(2, 2, 16000)
    metric = MelDistance(16000)
    metric.update(2 * audio, audio)
    assert metric.compute().item() == pytest.approx(0.6931, abs=1e-3)


def test_mel_distance_averages_over_updates_by_their_size():
    metric = MelDistance(16000)
    short, long = torch.randn(1, 1, 8000), torch.randn(3, 1, 8000)
    metric.update(2 * short, short)
    metric.update(long, long)
    assert metric.compute().item() == pytest.approx(0.6931 / 4, abs=1e-3)
    metric.reset()
    metric.update(long, long)
    assert metric.compute() == 0


def test_mel_distance_of_silence_is_finite():
    metric = MelDistance(24000)
    metric.update(torch.zeros(1, 1, 4000), torch.ones(1, 1, 4000))
    assert metric.compute().isfinite()


def test_constant_spectrum_beats_every_other_constant():
    """Two thirds loud, one third soft: the median is the loud level, and only soft frames count."""
    loud = torch.randn(6, 1, 16000)
    mixed = torch.cat([loud[:4], 0.1 * loud[4:]])
    metric = ConstantSpectrum(16000)
    metric.fit(loud)
    metric.update(loud)
    spread = metric.compute().item()
    metric = ConstantSpectrum(16000)
    metric.fit(loud[:4])
    metric.fit(0.1 * loud[4:])
    metric.update(mixed)
    # log 10 = 2.303, over a third of the frames
    assert metric.compute().item() == pytest.approx(2.303 / 3 + spread, abs=0.2)


def test_constant_spectrum_needs_training_audio():
    with pytest.raises(RuntimeError, match="fit"):
        ConstantSpectrum(16000).update(torch.zeros(1, 1, 4000))


def test_codebook_usage():
    metric = CodebookUsage(3, 4)
    metric.update(torch.tensor([[[0, 1, 2, 3], [0, 0, 1, 1]]]))
    metric.update(torch.tensor([[[0, 1, 2, 3], [0, 0, 1, 1]]]))
    result = metric.compute()
    assert result["usage"].tolist() == [1.0, 0.5, 0.0]
    assert result["perplexity"].tolist() == pytest.approx([4.0, 2.0, 0.0])


def test_codebook_usage_is_numpys_and_scipys():
    codes = torch.randint(50, (6, 2, 40)) * torch.tensor([1, 0])[:, None]
    metric = CodebookUsage(2, 64)
    metric.update(codes[:4])
    metric.update(codes[4:])
    result = metric.compute()
    for k in range(2):
        counts = np.bincount(codes[:, k].flatten().numpy(), minlength=64)
        assert result["usage"][k].item() == pytest.approx((counts > 0).mean())
        assert result["perplexity"][k].item() == pytest.approx(np.exp(entropy(counts)), rel=1e-5)


def test_mel_distance_is_that_of_librosas_spectra():
    import librosa

    audio = 0.1 * torch.randn(2, 16000)
    metric = MelDistance(16000)
    metric.update(audio[:1, None], audio[1:, None])
    window = np.hanning(1025)[:-1]
    mels = [
        librosa.feature.melspectrogram(
            y=clip, sr=16000, n_fft=1024, hop_length=256, power=1.0, n_mels=80, norm=None, htk=True, pad_mode="constant"
        )
        / np.linalg.norm(window)
        for clip in audio.numpy()
    ]
    expected = np.abs(np.log(np.maximum(mels[0], 1e-5)) - np.log(np.maximum(mels[1], 1e-5))).mean()
    assert metric.compute().item() == pytest.approx(expected, rel=1e-4)


def noise(number, seed):
    return torch.randn(number, 1, 8000, generator=torch.Generator().manual_seed(seed))


def constant(audio):
    """A metric that knows the training clips, as each process does."""
    metric = ConstantSpectrum(16000)
    metric.fit(noise(4, 0))
    metric.update(audio)
    return metric


def distance(audio):
    metric = MelDistance(16000)
    metric.update(audio, 0.5 * audio.flip(-1))
    return metric


def usage(audio):
    metric = CodebookUsage(1, 8)
    metric.update((audio[:, :, :100] * 2).long().clamp(-4, 3) + 4)
    return metric


@pytest.mark.parametrize("measure", [distance, constant, usage])
def test_merged_metrics_equal_one(measure):
    audio = noise(5, 1)
    merged = measure(audio[:2])
    merged.merge_state(measure(audio[2:]))
    found, expected = merged.compute(), measure(audio).compute()
    for name in expected if isinstance(expected, dict) else [...]:
        assert found[name].flatten().tolist() == pytest.approx(expected[name].flatten().tolist(), rel=1e-6)
