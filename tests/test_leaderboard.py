"""The leaderboard: normalised as published, ranks parted only where the items part them."""

import json

import numpy as np
import pytest

from labkit import runs
from labkit.config import RewardConfig, SFTConfig
from labkit.errors import ConfigError
from labkit.evaluate import benchmarks, leaderboard


def result(right, random=0.25, name="acc_norm"):
    return {"metrics": {name: [float(np.mean(right)), 0.0]}, "random": random, "items": len(right),
            "correct": {name: [float(one) for one in right]}}  # fmt: skip


def test_scores_are_normalised_over_guessing():
    """Values by hand, as Open LLM Leaderboard 2 explains them."""
    assert leaderboard.normalised(1.0, 0.25) == 100 and leaderboard.normalised(0.25, 0.25) == 0
    assert leaderboard.normalised(0.1, 0.25) == 0 and leaderboard.normalised(0.5, 0.25) == pytest.approx(100 / 3)
    assert leaderboard.normalised(0.5, 0.0) == 50
    results = {"a": result([1, 1, 0, 0]), "b": result([1, 0], random=0.0, name="pass@1")}
    assert leaderboard.score(results) == pytest.approx((100 / 3 + 50) / 2)
    with pytest.raises(ConfigError, match="at least one task"):
        leaderboard.score({})


def test_a_group_counts_as_one_task():
    """Values by hand: three subjects and a task of one piece; each subject is normalised by itself."""
    subjects = {
        f"subject {n}": result(right, name="acc") for n, right in enumerate([[1, 1], [1, 1, 1, 0], [0, 0, 0, 0]])
    }
    group = {"metrics": {"acc": [0.5, 0.1]}, "random": 0.25, "items": 10, "parts": subjects}
    results = {"group": group, "other": result([0, 1], random=0.0, name="pass@1")}
    assert leaderboard.score(results) == pytest.approx(((100 + 200 / 3 + 0) / 3 + 50) / 2)
    assert leaderboard.metric(group) == "acc" and leaderboard.share(group) == 0.5
    assert leaderboard.share({**group, "metrics": {}}) == pytest.approx(1.75 / 3)
    assert leaderboard.table({"one": results})[0]["group"] == 0.5
    mixed = {**group, "parts": {**subjects, "subject 3": result([1], name="exact_match")}}
    with pytest.raises(ConfigError, match="one of acc_norm, acc, pass@1"):
        leaderboard.metric(mixed)
    fewer = {"group": {**group, "parts": {**subjects, "subject 0": result([1], name="acc")}}, "other": results["other"]}
    with pytest.raises(ConfigError, match="same items"):
        leaderboard.difference(results, fewer)


def test_the_interval_of_a_group_gives_each_task_the_same_weight():
    """57 subjects that two models share, and one task in which they differ: the gap is half the task's own."""
    rng = np.random.default_rng(0)
    subjects = {f"subject {n}": result(rng.random(20) < 0.6) for n in range(57)}
    group = {"metrics": {}, "random": 0.25, "items": 57 * 20, "parts": subjects}
    first, second = rng.random(300) < 0.8, rng.random(300) < 0.5
    alone = leaderboard.difference({"a": result(first)}, {"a": result(second)})
    both = leaderboard.difference({"a": result(first), "g": group}, {"a": result(second), "g": group})
    assert both[0] == pytest.approx(alone[0] / 2) and both[1:] == pytest.approx(np.array(alone[1:]) / 2, rel=0.1)
    scores = leaderboard.redrawn({"a": result(first), "g": group})
    assert scores.mean() == pytest.approx(leaderboard.score({"a": result(first), "g": group}), abs=0.5)


def test_a_difference_is_paired():
    """Two models that fail on the same items but one are closer known than two that fail on different ones."""
    rng = np.random.default_rng(0)
    first = rng.random(200) < 0.6
    nearly = first.copy()
    nearly[np.flatnonzero(first)[:10]] = False
    gap, low, high = leaderboard.difference({"a": result(first)}, {"a": result(nearly)})
    assert gap == pytest.approx(100 * 0.05 / 0.75) and 0 < low < gap < high < 13
    other = rng.permutation(nearly)
    _, low, _ = leaderboard.difference({"a": result(first)}, {"a": result(other)})
    assert low < 0
    assert leaderboard.difference({"a": result(first)}, {"a": result(first)}) == (0, 0, 0)


def test_intervals_hold_the_truth():
    """Of differences between models of known accuracy, about 95% lie in their intervals."""
    rng, inside = np.random.default_rng(1), 0
    for _ in range(200):
        first, second = rng.random(150) < 0.7, rng.random(150) < 0.6
        _, low, high = leaderboard.difference({"a": result(first)}, {"a": result(second)}, draws=400)
        inside += low <= 100 * 0.1 / 0.75 <= high
    assert 180 <= inside <= 199


def test_ranks_are_shared_where_they_are_not_apart():
    rng = np.random.default_rng(2)
    strong = rng.random(300) < 0.9
    near = strong.copy()
    near[:2] = ~near[:2]
    weak = rng.random(300) < 0.4
    rows = leaderboard.table(
        {"weak": {"a": result(weak)}, "strong": {"a": result(strong)}, "near": {"a": result(near)}}
    )
    assert [row["rank"] for row in rows] == [1, 1, 3] and rows[2]["model"] == "weak"
    assert [row["apart"] for row in rows] == ["", "no", "yes"]
    assert [row["score"] for row in rows] == sorted((row["score"] for row in rows), reverse=True)


def test_a_rank_counts_all_that_are_surely_better():
    """Each step down is within noise, the whole staircase is not: the last does not share the first's rank."""
    before, after = [1] * 14 + [0] * 6, [0] * 14 + [1] * 6  # a step loses 14 items and wins 6 others
    stairs = {f"{n} down": [1] * 100 + [0] * 40 + after * n + before * (3 - n) for n in range(4)}
    rows = leaderboard.table({name: {"a": result(right)} for name, right in stairs.items()})
    assert [row["model"] for row in rows] == list(stairs) and {row["apart"] for row in rows} == {"", "no"}
    assert [row["rank"] for row in rows] == [1, 1, 2, 3]


def test_only_the_same_items_are_compared():
    with pytest.raises(ConfigError, match="same items"):
        leaderboard.difference({"a": result([1, 0])}, {"a": result([1, 0, 1])})
    with pytest.raises(ConfigError, match="same items"):
        leaderboard.difference({"a": result([1, 0])}, {"b": result([1, 0])})


def test_every_run_with_results_is_ranked(store):
    names = []
    for seed, right in ((0, [1, 1, 1, 0]), (1, [0, 1, 1, 0])):
        run = runs.open_run("sft", SFTConfig(model="smoke", seed=seed), parent="smoke").finish()
        kept = {benchmarks.key("lab_mmlu", 4, False): {"lab_mmlu": result(right)}}
        (run.path / benchmarks.FILE).write_text(json.dumps(kept))
        names.append(run.id)
    runs.open_run("sft", SFTConfig(model="smoke", seed=2), parent="smoke").finish()  # has none
    for folder in ("smol", "shipped-base/0123456789abcdef", "shipped-base/fedcba9876543210"):  # no runs of the store
        (store / folder).mkdir(parents=True)
        kept = {benchmarks.key("lab_mmlu", 4, False): {"lab_mmlu": result([0, 0, 0, 0])}}
        (store / folder / benchmarks.FILE).write_text(json.dumps(kept))
    names += ["shipped-base/01234567", "shipped-base/fedcba98", "smol"]
    found = leaderboard.stored(["lab_mmlu"], limit=4)
    assert sorted(found) == sorted(names)
    assert [row["model"] for row in leaderboard.table(found)][:2] == names[:2]
    assert leaderboard.stored(["lab_mmlu"]) == {}


def test_runs_that_could_be_ranked_and_are_not_are_named(store):
    """Neither one that is ranked, nor another model's, nor a reward model, nor one without a checkpoint."""
    made = {}
    for name, stage, config in (
        ("ranked", "sft", SFTConfig(model="smoke")), ("waits", "sft", SFTConfig(model="smoke", seed=1)),
        ("partly", "sft", SFTConfig(model="smoke", seed=2)), ("other model", "sft", SFTConfig(model="nano")),
        ("reward", "reward", RewardConfig(model="smoke")), ("empty", "sft", SFTConfig(model="smoke", seed=3)),
        ("unfinished", "sft", SFTConfig(model="smoke", seed=4)),
    ):  # fmt: skip
        made[name] = runs.open_run(stage, config, parent="smoke")
        if name != "empty":
            made[name].checkpoint.mkdir()
        if name != "unfinished":
            made[name].finish()
    for name, tasks in (("ranked", ("lab_mmlu", "lab_hellaswag")), ("partly", ("lab_mmlu",))):
        kept = {benchmarks.key(task, 4, False): {task: result([1, 0, 1, 1])} for task in tasks}
        (made[name].path / benchmarks.FILE).write_text(json.dumps(kept))
    found = leaderboard.waiting(["lab_mmlu", "lab_hellaswag"], "smoke", limit=4)
    assert [run.id for run in found] == [made["waits"].id, made["partly"].id]
    assert [run.id for run in leaderboard.waiting(["lab_mmlu"], "smoke", limit=4)] == [made["waits"].id]
