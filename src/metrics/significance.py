"""Significance tests of differences, and confidence intervals of statistics.

All of them take independent units: pieces rather than their clips, listeners rather than their answers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

GRID = 50_000
"""Least number of steps in the sum of absolute differences, to which those that are not whole numbers are rounded."""
STEPS_PER_UNIT = 100
"""Least number of these steps per unit."""
RARELY = 6.5
"""Multiple of the root of the summed squares of rounding errors that their sum exceeds with a chance of 1e-9."""


def sign_flip_test(differences: Sequence[float]) -> float:
    """Return the exact two-sided p-value that independent units favor neither side (Fisher's randomization test).

    Under the null hypothesis, each difference is equally likely with the opposite sign. The p-value is the fraction of
    all choices of signs whose sum is at least as far from zero as the observed sum, so it is at least ``2 / 2**units``.
    If every difference is 1 or −1, this is the sign test. Differences that are not whole numbers are rounded to
    1/50,000 of the sum of their sizes, or finer if there are many; sums that rounding can have moved below the observed
    one count, so that the p-value is never too small.

    Args:
        differences: Difference of each unit, such as the wins minus the losses of a listener.

    Example:
        >>> sign_flip_test([3, 5, 2, 4])
        0.125
        >>> sign_flip_test([0.3, 0.5, 0.2, 0.4])
        0.125
    """
    if not all(float(difference).is_integer() for difference in differences):
        total = sum(abs(difference) for difference in differences)
        grid = max(GRID, STEPS_PER_UNIT * len(differences))
        differences = [grid * difference / total for difference in differences]
    steps = [round(difference) for difference in differences]
    errors = [abs(difference - step) for difference, step in zip(differences, steps, strict=True)]
    # with random signs, the errors of many units nearly cancel each other out (Hoeffding's inequality)
    bound = RARELY * math.hypot(*errors)
    moved, missed = (bound, 2 * math.exp(-(RARELY**2) / 2)) if bound < sum(errors) else (sum(errors), 0.0)
    least = abs(sum(differences)) - moved - 1e-6
    chances = np.ones(1)  # probability of every sum, in ascending order
    for size in (abs(step) for step in steps if step):
        either = np.zeros(len(chances) + 2 * size)
        either[: len(chances)] += chances / 2
        either[2 * size :] += chances / 2
        chances = either
    most = len(chances) // 2
    return float(min(1.0, chances[np.abs(np.arange(-most, most + 1)) >= least].sum() + missed))


def jackknife(whole: ArrayLike, without: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Return a statistic without its first-order bias, and its standard error (Quenouille 1956, Tukey 1958).

    Args:
        whole: The statistic of all independent units, ``[...]``.
        without: The statistic without each of them in turn, ``[units, ...]``.

    Returns:
        Both ``[...]``; NaN for fewer than two units.

    Example:
        >>> values = np.array([1.0, 2.0, 6.0])
        >>> corrected, error = jackknife(values.var(), [np.delete(values, i).var() for i in range(3)])
        >>> bool(np.isclose(corrected, values.var(ddof=1)))
        True
    """
    whole, without = np.asarray(whole, float), np.asarray(without, float)
    units = len(without)
    if units < 2:
        return np.full_like(whole, np.nan), np.full_like(whole, np.nan)
    mean = without.mean(0)
    return units * whole - (units - 1) * mean, np.sqrt((units - 1) / units * np.square(without - mean).sum(0))


def mean_interval(
    mean: ArrayLike, error: ArrayLike, units: int, confidence: float = 0.95
) -> tuple[np.ndarray, np.ndarray]:
    """Return Student's interval of a statistic with this standard error, for ``units`` independent units."""
    half = _student(units, confidence) * np.asarray(error, float)
    middle = np.asarray(mean, float)
    return middle - half, middle + half


def rate_interval(
    rate: ArrayLike, error: ArrayLike, units: int, confidence: float = 0.95
) -> tuple[np.ndarray, np.ndarray]:
    """Return Wilson's interval (1927) of a rate in [0, 1] with this standard error, for ``units`` independent units.

    The effective sample size follows from the error, as in Korn and Graubard (1998), and Student's quantile replaces
    the normal one. For a rate of 0 or 1, the sample size is ``units``, so that the interval is not empty.

    >>> [round(float(bound), 3) for bound in rate_interval(0.0, 0.0, 6)]
    [0.0, 0.524]
    """
    rate, error = np.asarray(rate, float), np.asarray(error, float)
    variance = rate * (1 - rate)
    with np.errstate(divide="ignore", invalid="ignore"):
        answers = np.where(variance > 1e-12, variance / error**2, units)
    share = _student(units, confidence) ** 2 / answers
    middle, half = rate + share / 2, np.sqrt(variance * share + share**2 / 4)
    return np.maximum((middle - half) / (1 + share), 0), np.minimum((middle + half) / (1 + share), 1)


def _student(units: int, confidence: float) -> float:
    return float(stats.t.ppf((1 + confidence) / 2, units - 1))


def paired_test(first: Sequence[float], second: Sequence[float]) -> float:
    """Return the two-sided p-value of Student's paired t-test for equal means.

    It is NaN for fewer than three pairs, and if all differences are equal, because they have no variance.

    >>> round(paired_test([1.0, 2.0, 3.0], [2.0, 2.5, 4.5]), 3)
    0.074
    """
    differences = np.subtract(first, second)
    if len(differences) < 3 or np.ptp(differences) <= 1e-9 * np.abs([first, second]).max():
        return math.nan
    return float(stats.ttest_rel(first, second).pvalue)


def holm(values: Sequence[float]) -> list[float]:
    """Correct p-values for multiple testing (Holm, 1979).

    >>> holm([0.25, 0.125, 0.5])
    [0.5, 0.375, 0.5]
    """
    corrected, highest = [0.0] * len(values), 0.0
    for rank, i in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        highest = max(highest, min(1.0, (len(values) - rank) * values[i]))
        corrected[i] = highest
    return corrected


def p_relation(value: float) -> str:
    """Format a p-value with its relation.

    >>> p_relation(0.0123), p_relation(1e-6)
    ('= 0.0123', '< 0.0001')
    """
    text = p_text(value)
    return text if text.startswith("<") else f"= {text}"


def p_text(value: float) -> str:
    """Format a p-value."""
    if math.isnan(value):
        return "–"
    return "< 0.0001" if value < 1e-4 else f"{value:.4f}"
