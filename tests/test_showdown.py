"""The showdown's arithmetic by hand, and its trainings with the tiny model."""

import dataclasses
import json
import math
import os
import types
from pathlib import Path

import pytest

from labkit import models, pipeline, preferences, showdown
from labkit.config import ShowdownConfig, sized
from labkit.errors import ConfigError, DataError, TrainingError

LENGTH = {"prompt": 10.0, "chosen": 5.0, "rejected": 15.0}


def test_token_passes_by_hand():
    found = showdown.passes(LENGTH)
    assert found["SFT on chosen"] == 3 * 15
    assert found["ORPO"] == found["reward model"] == 3 * (15 + 25)
    assert found["DPO"] == 4 * (15 + 25)
    assert found["PPO"] == found["RLOO"] == (4 + 3 * 2) * (10 + 10)
    assert showdown.passes(LENGTH, sampled=30.0)["PPO"] == 10 * (10 + 30)


def test_plan_spends_the_budget_and_no_more():
    steps = showdown.plan(100_000, LENGTH, pairs=3000)
    each = showdown.passes(LENGTH)
    for method, taken in steps.items():
        share = 2 if method in ("reward model", "PPO", "RLOO") else 1
        cost = each[method] * showdown.BATCH[method]
        assert taken * cost <= 100_000 / share < (taken + 1) * cost


def test_a_pair_that_comes_again_costs_dpo_no_second_pass_of_the_reference():
    pair, batch = 3 * (2 * 10 + 20), showdown.BATCH["DPO"]
    steps = showdown.plan(100_000, LENGTH, pairs=100)["DPO"]
    assert steps > showdown.plan(100_000, LENGTH, pairs=3000)["DPO"]
    seen = steps * batch
    assert seen * pair + 100 * pair / 3 <= 100_000 < (seen + batch) * pair + 100 * pair / 3
    run = types.SimpleNamespace(config={"steps": steps}, history=list)
    assert showdown.spent("DPO", run, LENGTH, 100) == pytest.approx(seen * pair + 100 * pair / 3)
    assert showdown.spent("DPO", run, LENGTH, 10**6) == pytest.approx(seen * pair * 4 / 3)


def test_a_budget_too_small_is_refused_and_the_least_is_named():
    with pytest.raises(ConfigError, match="budget") as error:
        showdown.plan(1000, LENGTH, pairs=3000)
    least = int(str(error.value).split("Write ")[1].split()[0])
    assert min(showdown.plan(least, LENGTH, pairs=3000).values()) == 1


def test_lengths_are_those_of_the_chat_format():
    _, tokenizer = models.load("smoke")
    few = preferences.pairs("lab")[0].select([0])
    found = showdown.lengths(tokenizer, few)
    said = [*few[0]["messages"], {"role": "assistant", "content": few[0]["chosen"]}]
    whole = tokenizer.apply_chat_template(said, return_dict=True)["input_ids"]
    assert found["prompt"] + found["chosen"] == pytest.approx(len(whole), abs=1)  # a line break may follow the end


def test_chosen_file_holds_the_chosen_answers(store, tmp_path):
    own = tmp_path / "own.jsonl"
    pairs = [{"prompt": f"{n}?", "chosen": "Yes.", "rejected": "No."} for n in range(800)]
    own.write_text("\n".join(map(json.dumps, pairs)))
    lines = [json.loads(line) for line in Path(showdown.chosen_file(str(own))).read_text().splitlines()]
    assert len(lines) == 792 and all(line["answer"] == "Yes." and set(line) == {"prompt", "answer"} for line in lines)
    turns = [{"role": role, "content": text} for role, text in (("user", "a"), ("assistant", "b"), ("user", "c?"))]
    own.write_text("\n".join(map(json.dumps, [pair | {"prompt": turns} for pair in pairs[:4]])))
    with pytest.raises(DataError, match="several turns"):
        showdown.chosen_file(str(own))


def test_every_method_from_the_same_parent(store):
    config = sized(ShowdownConfig(model="smoke", budget=20_000))
    parent = pipeline.default_run("sft", "smoke", 0, say=lambda line: None)
    _, tokenizer = models.load(parent.checkpoint)
    pairs = preferences.pairs("lab")[0]
    length = showdown.lengths(tokenizer, pairs)
    said, steps = [], showdown.plan(config.budget, length, len(pairs))
    found = showdown.train_all(config, parent.id, steps, said.append)
    assert list(found) == ["reward model", "SFT on chosen", "DPO", "ORPO", "PPO", "RLOO"] and len(said) == 6
    for method, (run,) in found.items():
        assert run.status == "finished" and run.parent == parent.id and run.config["steps"] == steps[method]
        if method not in showdown.WITH_REWARD:
            assert showdown.spent(method, run, length, len(pairs)) <= config.budget
    rewarded = [found[method][0] for method in showdown.WITH_REWARD]
    assert {run.config["reward"] for run in rewarded} == {found["reward model"][0].id}
    assert [run.config["algorithm"] for run in rewarded] == ["ppo", "rloo"]
    rates = {run.config["learning_rate"] for name, (run,) in found.items() if name != "reward model"}
    assert rates == {config.learning_rate}
    for (run,) in found.values():
        assert 0 < showdown.seconds(run) < math.inf
    assert found["DPO"][0].metrics["reference_seconds"] > 0
    ppo = found["PPO"][0]  # random words up to the limit, far longer than the pairs' answers
    assert showdown.spent("PPO", ppo, length, len(pairs)) > ppo.config["steps"] * 32 * showdown.passes(length)["PPO"]


def test_a_training_in_a_process_of_its_own(store, monkeypatch):
    parent = pipeline.default_run("sft", "smoke", 0, say=lambda line: None).id
    config = showdown.training(ShowdownConfig(model="smoke"), "SFT on chosen", 2, 5, parent)
    run = pipeline.train_apart("sft", config)
    assert run.status == "finished" and run.info["seed"] == 5 and run.info["pid"] != os.getpid()
    monkeypatch.setattr(pipeline.sys, "executable", "false")
    assert pipeline.train_apart("sft", config).id == run.id  # found in the store: no process
    with pytest.raises(TrainingError, match="sft did not finish"):
        pipeline.train_apart("sft", dataclasses.replace(config, seed=6))
