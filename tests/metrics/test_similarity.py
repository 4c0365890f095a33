import numpy as np
import pytest
import torch
from scipy.spatial.distance import cosine

from partita.errors import PartitaError
from partita.metrics.similarity import PairedCosine, clip_means


def test_cosine_is_scipys():
    first, second = torch.randn(40, 16), torch.randn(40, 16)
    metric = PairedCosine()
    metric.update(first[:7], second[:7])
    metric.update(first[7:], second[7:])
    expected = [1 - cosine(a, b) for a, b in zip(first.double().numpy(), second.double().numpy(), strict=True)]
    found = metric.compute()
    assert found["cosine"].item() == pytest.approx(np.mean(expected))
    error = np.std(expected) / 40**0.5
    assert found["cosine_low"].item() == pytest.approx(np.mean(expected) - 1.96 * error, abs=0.3 * error)
    assert found["cosine_high"].item() == pytest.approx(np.mean(expected) + 1.96 * error, abs=0.3 * error)
    assert found["clips"] == 40


def test_segments_are_averaged_over_their_clip_first():
    """Captions of one embedding against two clips: [1, 0] and [0, 1] average to a diagonal, [0, 2] is alone."""
    metric = PairedCosine()
    audio = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 2.0]])
    metric.update(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), audio, second_sizes=torch.tensor([2, 1]))
    assert metric.compute()["cosine"].item() == pytest.approx((0.5**0.5 + 1) / 2)
    assert clip_means(audio, torch.tensor([2, 1])).tolist() == [[0.5, 0.5], [0, 2]]


def test_merged_metrics_equal_one():
    first, second = torch.randn(20, 8), torch.randn(20, 8)
    one, other, whole = PairedCosine(), PairedCosine(), PairedCosine()
    one.update(first[:4], second[:4])
    other.update(first[4:], second[4:])
    whole.update(first, second)
    one.merge_state(other)
    merged = one.compute()
    for name, value in whole.compute().items():
        assert merged[name].item() == pytest.approx(value.item(), rel=1e-12), name


def test_mistakes_are_named():
    metric = PairedCosine()
    with pytest.raises(PartitaError, match="same clips"):
        metric.update(torch.randn(3, 4), torch.randn(2, 4))
    with pytest.raises(PartitaError, match="add up to 3"):
        metric.update(torch.randn(3, 4), torch.randn(3, 4), torch.tensor([3, 0]))
    with pytest.raises(PartitaError, match="finite"):
        metric.update(torch.full((1, 4), torch.inf), torch.randn(1, 4))
