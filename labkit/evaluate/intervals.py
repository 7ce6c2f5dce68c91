"""Intervals: no figure without one."""

import numpy as np
from scipy import stats


def proportion(successes: int, trials: int, confidence: float = 0.95) -> tuple[float, float, float]:
    """(share, low, high) with Wilson's score interval (1927), right also near 0 and 1.

    Without trials nothing is known: (0.5, 0, 1).
    """
    if trials == 0:
        return 0.5, 0.0, 1.0
    interval = stats.binomtest(int(successes), int(trials)).proportion_ci(confidence, method="wilson")
    return successes / trials, float(interval.low), float(interval.high)


def mean(values, confidence: float = 0.95) -> tuple[float, float, float]:
    """(mean, low, high) with Student's t over independent values such as seeds; infinite for fewer than two."""
    values = np.asarray(values, dtype=float)
    middle = float(values.mean())
    if len(values) < 2:
        return middle, float("-inf"), float("inf")
    half = float(stats.t.ppf(0.5 + confidence / 2, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values)))
    return middle, middle - half, middle + half


def difference(one: tuple[int, int], other: tuple[int, int]) -> tuple[float, float, float]:
    """(difference, low, high) of two independent shares, each (successes, trials): Newcombe (1998), method 10, 95%."""
    (share, low, high), (less, least, most) = proportion(*one), proportion(*other)
    gap = share - less
    return gap, gap - float(np.hypot(share - low, most - less)), gap + float(np.hypot(high - share, less - least))
