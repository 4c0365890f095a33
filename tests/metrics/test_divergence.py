import numpy as np
import pytest
import torch
from scipy.special import rel_entr

from partita.errors import PartitaError
from partita.metrics.divergence import KLDivergence


def logits(number, seed, classes=20):
    return torch.randn(number, classes, generator=torch.Generator().manual_seed(seed)) * 3


def test_softmax_form_is_scipys_relative_entropy():
    predicted, target = logits(50, 0), logits(50, 1)
    metric = KLDivergence(epsilon=1e-12)
    metric.update(predicted[:20], target[:20])
    metric.update(predicted[20:], target[20:])
    p, t = (x.double().softmax(1).numpy() for x in (predicted, target))
    found = metric.compute()
    assert found["kld"].item() == pytest.approx(rel_entr(t, p).sum(1).mean())
    assert found["kld_reverse"].item() == pytest.approx(rel_entr(p, t).sum(1).mean())
    assert found["kld_both"].item() == pytest.approx((rel_entr(p, t) + rel_entr(t, p)).sum(1).mean())
    assert found["clips"] == 50


@pytest.mark.parametrize("form", ["softmax", "sigmoid"])
def test_published_formula_with_epsilon(form):
    """AudioCraft and audioldm_eval: kl_div((p + 1e-6).log(), t), summed over labels, averaged over segments."""
    predicted, target = logits(30, 0) * 5, logits(30, 1) * 5
    metric = KLDivergence(form)
    metric.update(predicted, target)
    squash = {"softmax": lambda x: x.double().softmax(1), "sigmoid": lambda x: x.double().sigmoid()}[form]
    p, t = squash(predicted), squash(target)
    expected = torch.nn.functional.kl_div((p + 1e-6).log(), t, reduction="sum") / 30
    assert metric.compute()["kld"].item() == pytest.approx(expected.item(), rel=1e-9)


def test_equal_logits_have_no_divergence():
    metric = KLDivergence()
    metric.update(logits(5, 0), logits(5, 0))
    found = metric.compute()
    assert found["kld"].item() == pytest.approx(0, abs=1e-4)
    assert found["kld_high"].item() == pytest.approx(0, abs=1e-4)


def test_impossible_labels_stay_finite():
    """Silence can have a probability of exactly zero somewhere."""
    metric = KLDivergence()
    metric.update(torch.tensor([[0.0, 5000.0]]), torch.tensor([[5000.0, 0.0]]))
    assert metric.compute()["kld"].item() == pytest.approx(-np.log(1e-6), rel=1e-6)


def test_mean_is_over_segments_but_intervals_over_pieces():
    predicted, target, sizes = logits(60, 0), logits(60, 1), torch.tensor([20, 30, 10])
    metrics = {"clips": KLDivergence(), "segments": KLDivergence(), "pieces": KLDivergence()}
    metrics["clips"].update(predicted, target, sizes)
    metrics["segments"].update(predicted, target)
    metrics["pieces"].update(predicted, target, pieces=["a"] * 20 + ["b"] * 30 + ["c"] * 10)
    clips, segments, pieces = (metric.compute() for metric in metrics.values())
    assert clips["kld"].item() == pytest.approx(segments["kld"].item())
    assert [(found["clips"], found["pieces"]) for found in (clips, segments, pieces)] == [(3, 3), (60, 60), (60, 3)]
    assert pieces["kld_low"].item() == pytest.approx(clips["kld_low"].item())
    assert pieces["kld_low"] != segments["kld_low"]
    one = KLDivergence()
    one.update(predicted, target, torch.tensor([60]))
    assert one.compute()["kld_low"].isnan()  # one clip says nothing of others


def test_merged_metrics_equal_one_whatever_the_order():
    predicted, target = logits(40, 0), logits(40, 1)
    first, second, whole = KLDivergence(), KLDivergence(), KLDivergence()
    first.update(predicted[:15], target[:15], torch.tensor([5, 10]))
    second.update(predicted[15:], target[15:], torch.tensor([12, 13]))
    whole.update(predicted, target, torch.tensor([5, 10, 12, 13]))
    second.merge_state(first)
    merged = second.compute()
    for name, value in whole.compute().items():
        assert merged[name].item() == pytest.approx(value.item(), rel=1e-12), name


@pytest.mark.filterwarnings("ignore:The ``compute`` method:UserWarning")
def test_mistakes_are_named():
    metric = KLDivergence()
    with pytest.raises(PartitaError, match="update first"):
        metric.compute()
    with pytest.raises(PartitaError, match="same segments"):
        metric.update(logits(3, 0), logits(4, 0))
    with pytest.raises(PartitaError, match="add up to 3"):
        metric.update(logits(3, 0), logits(3, 0), torch.tensor([2, 2]))
    with pytest.raises(PartitaError, match="finite"):
        metric.update(logits(3, 0) * torch.nan, logits(3, 0))
    with pytest.raises(ValueError, match="softmax or sigmoid"):
        KLDivergence("relu")
    with pytest.raises(ValueError, match="confidence"):
        KLDivergence(confidence=95)
