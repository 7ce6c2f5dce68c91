"""Intervals: no figure without one."""

import math

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


def crossed(values, confidence: float = 0.95) -> tuple[float, float, float]:
    """(mean, low, high) of values (seeds, questions): the same questions for every seed, and both drawn from many.

        half^2 = (t[S - 1] s / sqrt(S))^2 of the seeds' means + (t[Q - 1] s / sqrt(Q))^2 of the questions' means

    as Graybill and Wang (1980) add up intervals of variance components. The noise of single answers is in both parts:
    95% is a lower bound of its coverage. Drawing seeds and questions anew (the bootstrap of both levels, Owen 2007)
    makes the spread of three seeds too small and covers less. With one seed it is about other questions alone.
    """
    values = np.asarray(values, dtype=float)
    middle, square = float(values.mean()), 0.0
    for axis, n in ((1, values.shape[0]), (0, values.shape[1])):
        if n > 1:
            square += stats.t.ppf(0.5 + confidence / 2, n - 1) ** 2 * values.mean(axis).var(ddof=1) / n
    half = float(square**0.5)
    return middle, middle - half, middle + half


def linearised(part, whole) -> np.ndarray:
    """Values (seeds, questions) whose mean is sum(part) / sum(whole), and that vary as it does (delta method).

    So `crossed` gives a share its interval, and the difference of two shares one that is paired.
    """
    part, whole = np.asarray(part, dtype=float), np.asarray(whole, dtype=float)
    share = part.sum() / whole.sum()
    return share + (part - share * whole) / whole.mean()


def crossed_share(part, whole, confidence: float = 0.95) -> tuple[float, float, float]:
    """(share, low, high) of sum(part) / sum(whole), each (seeds, questions) of 0 and 1: wins of what is decided, say.

    Counts above 1, such as several pairs of answers to one question, are no more questions. Where all seeds agree that
    the share is 0 or 1, Wilson's interval of one seed's questions. Without a whole: (0.5, 0, 1).
    """
    part, whole = np.asarray(part, dtype=float), np.asarray(whole, dtype=float)
    if part.sum() in (0, whole.sum()):
        questions = min(round(whole.sum() / len(whole)), int((whole.sum(0) > 0).sum()))
        return proportion(questions if part.sum() else 0, questions, confidence)
    share, low, high = crossed(linearised(part, whole), confidence)
    return share, max(low, 0.0), min(high, 1.0)


def spread_ratio(one, other, confidence: float = 0.95) -> tuple[float, float, float] | None:
    """(ratio, low, high) of the standard deviations of two independent normal samples, by Fisher's F.

    Few values tell little: three against three and equal spreads give (1, 0.16, 6.2). None where a sample has fewer
    than two values, or all of its values are the same.
    """
    one, other = np.asarray(one, dtype=float), np.asarray(other, dtype=float)
    if min(len(set(one)), len(set(other))) < 2:
        return None
    ratio = float(one.std(ddof=1) / other.std(ddof=1))
    least, most = stats.f.interval(confidence, len(one) - 1, len(other) - 1)
    return ratio, ratio / float(most) ** 0.5, ratio / float(least) ** 0.5


def bootstrap(statistic, *columns, draws: int = 1000, seed: int = 0) -> tuple[float, float, float]:
    """(statistic(*columns), low, high): 95% percentile interval over rows drawn with replacement (Efron 1979).

    columns: arrays of one length, shape (rows, ...). A row is what is drawn: put what belongs together into one. Fewer
    than two rows say nothing of others: the interval is infinite.
    """
    columns = [np.asarray(column) for column in columns]
    if len(columns[0]) < 2:
        return float(statistic(*columns)), float("-inf"), float("inf")
    places = np.random.default_rng(seed).integers(len(columns[0]), size=(draws, len(columns[0])))
    found = [statistic(*(column[place] for column in columns)) for place in places]
    return (float(statistic(*columns)), *map(float, np.quantile(found, [0.025, 0.975])))


def difference(one: tuple[int, int], other: tuple[int, int]) -> tuple[float, float, float]:
    """(difference, low, high) of two independent shares, each (successes, trials): Newcombe (1998), method 10, 95%."""
    (share, low, high), (less, least, most) = proportion(*one), proportion(*other)
    gap = share - less
    return gap, gap - float(np.hypot(share - low, most - less)), gap + float(np.hypot(high - share, less - least))


def paired(pairs: list[tuple[float, float]]) -> tuple[float, float, float]:
    """(difference, low, high) of paired shares, pairs of 0 and 1: Newcombe (1998), Stat. in Medicine 17, 2635-2650.

    His method 10 makes Wilson's intervals one for pairs; unlike the bootstrap, it is not of width 0 where no pair
    differs.
    """
    n, sum_a, sum_b = len(pairs), sum(a for a, _ in pairs), sum(b for _, b in pairs)
    (a, a_low, a_high), (b, b_low, b_high) = proportion(sum_a, n), proportion(sum_b, n)
    product = n * sum(a * b for a, b in pairs) - sum_a * sum_b  # both right x both wrong - only a right x only b right
    product = max(product - n / 2, 0.0) if product > 0 else product  # Newcombe's correction for continuity
    spread = (sum_a * (n - sum_a) * sum_b * (n - sum_b)) ** 0.5
    phi = product / spread if spread else 0.0  # the correlation between the two
    below = (a - a_low) ** 2 - 2 * phi * (a - a_low) * (b_high - b) + (b_high - b) ** 2
    above = (a_high - a) ** 2 - 2 * phi * (a_high - a) * (b - b_low) + (b - b_low) ** 2
    return a - b, a - b - below**0.5, a - b + above**0.5


def ratio(one, other) -> tuple[float, float, float]:
    """(ratio, low, high) of the geometric means of two samples of positive numbers: Welch's t on their logs."""
    logs = [np.log(np.asarray(values, dtype=float)) for values in (one, other)]
    middle = float(logs[0].mean() - logs[1].mean())
    if min(map(len, logs)) < 2:
        return math.exp(middle), 0.0, math.inf
    found = stats.ttest_ind(*logs, equal_var=False).confidence_interval(0.95)
    return math.exp(middle), math.exp(found.low), math.exp(found.high)


def gap(one, other, draws: int = 4000, seed: int = 0) -> tuple[float, float, float]:
    """(mean of one - mean of other, low, high): 95% percentile interval, each of two samples of its own redrawn."""
    rng, samples = np.random.default_rng(seed), [np.asarray(values, dtype=float) for values in (one, other)]
    means = [rng.choice(values, (draws, len(values))).mean(axis=1) for values in samples]
    return (float(samples[0].mean() - samples[1].mean()), *map(float, np.quantile(means[0] - means[1], [0.025, 0.975])))
