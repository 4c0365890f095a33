import itertools

import numpy as np
import pytest
import torch
from scipy.stats import binomtest, norm, ttest_1samp

from partita.errors import PartitaError
from partita.metrics.piece_means import mean_over_pieces, membership, piece_numbers, sign_flip_over_pieces
from partita.metrics.significance import jackknife, mean_interval, rate_interval
from partita.metrics.similarity import PairedCosine

ALONE = torch.full((400,), -1)
"""Numbers of pieces of clips that are each from another."""


def interval(values, numbers, weights=None, **how):
    values = torch.as_tensor(values, dtype=torch.float64)
    weights = torch.ones(len(values)) if weights is None else torch.as_tensor(weights)
    found = mean_over_pieces(values, weights, torch.as_tensor(numbers)[: len(values)], **how)
    return found["low"].item(), found["high"].item()


def of_pieces(draw, sizes, alike):
    """Normal values of clips, with this correlation within a piece, and the pieces."""
    piece = np.repeat(np.arange(len(sizes)), sizes)
    values = alike**0.5 * draw.standard_normal(len(sizes))[piece]
    return values + (1 - alike) ** 0.5 * draw.standard_normal(len(piece)), piece


@pytest.mark.parametrize(
    ("sizes", "least"),
    # of 95 % in 400, 365 or fewer by chance in one of 800; a few large pieces among many small ones are harder
    [([3] * 12 + [2] * 14, 366), ([12] * 5, 366), ([20] * 2, 366), ([10] * 3 + [4] * 3 + [2] * 6 + [1] * 10, 356)],
)
def test_intervals_hold_the_mean_where_clips_of_a_piece_are_alike(sizes, least):
    draw, held = np.random.default_rng(0), 0
    for _ in range(400):
        values, piece = of_pieces(draw, sizes, 0.3)
        low, high = interval(values, piece)
        held += low <= 0 <= high
    assert held >= least


def test_intervals_of_rates_hold_them_where_clips_of_a_piece_are_alike():
    """Also rates near 0, and of few pieces."""
    draw = np.random.default_rng(0)
    for threshold, rate, sizes in (
        (0.524, 0.3, [3] * 12 + [2] * 14),
        (1.645, 0.05, [3] * 12 + [2] * 14),
        (0.524, 0.3, [20] * 3),
    ):
        held = 0
        for _ in range(300):
            values, piece = of_pieces(draw, sizes, 0.3)
            low, high = interval(values > threshold, piece, rate=True)
            assert 0 <= low <= high <= 1
            held += low <= rate <= high
        assert held >= 273, (rate, sizes)


def test_intervals_of_clips_of_their_own_are_those_of_students_t_test():
    values = np.random.default_rng(0).exponential(size=80)
    expected = ttest_1samp(values, 0).confidence_interval(0.9)
    assert interval(values, ALONE, confidence=0.9) == pytest.approx((expected.low, expected.high))


def test_segments_weigh_as_many_as_they_are():
    """The clips of equal sums and weights could as well be one clip after the other of a piece."""
    draw = np.random.default_rng(0)
    values, sizes = draw.normal(size=60), [10, 20, 5, 25]
    piece = np.repeat(np.arange(4), sizes)
    sums = [values[piece == i].sum() for i in range(4)]
    assert interval(values, piece) == pytest.approx(interval(sums, ALONE, sizes))


def test_intervals_do_not_depend_on_the_order():
    values, piece = of_pieces(np.random.default_rng(0), [3] * 8, 0.5)
    assert interval(values[::-1].copy(), piece[::-1].copy()) == pytest.approx(interval(values, piece), abs=1e-12)


@pytest.mark.parametrize(("hits", "clips"), [(3, 10), (40, 64), (1, 30)])
def test_intervals_of_rates_are_nearly_scipys(hits, clips):
    """But for Student's quantile in the place of the normal one, and for the error's ``n - 1``."""
    values = np.arange(clips) < hits
    expected = binomtest(hits, clips).proportion_ci(0.9, method="wilson")
    low, high = interval(values, ALONE, confidence=0.9, rate=True)
    assert low < expected.low < expected.high < high
    assert high - low == pytest.approx(expected.high - expected.low, rel=0.2)


def test_none_of_a_few_is_not_none_of_all():
    low, high = interval(np.zeros(12), np.repeat(np.arange(4), 3), rate=True)
    assert low == 0
    assert interval(np.zeros(4), ALONE, rate=True) == (0, high)  # twelve clips of four pieces say no more than four
    assert interval(np.zeros(12), ALONE, rate=True)[1] < high


def test_clips_that_agree_by_chance_leave_some_doubt():
    """Two pieces with the same rate: their scatter is none, that of clips is some."""
    low, high = interval([1, 0, 1, 0], [5, 5, 7, 7], rate=True)
    assert low < 0.3 < 0.7 < high


def test_one_piece_says_nothing_of_others():
    assert np.isnan(interval(np.arange(5.0), [3] * 5)).all()


def test_names_of_pieces_are_numbers_that_every_process_agrees_on():
    numbers = piece_numbers(["a", None, "b", "a", None], 5)
    assert numbers.tolist() == [2340832890917691671, -1, 4771952420932724666, 2340832890917691671, -1]
    member = membership(numbers)
    assert sorted(map(tuple, member.tolist())) == [(0, 0, 0, 0, 1), (0, 0, 1, 0, 0), (0, 1, 0, 0, 0), (1, 0, 0, 1, 0)]
    with pytest.raises(PartitaError, match="each of 5 clips, not 4"):
        piece_numbers(["a"] * 4, 5)


def test_merged_metrics_keep_pieces_together():
    first, second, pairs = PairedCosine(), PairedCosine(), torch.randn(6, 3)
    first.update(pairs[:4], pairs[:4].flip(1), pieces=["a", "a", "b", "c"])
    second.update(pairs[4:], pairs[4:].flip(1), pieces=["a", "d"])
    first.merge_state(second)
    assert (first.compute()["clips"], first.compute()["pieces"]) == (6, 4)


def test_jackknife_is_that_of_the_mean_and_the_variance():
    values = np.random.default_rng(0).normal(size=(20, 3))
    without = [np.delete(values, i, 0) for i in range(20)]
    corrected, error = jackknife(values.mean(0), [left.mean(0) for left in without])
    assert corrected == pytest.approx(values.mean(0))
    assert error == pytest.approx(values.std(0, ddof=1) / 20**0.5)
    assert jackknife(values.var(0), [left.var(0) for left in without])[0] == pytest.approx(values.var(0, ddof=1))
    assert np.isnan(mean_interval(*jackknife(1.0, [1.0]), 1)).all()
    assert np.isnan(rate_interval(0.5, np.nan, 1)).all()


def test_pieces_rather_than_clips_tell_whether_values_differ():
    """Ten clips of two pieces are two answers, so the smallest p-value is a half; of ten pieces, it is 2 / 2^10."""
    differences = torch.linspace(0.2, 0.7, 10)
    assert sign_flip_over_pieces(differences, ["a", "b"] * 5) == 0.5
    assert sign_flip_over_pieces(differences, None) == 2 / 2**10
    signs = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=10)))
    mixed = differences * torch.tensor([1, -1, 1, 1, 1, -1, 1, 1, -1, 1])
    exact = ((signs @ differences).abs() >= mixed.sum().abs() - 1e-4).float().mean()
    assert sign_flip_over_pieces(mixed, None) == pytest.approx(float(exact), abs=0.005)


def test_the_p_value_of_many_pieces_is_that_of_the_normal_distribution():
    """By the central limit theorem; rounding must not blur it."""
    values = torch.randn(3000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for deviations in (2.0, 3.5):
        shifted = values - values.mean() + deviations / 3000**0.5
        z = float(shifted.sum() / torch.linalg.vector_norm(shifted))
        assert sign_flip_over_pieces(shifted, None) == pytest.approx(2 * norm.sf(z), rel=0.05)
