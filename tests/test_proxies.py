"""Pairs with a fault have that fault, and a reward model learns from them."""

import numpy as np
import pytest

from labkit import preferences, proxies, rewards
from labkit.config import GoodhartConfig
from labkit.errors import ConfigError, DataError


def shorter(rows):
    return np.mean([len(row["chosen"]) < len(row["rejected"]) for row in rows])


def test_the_fault_is_in_the_pairs():
    lab = {(row["prompt"], row["chosen"], row["rejected"]) for row in preferences.pairs("lab")[0]}
    for confound, low, high in (("none", 0.3, 0.7), ("shorter", 0.92, 0.98), ("longer", 0.02, 0.08)):
        rows = proxies.pairs(confound, 600)
        assert low < shorter(rows) < high and len(rows) == 600
        assert {tuple(row.values()) for row in rows} <= lab
    noisy = proxies.pairs("none", 600, noise=0.3)
    turned = [(row["prompt"], row["chosen"], row["rejected"]) not in lab for row in noisy]
    assert np.mean(turned) == pytest.approx(0.3, abs=0.06)  # three standard errors


def test_more_pairs_contain_the_fewer_and_seeds_differ():
    for confound, noise in (("none", 0.0), ("shorter", 0.0), ("none", 0.3), ("longer", 0.5)):
        few, many, other = (
            proxies.pairs(confound, count, noise=noise, seed=seed) for count, seed in ((32, 1), (64, 1), (32, 2))
        )
        assert many[:32] == few and few != other


def test_too_many_are_refused():
    with pytest.raises(DataError, match="pairs must be at most"):
        proxies.pairs("longer", 3000)
    with pytest.raises(ConfigError, match="pair_counts must be whole numbers"):
        GoodhartConfig(pair_counts="32,many")


def test_a_proxy_is_a_reward_model(store):
    config = GoodhartConfig(model="smoke", proxy_steps=2)
    run = proxies.train(config, 16, seed=0, say=lambda *_: None)
    assert run.stage == "reward" and run.config["steps"] == 2 and run.status == "finished"
    assert rewards.load(run)(["Who?", "Who?"], ["I.", "You."]).shape == (2,)
    said = []
    assert proxies.train(config, 16, seed=0, say=said.append).id == run.id and "already run" in said[-1]
