"""Benchmarks: the scores are the harness's own, they are kept beside the run, and what cannot be had is said."""

import json
import os
import subprocess
import sys

import pytest
from datasets import Dataset

from labkit import models
from labkit.errors import ConfigError
from labkit.evaluate import benchmarks, choices, leaderboard


@pytest.fixture(scope="module")
def smoke():
    return models.load("smoke", seed=0)


@pytest.mark.parametrize(("task", "chat"), [("lab_mmlu", False), ("lab_mmlu", True)])
def test_scores_equal_those_of_the_harness_command_line(smoke, tmp_path, task, chat):
    """To the last digit, standard errors included."""
    model, tokenizer = smoke
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    line = benchmarks.command(tmp_path / "model", task, limit=12, chat=chat)
    command = [sys.executable, "-m", "lm_eval", *line, "--output_path", str(tmp_path / "out")]
    subprocess.run(command, env={**os.environ, "HF_DATASETS_OFFLINE": "1"}, check=True, capture_output=True)
    [file] = (tmp_path / "out").rglob("results*.json")
    theirs = json.loads(file.read_text())["results"][task]
    ours = benchmarks.evaluate(model, tokenizer, [task], limit=12, chat=chat)[task]["metrics"]
    for name in ("acc", "acc_norm"):
        assert ours[name] == [theirs[f"{name},none"], theirs[f"{name}_stderr,none"]]


def test_results_have_every_item_their_errors_and_what_guessing_gives(smoke):
    found = benchmarks.evaluate(*smoke, ["lab_mmlu", "lab_hellaswag"], limit=10)
    assert list(found) == ["lab_mmlu", "lab_hellaswag"]
    for one in found.values():
        assert one["items"] == 10 and one["random"] == 0.25
        for name in ("acc", "acc_norm"):
            right = one["correct"][name]
            share, error = one["metrics"][name]
            assert len(right) == 10 and share == pytest.approx(sum(right) / 10)
            assert error == pytest.approx((share * (1 - share) / 9) ** 0.5)


def test_likelihoods_agree_with_the_labs_own_multiple_choice(smoke):
    """acc_norm by the second implementation, evaluate.choices, on the same text."""
    model, tokenizer = smoke
    from labkit.evaluate import items

    right = benchmarks.evaluate(model, tokenizer, ["lab_hellaswag"], limit=20)["lab_hellaswag"]["correct"]["acc_norm"]
    few = items.made("hellaswag")[:20]
    found = 0
    for one, theirs in zip(few, right, strict=True):
        scores = []
        for choice in one["choices"]:
            asked = tokenizer(one["question"], add_special_tokens=False)["input_ids"]
            ids = tokenizer(f"{one['question']} {choice}", add_special_tokens=False)["input_ids"]
            total, _ = choices.token_losses(model, [ids], [len(asked)])
            scores.append(-total[0] / len(choice))
        found += (max(range(4), key=scores.__getitem__) == one["answer"]) == theirs
    assert found >= 19  # one near tie may fall either way in another batch


def test_programs_are_judged_in_the_sandbox_and_a_random_model_writes_none(smoke):
    found = benchmarks.evaluate(*smoke, ["lab_functions"], limit=2)["lab_functions"]
    assert found["metrics"]["pass@1"] == [0.0, 0.0] and found["random"] == 0.0


def test_results_are_kept_and_found_again(smoke, tmp_path, monkeypatch):
    first = benchmarks.evaluate(*smoke, ["lab_mmlu"], folder=tmp_path, limit=4)
    monkeypatch.setattr(benchmarks, "_run", None)  # nothing is run any more
    assert benchmarks.evaluate(None, None, ["lab_mmlu"], folder=tmp_path, limit=4) == first
    with pytest.raises(AttributeError):  # there is no model to ask
        benchmarks.evaluate(None, None, ["lab_mmlu"], folder=tmp_path, limit=5)
    monkeypatch.setattr(benchmarks, "version", lambda name: "0.0")
    assert benchmarks.read(tmp_path) == {}


def test_results_of_other_items_are_not_found_again(monkeypatch):
    before, theirs = benchmarks.key("lab_mmlu", 4, False), benchmarks.key("mmlu", 4, False)
    benchmarks._items_hash.cache_clear()
    made = {"test": Dataset.from_list([{"question": "another"}])}
    monkeypatch.setitem(benchmarks.DATASETS, "lab_mmlu", lambda: made)
    after = benchmarks.key("lab_mmlu", 4, False)
    benchmarks._items_hash.cache_clear()
    assert before != after and before.startswith("lab_mmlu, first 4, plain, items ")
    assert theirs == f"mmlu, first 4, plain, lm-eval {benchmarks.version('lm-eval')}"


def test_of_several_filters_the_first_counts():
    """As of gsm8k, which reads each answer in two ways and logs every item twice."""
    rows = [
        {"filter": name, "exact_match": value, "arguments": []}
        for name, right in (("strict", [1.0, 0.0]), ("flexible", [1.0, 1.0]))
        for value in right
    ]
    numbers = {"alias": "t", "exact_match,strict": 0.5, "exact_match_stderr,strict": 0.5, "exact_match,flexible": 1.0,
               "exact_match_stderr,flexible": 0.0}  # fmt: skip
    found = {"samples": {"t": rows}, "results": {"t": numbers}, "configs": {"t": {"output_type": "generate_until"}}}
    one = benchmarks._result(found, "t")
    assert one["metrics"] == {"exact_match": [0.5, 0.5]} and one["items"] == 2
    assert one["correct"] == {"exact_match": [1.0, 0.0]}
    with pytest.raises(ConfigError, match=r"one of acc_norm, acc, pass@1; got \['exact_match'\]"):
        leaderboard.metric(one)


def test_what_cannot_be_had_is_said(smoke):
    with pytest.raises(ConfigError, match="task must be one of the lab's"):
        benchmarks.evaluate(*smoke, ["lab_mmul"])
    with pytest.raises(benchmarks.BenchmarkError, match=r"hellaswag must be reachable.*huggingface\.co"):
        benchmarks.evaluate(*smoke, ["hellaswag"])


def test_the_harness_is_imported_late():
    code = "import labkit.evaluate.benchmarks, labkit.evaluate.leaderboard, sys; print('lm_eval' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


def test_the_labs_tasks_are_those_of_the_folder():
    assert sorted(benchmarks.DATASETS) == [file.stem for file in sorted(benchmarks.TASKS.glob("*.yaml"))]
