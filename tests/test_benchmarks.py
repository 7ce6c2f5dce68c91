"""Benchmarks: the scores are the harness's own, they are kept beside the run, and what cannot be had is said."""

import json
import os
import shutil
import subprocess
import sys
import types

import numpy as np
import pytest
from datasets import Dataset

from labkit import models
from labkit.errors import ConfigError
from labkit.evaluate import benchmarks, choices, leaderboard, sandbox


@pytest.fixture(scope="module")
def smoke():
    return models.load("smoke", seed=0)


@pytest.mark.parametrize(
    ("tasks", "chat"), [(["lab_mmlu", "lab_hellaswag", "lab_functions"], False), (["lab_mmlu"], True)]
)
def test_scores_equal_those_of_the_harness_command_line(smoke, tmp_path, tasks, chat):
    """To the last digit, standard errors included."""
    model, tokenizer = smoke
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    line = benchmarks.command(tmp_path / "model", ",".join(tasks), limit=4, chat=chat)
    command = [sys.executable, "-m", "lm_eval", *line, "--output_path", str(tmp_path / "out")]
    subprocess.run(command, env={**os.environ, "HF_DATASETS_OFFLINE": "1"}, check=True, capture_output=True)
    [file] = (tmp_path / "out").rglob("results*.json")
    theirs = json.loads(file.read_text())["results"]
    ours = benchmarks.evaluate(model, tokenizer, tasks, limit=4, chat=chat)
    assert list(ours) == tasks
    for task, one in ours.items():
        assert set(one["metrics"]) == ({"pass@1"} if task == "lab_functions" else {"acc", "acc_norm"})
        for name, found in one["metrics"].items():
            assert found == [theirs[task][f"{name},none"], theirs[task][f"{name}_stderr,none"]]


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


def test_a_model_of_a_short_context_may_write_half_of_it(smoke, tmp_path):
    """HumanEval allows 1,024 new tokens, all that the smoke model reads; the harness would stop at that."""
    model, tokenizer = smoke
    room = model.config.max_position_embeddings
    with pytest.warns(UserWarning, match=f"1,024 new tokens, and this model reads {room:,} in all: it may write 512"):
        benchmarks.evaluate(model, tokenizer, ["humaneval"], limit=1)
    model.save_pretrained(tmp_path)
    assert benchmarks.command(tmp_path, "humaneval")[-2:] == ["--gen_kwargs", "max_gen_toks=512"]
    longer = {**json.loads((tmp_path / "config.json").read_text()), "max_position_embeddings": 4096}
    (tmp_path / "config.json").write_text(json.dumps(longer))
    assert "--gen_kwargs" not in benchmarks.command(tmp_path, "humaneval")


def test_without_a_sandbox_no_code_is_asked_for(smoke, monkeypatch):
    monkeypatch.setattr(sandbox, "refusal", lambda: "no walls")
    with pytest.raises(benchmarks.BenchmarkError, match=r"lab_functions must have a sandbox.*no walls.*Leave it out"):
        benchmarks.evaluate(*smoke, ["lab_mmlu", "lab_functions"], limit=2)


@pytest.fixture
def group(tmp_path, monkeypatch):
    """A group of two of the lab's tasks, as mmlu is one of 57."""
    shutil.copytree(benchmarks.TASKS, tmp_path / "tasks")
    text = "group: pair\ntask: [lab_mmlu, lab_hellaswag]\naggregate_metric_list:\n  - metric: acc\n"
    (tmp_path / "tasks" / "pair.yaml").write_text(text)
    monkeypatch.setattr(benchmarks, "TASKS", tmp_path / "tasks")
    monkeypatch.setattr(benchmarks, "LAB_TASKS", (*benchmarks.LAB_TASKS, "pair"))
    benchmarks._manager.cache_clear()
    yield "pair"
    benchmarks._manager.cache_clear()


def test_a_group_has_its_own_result_and_its_parts(smoke, group, tmp_path):
    alone = benchmarks.evaluate(*smoke, ["lab_mmlu", "lab_hellaswag"], limit=10)
    found = benchmarks.evaluate(*smoke, [group], limit=10, folder=tmp_path)
    assert list(found) == [group] and found[group]["parts"] == alone and found[group]["items"] == 20
    own = np.mean([one["metrics"]["acc"][0] for one in alone.values()])
    assert found[group]["metrics"]["acc"][0] == pytest.approx(own) and "acc_norm" not in found[group]["metrics"]
    assert benchmarks.read(tmp_path) == {benchmarks.key(group, 10, False): found}
    old = {benchmarks.key(group, 10, False): alone}  # as an earlier version kept it
    (tmp_path / benchmarks.FILE).write_text(json.dumps(old))
    assert benchmarks.read(tmp_path) == {}


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
    assert "1024 new tokens" in benchmarks.key("humaneval", None, False)


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
    with pytest.raises(benchmarks.BenchmarkError, match=r"one of humaneval, lab_functions; got 'mbpp'.*sandbox"):
        benchmarks.evaluate(*smoke, ["mbpp"])
    marked = types.SimpleNamespace(UNSAFE_CODE=True)  # known only once it is loaded, as a group's tasks are
    entry = types.SimpleNamespace(cfg=None)
    index = types.SimpleNamespace(task_index={"any": entry}, load=lambda _: {"tasks": {"one": marked}})
    with pytest.raises(benchmarks.BenchmarkError, match="got 'any'"):
        benchmarks._run(None, index, "any", None, False)


def test_the_harness_is_imported_late():
    code = "import labkit.evaluate.benchmarks, labkit.evaluate.leaderboard, sys; print('lm_eval' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


def test_the_labs_tasks_are_those_of_the_folder():
    assert sorted(benchmarks.DATASETS) == [file.stem for file in sorted(benchmarks.TASKS.glob("*.yaml"))]
