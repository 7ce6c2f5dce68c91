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


def bootstrap(statistic, *columns, draws: int = 1000, seed: int = 0) -> tuple[float, float, float]:
    """(statistic(*columns), low, high): 95% percentile interval over rows drawn with replacement (Efron 1979).

    columns: arrays of one length, shape (rows, ...). A row is what is drawn: put what belongs together into one.
    """
    columns = [np.asarray(column) for column in columns]
    places = np.random.default_rng(seed).integers(len(columns[0]), size=(draws, len(columns[0])))
    found = [statistic(*(column[place] for column in columns)) for place in places]
    return (float(statistic(*columns)), *map(float, np.quantile(found, [0.025, 0.975])))
