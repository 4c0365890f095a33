"""Which differences are more than chance."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy import stats


def sign_test(wins: int, losses: int) -> float:
    """The two-sided exact p-value that either side of so many trials wins with equal odds.

    >>> sign_test(5, 0)
    0.0625
    """
    return float(stats.binomtest(wins, wins + losses).pvalue) if wins + losses else 1.0


def paired_test(first: Sequence[float], second: Sequence[float]) -> float:
    """The two-sided p-value of Student's t-test that pairs have the same mean.

    nan for fewer than three pairs, and where all differences are the same: there is no spread to compare with.

    >>> round(paired_test([1.0, 2.0, 3.0], [2.0, 2.5, 4.5]), 3)
    0.074
    """
    differences = np.subtract(first, second)
    if len(differences) < 3 or np.ptp(differences) <= 1e-9 * np.abs([first, second]).max():
        return math.nan
    return float(stats.ttest_rel(first, second).pvalue)


def holm(values: Sequence[float]) -> list[float]:
    """P-values corrected for their number (Holm, 1979).

    >>> holm([0.25, 0.125, 0.5])
    [0.5, 0.375, 0.5]
    """
    corrected, highest = [0.0] * len(values), 0.0
    for rank, i in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        highest = max(highest, min(1.0, (len(values) - rank) * values[i]))
        corrected[i] = highest
    return corrected


def p_text(value: float) -> str:
    """A p-value as people write it."""
    if math.isnan(value):
        return "–"
    return "< 0.0001" if value < 1e-4 else f"{value:.4f}"
