"""BLEU and ROUGE against their papers' examples and hand computations; rank correlation against scipy."""

import math

import numpy as np
import pytest
from scipy import stats

from labkit.evaluate import intervals, overlap


def test_rouge_of_its_papers_example():
    """Lin 2004, section 3.1: two answers with the same bigrams, told apart by the longest common subsequence."""
    one = overlap.sentence("police kill the gunman", "police killed the gunman")
    other = overlap.sentence("the gunman kill police", "police killed the gunman")
    assert (one["rougeL"], other["rougeL"]) == (3 / 4, 2 / 4)
    assert one["rouge2"] == other["rouge2"] == pytest.approx(1 / 3)


def test_rouge_of_the_librarys_readme():
    found = overlap.sentence("The quick brown dog jumps on the log.", "The quick brown fox jumps over the lazy dog")
    assert found["rouge1"] == pytest.approx(2 * 6 / (8 + 9))  # the, quick, brown, dog, jumps, the
    assert found["rougeL"] == pytest.approx(2 * 5 / (8 + 9))


def test_bleu_by_hand():
    longer = overlap.sentence("the cat sat on the mat today", "the cat sat on the mat")
    assert longer["bleu"] == pytest.approx((6 / 7 * 5 / 6 * 4 / 5 * 3 / 4) ** 0.25)
    shorter = overlap.sentence("the cat sat on", "the cat sat on the mat")
    assert shorter["bleu"] == pytest.approx(math.exp(1 - 6 / 4))  # every n-gram is there: brevity alone
    clipped = overlap.sentence("the " * 7, "the cat is on the mat")  # Papineni et al. 2002, example 2: p_1 = 2/7
    smoothed = (2 / 7 * 1 / (2 * 6) * 1 / (4 * 5) * 1 / (8 * 4)) ** 0.25  # zero counts become 1/2, 1/4, 1/8
    assert clipped["bleu"] == pytest.approx(smoothed)


def test_corpus_bleu_pools_the_counts():
    answers, references = ["the cat sat on the mat today", "a b c d"], ["the cat sat on the mat", "a b c d"]
    found = overlap.corpus(answers, references)
    assert found["bleu"] == pytest.approx((10 / 11 * 8 / 9 * 6 / 7 * 4 / 5) ** 0.25)
    mean = np.mean([overlap.sentence(*pair)["rougeL"] for pair in zip(answers, references, strict=True)])
    assert found["rougeL"] == pytest.approx(mean)


def test_the_same_is_1_nothing_shared_is_0_and_an_empty_answer_is_no_error():
    same = overlap.sentence("It is a river.", "It is a river.")
    assert list(same.values()) == pytest.approx([1.0] * 4)
    assert overlap.sentence("stone", "It is a river.")["rougeL"] == 0
    assert set(overlap.sentence("", "It is a river.").values()) == {0.0}
    assert set(overlap.METRICS) == set(overlap.sentence("a", "a")) == set(overlap.corpus(["a"], ["a"]))


def test_rank_correlations_against_scipy():
    rng = np.random.default_rng(0)
    values, gold = rng.normal(size=(40, 5)), rng.integers(3, size=(40, 5))
    expected = stats.spearmanr(values.ravel(), gold.ravel()).statistic
    assert overlap.spearman(values, gold) == pytest.approx(expected)
    assert overlap.kendall(values, gold) == pytest.approx(stats.kendalltau(values.mean(0), gold.mean(0)).statistic)
    assert overlap.spearman(values, np.ones((40, 5))) == 0.0
    ordered = np.arange(5) + rng.normal(size=(40, 1))
    assert overlap.kendall(ordered, ordered) == 1.0 and overlap.kendall(ordered, -ordered) == -1.0


def test_the_bootstrap_covers_a_known_mean():
    """In 300 samples of 50 the 95% interval holds the true mean about 95 times in a hundred."""
    rng = np.random.default_rng(1)
    samples = rng.normal(2.0, 1.0, size=(300, 50))
    found = [intervals.bootstrap(np.mean, sample, draws=200) for sample in samples]
    assert all(low <= middle <= high for middle, low, high in found)
    assert 0.90 <= np.mean([low <= 2.0 <= high for _, low, high in found]) <= 0.98


def test_the_bootstrap_draws_whole_rows():
    """Two columns of one question belong together: their difference never varies, so its interval is a point."""
    left = np.random.default_rng(2).normal(size=(30, 1))
    rows = np.concatenate([left, left + 1], axis=1)
    assert intervals.bootstrap(lambda rows: (rows[:, 1] - rows[:, 0]).mean(), rows) == pytest.approx((1.0, 1.0, 1.0))
