"""The figures and tables of an ablation."""

import math

import numpy as np
import pytest
from scipy import stats

from partita.evaluation.ablation_results import compare
from partita.pages.tables import fitted


def test_differences_from_the_baseline_as_scipy_has_them():
    baseline, first, second = {0: 1.0, 1: 1.3, 2: 0.9}, {0: 0.7, 1: 0.9, 2: 0.55}, {0: 1.1, 1: 1.1, 2: 1.1, 3: 9.0}
    cells = compare([baseline, first, second, {}, {0: -5.0, 1: -5.0}], "lower")
    ps = [
        stats.ttest_rel([0.7, 0.9, 0.55], [1.0, 1.3, 0.9]).pvalue,
        stats.ttest_rel([1.1, 1.1, 1.1], [1.0, 1.3, 0.9]).pvalue,
    ]
    assert cells[1].p == pytest.approx(min(1, 2 * ps[0]))
    assert cells[2].p == pytest.approx(ps[1])
    assert not any(cell.best for cell in cells)  # the second has a seed more than others
    known = compare([baseline, first, {0: -5.0}], "lower")
    assert [cell.best for cell in known] == [False, bool(ps[0] < 0.05), False]
    assert ps[0] < 0.05
    assert not any(cell.best for cell in compare([baseline, first], "lower", [False, True]))  # no better than chance
    assert math.isnan(cells[4].p)  # two seeds: anything may be chance
    assert (cells[0].mean, cells[0].deviation) == pytest.approx((3.2 / 3, stats.tstd([1.0, 1.3, 0.9])))
    assert str(cells[3]) == "–"
    assert cells[1].starred.endswith("*") == (2 * ps[0] < 0.05)
    same = compare([{0: 1.0, 1: 2.0, 2: 3.0}, {0: 1.5, 1: 2.5, 2: 3.5}], "lower")
    assert math.isnan(same[1].p)  # differences without any spread


@pytest.mark.parametrize("seeds", [2, 3, 6])
def test_chance_is_hardly_ever_marked_as_best(seeds):
    """Of variants that do not differ, one is marked at most as often as the level says."""
    draws = np.random.default_rng(seeds).normal(size=(60, 4, seeds))
    marked = sum(
        any(cell.best for cell in compare([dict(enumerate(variant)) for variant in study], "higher")) for study in draws
    )
    assert marked <= 0.05 * len(draws)
    draws[:, 2] += 30
    marked = [compare([dict(enumerate(variant)) for variant in study], "higher")[2].best for study in draws[:20]]
    assert np.mean(marked) == 0 if seeds < 3 else np.mean(marked) > 0.9


@pytest.mark.parametrize(("variants", "scores"), [(2, 3), (3, 20), (20, 3), (30, 30)])
def test_tables_fit_a_screen_and_lose_nothing(variants, scores):
    rows = [[f"v{i}", *(f"{i}/{j}" for j in range(scores))] for i in range(variants)]
    made = fitted("Scores", ["variant", *(f"s{j}" for j in range(scores))], rows)
    assert all(2 <= len(columns) <= 7 and all(len(row) == len(columns) for row in rows) for _, columns, rows in made)
    cells = {
        frozenset((row[0], column)): cell
        for _, columns, rows in made
        for row in rows
        for column, cell in zip(columns[1:], row[1:], strict=True)
    }
    wanted = {frozenset((f"v{i}", f"s{j}")): f"{i}/{j}" for i in range(variants) for j in range(scores)}
    assert cells == wanted
