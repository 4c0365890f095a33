import numpy as np
import pytest
import torch
from scipy.special import rel_entr
from scipy.stats import binomtest
from scipy.stats import bootstrap as scipys_bootstrap

from partita.errors import PartitaError
from partita.metrics.bootstrap import bootstrap, bootstrap_mean, rate_interval
from partita.metrics.divergence import KLDivergence


def logits(number, seed, classes=20):
    return torch.randn(number, classes, generator=torch.Generator().manual_seed(seed)) * 3


def test_softmax_form_is_scipys_relative_entropy():
    predicted, target = logits(50, 0), logits(50, 1)
    metric = KLDivergence(epsilon=1e-12, resamples=0)
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
    metric = KLDivergence(form, resamples=0)
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
    metric = KLDivergence(resamples=0)
    metric.update(torch.tensor([[0.0, 5000.0]]), torch.tensor([[5000.0, 0.0]]))
    assert metric.compute()["kld"].item() == pytest.approx(-np.log(1e-6), rel=1e-6)


def test_mean_is_over_segments_but_intervals_over_clips():
    predicted, target, sizes = logits(60, 0), logits(60, 1), torch.tensor([20, 30, 10])
    whole, apart = KLDivergence(), KLDivergence()
    whole.update(predicted, target, sizes)
    apart.update(predicted, target)
    whole, apart = whole.compute(), apart.compute()
    assert whole["kld"].item() == pytest.approx(apart["kld"].item())
    assert (whole["clips"], apart["clips"]) == (3, 60)
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


def test_intervals_are_scipys():
    values = np.random.default_rng(0).exponential(size=80)
    expected = scipys_bootstrap((values,), np.mean, n_resamples=20000, method="percentile", rng=0).confidence_interval
    found = bootstrap_mean(torch.from_numpy(values), resamples=20000)
    assert found["value"].item() == pytest.approx(values.mean())
    assert found["low"].item() == pytest.approx(expected.low, abs=0.01)
    assert found["high"].item() == pytest.approx(expected.high, abs=0.01)
    expected = scipys_bootstrap((values,), np.std, n_resamples=4000, method="percentile", rng=0).confidence_interval
    tensor = torch.from_numpy(values)
    found = bootstrap(lambda drawn: tensor[drawn].std(correction=0), 80, resamples=4000)
    assert found["low"].item() == pytest.approx(expected.low, abs=0.02)
    assert found["high"].item() == pytest.approx(expected.high, abs=0.02)


def test_intervals_of_means_of_segments_are_those_of_ratios():
    generator = np.random.default_rng(0)
    sizes = generator.integers(1, 20, 60)
    sums = sizes + generator.normal(size=60) * sizes
    ratio = scipys_bootstrap(
        (sums, sizes),
        lambda s, n, axis: s.sum(axis) / n.sum(axis),
        paired=True,
        n_resamples=20000,
        method="percentile",
        rng=0,
    ).confidence_interval
    found = bootstrap_mean(torch.from_numpy(sums), torch.from_numpy(sizes), resamples=20000)
    assert found["low"].item() == pytest.approx(ratio.low, abs=0.02)
    assert found["high"].item() == pytest.approx(ratio.high, abs=0.02)


def test_intervals_hold_the_mean_as_often_as_they_say():
    """90 % of 300: 270, and 255 or fewer by chance in one of 500."""
    held = 0
    for seed in range(300):
        values = torch.from_numpy(np.random.default_rng(seed).normal(1.5, 2, size=60))
        found = bootstrap_mean(values, resamples=300, confidence=0.9)
        held += bool(found["low"] <= 1.5 <= found["high"])
    assert 250 <= held <= 288


def test_intervals_depend_on_the_seed_and_not_on_the_order():
    values = torch.randn(50)
    first, second = bootstrap_mean(values), bootstrap_mean(values.flip(0))
    assert all(first[name].item() == pytest.approx(second[name].item(), abs=1e-12) for name in first)
    assert bootstrap_mean(values, seed=1)["low"] != first["low"]


@pytest.mark.parametrize(("hits", "clips"), [(0, 6), (3, 10), (64, 64)])
def test_intervals_of_rates_are_scipys(hits, clips):
    expected = binomtest(hits, clips).proportion_ci(0.9, method="wilson")
    found = rate_interval(torch.tensor(hits / clips, dtype=torch.float64), clips, 0.9)
    assert [float(bound) for bound in found] == pytest.approx([expected.low, expected.high])
