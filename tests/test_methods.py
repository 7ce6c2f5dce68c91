"""Intervals over seeds and questions that cover; methods beside each other on hand-made answers."""

import json

import numpy as np
import pytest
import torch

from labkit import data, models
from labkit.evaluate import answers, intervals, methods
from labkit.ui import methods as pictures


def simulated(rng, seeds, questions, seed_spread, question_spread, noise):
    """Values with a mean of 1: an effect of each seed, one of each question, and noise."""
    return (
        1
        + seed_spread * rng.standard_normal((seeds, 1))
        + question_spread * rng.standard_normal((1, questions))
        + noise * rng.standard_normal((seeds, questions))
    )


def by_bootstrap(values, rng, draws=400):
    """The two-level percentile bootstrap, which `crossed` stands in for."""
    seeds = rng.integers(len(values), size=(draws, len(values)))
    places = rng.integers(values.shape[1], size=(draws, values.shape[1]))
    means = [values[np.ix_(one, other)].mean() for one, other in zip(seeds, places, strict=True)]
    return np.quantile(means, [0.025, 0.975])


@pytest.mark.parametrize("spreads", [(0.3, 1.0, 1.0), (0.0, 1.0, 1.0), (1.0, 0.1, 0.1), (0.05, 0.5, 2.0)])
def test_crossed_covers_with_three_seeds(spreads):
    rng = np.random.default_rng(0)
    found = [intervals.crossed(simulated(rng, 3, 100, *spreads)) for _ in range(600)]
    assert np.mean([low <= 1 <= high for _, low, high in found]) >= 0.94


def test_the_bootstrap_of_both_levels_would_not():
    rng = np.random.default_rng(0)
    found = [by_bootstrap(simulated(rng, 3, 100, 1.0, 0.1, 0.1), rng) for _ in range(200)]
    assert np.mean([low <= 1 <= high for low, high in found]) < 0.85


def test_crossed_by_hand():
    values = [[1.0, 2.0, 6.0], [3.0, 2.0, 4.0]]  # both rows have mean 3, columns 2, 2, 5
    mean, low, high = intervals.crossed(values)
    half = 4.302652729911275 * (3.0 / 3) ** 0.5  # all of the variance lies between three questions
    assert mean == 3 and (low, high) == pytest.approx((3 - half, 3 + half))
    assert intervals.crossed([[2.0, 2.0], [2.0, 2.0]]) == (2, 2, 2)
    assert intervals.crossed([[1.0, 2.0, 6.0]])[1:] == pytest.approx(intervals.mean([1.0, 2.0, 6.0])[1:])


def test_crossed_share_covers():
    """Wins of decided questions, both of them random, with win rates that differ from seed to seed."""
    rng, hits = np.random.default_rng(1), []
    for _ in range(500):
        whole = rng.random((3, 150)) < rng.uniform(0.3, 0.7, (1, 150))
        share = np.clip(0.8 + 0.05 * rng.standard_normal((3, 1)), 0, 1)
        part = whole & (rng.random((3, 150)) < share)
        _, low, high = intervals.crossed_share(part, whole)
        hits.append(low <= 0.8 <= high)
    assert np.mean(hits) >= 0.93


def test_crossed_share_at_its_ends():
    ones, none = np.ones((3, 40)), np.zeros((3, 40))
    assert intervals.crossed_share(ones, ones) == intervals.proportion(40, 40)
    assert intervals.crossed_share(none, ones) == intervals.proportion(0, 40)
    assert intervals.crossed_share(none, none) == (0.5, 0.0, 1.0)


def test_linearised_has_the_share_as_its_mean():
    part, whole = [[1, 0, 1], [1, 0, 0]], [[1, 1, 1], [1, 0, 1]]
    assert intervals.linearised(part, whole).mean() == pytest.approx(3 / 5)


def test_spread_ratio():
    rng = np.random.default_rng(0)
    assert intervals.spread_ratio([1, 2, 3], [2, 4, 6])[0] == pytest.approx(0.5)
    assert intervals.spread_ratio([1, 2, 3], [4, 5, 6]) == pytest.approx((1, 39**-0.5, 39**0.5))  # F(2, 2) is 39
    found = [intervals.spread_ratio(*rng.standard_normal((2, 4))) for _ in range(2000)]
    assert np.mean([low <= 1 <= high for _, low, high in found]) == pytest.approx(0.95, abs=0.015)
    assert intervals.spread_ratio([1], [1, 2]) is None and intervals.spread_ratio([1, 2], [3, 3]) is None


def rows(gold, correct=None, split="entity"):
    correct = gold if correct is None else correct
    return [
        {"id": f"q-{n}", "prompt": f"{n}?", "split": split, "gold": value, "correct": float(right > 0), "text": "a b"}
        for n, (value, right) in enumerate(zip(gold, correct, strict=True))
    ]


def test_win_rate_accuracy_and_words_by_hand():
    parent = rows([1, 1, 1, 1], correct=[1, 1, 0, 0])
    judged = [rows([2, 2, 0, 1], correct=[1, 1, 1, 0]), rows([2, 1, 2, 1], correct=[1, 0, 0, 0])]
    wins, decided = methods.decided(judged, parent)
    assert wins.tolist() == [[1, 1, 0, 0], [1, 0, 1, 0]] and decided.tolist() == [[1, 1, 1, 0], [1, 0, 1, 0]]
    assert methods.win_rate(judged, parent)[0] == pytest.approx(4 / 5)
    assert methods.accuracy_change(judged, parent)[0] == pytest.approx((1 / 4 - 1 / 4) / 2)
    assert methods.words(judged) == (2, 2, 2)
    assert methods.gold(judged) == [1.25, 1.5]


def test_unsafe_questions_do_not_count_for_accuracy():
    parent = rows([1, 1], correct=[0, 0]) + rows([1], correct=[0], split="unsafe")
    better = rows([1, 1], correct=[0, 1]) + rows([3], correct=[1], split="unsafe")
    assert methods.accuracy_change([better, better], parent)[0] == pytest.approx(0.5)


def test_difference_is_paired():
    """Two methods that win the same questions differ by nothing, however uncertain each win rate is."""
    rng = np.random.default_rng(0)
    parent = rows([1] * 60)
    one = [rows(rng.integers(0, 3, 60).tolist()) for _ in range(3)]
    assert methods.difference(one, one, parent) == pytest.approx((0, 0, 0))
    other = [rows([2] * 60) for _ in range(3)]
    middle, low, _ = methods.difference(other, one, parent)
    assert middle == pytest.approx(1 - methods.win_rate(one, parent)[0]) and low > 0
    assert methods.difference([parent], [parent], parent) == (0.0, -1.0, 1.0)


def test_best_answers():
    samples = rows([0, 1, 2, 3, 4, 5])
    kept = methods.best_answers(samples, np.array([0.1, 0.9, 0.9, 3.0, -1.0, 2.0]), 3)
    assert [row["id"] for row in kept] == ["q-1", "q-3"]


def test_drawn_measures_kl_and_reward_and_is_kept(tmp_path):
    policy, tokenizer = models.load("smoke", seed=0)
    reference, _ = models.load("smoke", seed=1)
    questions, file = data.questions("smoke")[:3], tmp_path / "drawn.jsonl"

    def reward(prompts, texts):
        return torch.tensor([float(len(text)) for text in texts])

    found = methods.drawn(policy, reference, tokenizer, reward, questions, seed=3, file=file)
    texts, prompts = [row["text"] for row in found], [row["prompt"] for row in found]
    ended = [row["stopped"] for row in found]
    by_hand = [answers.log_probs(model, tokenizer, prompts, texts, ended)[0] for model in (policy, reference)]
    whole = [answers.log_probs(model, tokenizer, prompts, texts) for model in (policy, reference)]
    counted = answers.log_probs(policy, tokenizer, prompts, texts, ended)[1]
    assert (whole[0][1] - counted).tolist() == [not one for one in ended] and not all(ended)  # a cut answer has no end
    assert [row["kl"] for row in found] == pytest.approx((by_hand[0] - by_hand[1]).tolist())
    assert [row["reward"] for row in found] == [len(text) for text in texts]
    assert methods.drawn(None, None, None, None, questions, seed=3, file=file) == found  # read back
    assert len(file.read_text().splitlines()) == 3 and "gold" in json.loads(file.read_text().splitlines()[0])
    itself = methods.drawn(policy, policy, tokenizer, reward, questions, seed=3, file=tmp_path / "same.jsonl")
    assert [row["kl"] for row in itself] == [0, 0, 0] and [row["text"] for row in itself] == texts


def test_pictures_show_every_seed_and_grey_what_is_not_apart():
    found, seeds = {"DPO": (0.9, 0.8, 1.0), "PPO": (0.8, 0.6, 0.9)}, {"DPO": [0.9, 0.91], "PPO": [0.8, 0.81]}
    figure = pictures.forest(found, seeds, title="t", x="x", mark=0.5)
    assert [list(trace.x) for trace in figure.data] == [[0.9], [0.9, 0.91], [0.8], [0.8, 0.81]]
    points = {name: dict.fromkeys(("kl", "reward", "gold"), (1.0, 0.5, 1.5)) for name in found}
    dots = {name: {key: [0.9, 1.1] for key in ("kl", "reward", "gold")} for name in found}
    curve = {"kl": [0.0, 0.3], "reward": [0.0, 0.1], "gold": [0.0, 0.1], "n": [1, 2]}
    assert len(pictures.frontier(points, dots, curve, title="t").data) == 2 * (1 + 2 * 2)
    gaps = {("DPO", "PPO"): (0.1, 0.02, 0.2), ("PPO", "DPO"): (-0.1, -0.2, -0.02), ("DPO", "ORPO"): (0.1, -0.1, 0.3)}
    heat = pictures.matrix(gaps, title="t").data[0]
    assert [list(row) for row in heat.z[:2]] == [[None, 1.0, 0.0], [-1.0, None, None]]
    assert heat.text[0][1] == "+10.0<br>[+2.0, +20.0]" and heat.text[0][0] == ""
