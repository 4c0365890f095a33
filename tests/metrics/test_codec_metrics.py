import pytest
import torch

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
