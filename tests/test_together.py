"""Several processes that train together: the same losses as one, one run folder, a missing parent trained by all.

They are started by torchrun, on the CPU with gloo; a GPU's NCCL has not been tried.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from labkit import models, pipeline, runs
from labkit.config import DPOConfig, PPOConfig, RewardConfig
from labkit.errors import ConfigError

SHARED = {"steps": 6, "eval_every": 3, "batch_size": 4, "learning_rate": 1e-2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny model in a folder, instructions and pairs."""
    root = tmp_path_factory.mktemp("together")
    words = ["river", "stone", "lamp", "house", "dog", "cat"]  # no pass over them ends within six steps
    rows = [{"prompt": f"Say {a} {b}", "answer": f"{a} {b}."} for a in words for b in words]
    pairs = [{"prompt": r["prompt"], "chosen": r["answer"], "rejected": r["answer"] + " I hope."} for r in rows]
    for name, content in (("sft", rows), ("pairs", pairs)):
        (root / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))
    tokenizer = models.train_tokenizer([f"{row['prompt']} {row['answer']}" for row in rows], 320)
    models.new_model(tokenizer, hidden_size=32, layers=2, heads=2, seed=0).save_pretrained(root / "model")
    tokenizer.save_pretrained(root / "model")
    return root


def together(file: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*command, "-m", "labkit", "train", str(file)], capture_output=True, text=True, env=environment, timeout=120
    )


def looks(run: runs.Run) -> list[float]:
    """The losses on held-out data. A step's own may differ: rows of like length are put together in other batches."""
    return [row["held_out_loss"] for row in run.history() if "held_out_loss" in row]


@pytest.mark.parametrize("stage", ["sft", "dpo"])
def test_two_processes_train_what_one_trains(folder, tmp_path, monkeypatch, stage):
    model = str(folder / "model")
    data = {"data": str(folder / ("sft.jsonl" if stage == "sft" else "pairs.jsonl")), "parent": model}
    values = {"stage": stage, "model": model, **SHARED, **data, **({"tuning": "lora"} if stage == "sft" else {})}
    (tmp_path / "config.json").write_text(json.dumps(values))
    monkeypatch.setenv("LABKIT_RUNS", str(tmp_path / "two"))
    done = together(tmp_path / "config.json")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("done: ") == 1 and done.stdout.count("step     3/6") == 1
    (two,) = runs.all_runs()
    monkeypatch.setenv("LABKIT_RUNS", str(tmp_path / "one"))
    one = pipeline.train_stage(*_of(values), say=lambda line: None)
    assert (two.id, two.status) == (one.id, "finished") and (two.checkpoint / "tokenizer.json").exists()
    assert len(two.history()) == len(one.history()) and len(looks(two)) == 3
    assert looks(two)[-1] < 0.95 * looks(two)[0] and looks(two) == pytest.approx(looks(one), rel=0.005)


def _of(values: dict):
    from labkit.config import STAGES

    return values["stage"], STAGES[values["stage"]](**{name: v for name, v in values.items() if name != "stage"})


def test_a_missing_parent_is_trained_by_all_and_then_found(store, tmp_path):
    (tmp_path / "config.json").write_text(
        json.dumps({"stage": "reward", "model": "smoke", "steps": 2, "batch_size": 2})
    )
    done = together(tmp_path / "config.json")
    assert done.returncode == 0, done.stderr
    sft, reward = sorted(runs.all_runs(), key=lambda run: run.stage, reverse=True)
    assert (sft.status, reward.status, reward.parent) == ("finished", "finished", sft.id)


def test_what_cannot_be_done_together_is_refused_before_training(store, folder, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="ppo must be trained by one process; got 2"):
        pipeline.train_stage("ppo", PPOConfig(model="smoke"))
    config = RewardConfig(model=str(folder / "model"), parent=str(folder / "model"), batch_size=3)
    with pytest.raises(ConfigError, match="batch_size must divide among 2 processes; got 3"):
        pipeline.train_stage("reward", config)


def test_only_process_0_writes_the_run(store, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    run = runs.open_run("dpo", DPOConfig())
    run.log(1, loss=1.0)
    run.finish(accuracy=1.0)
    assert not list(run.path.iterdir())
    monkeypatch.setenv("RANK", "0")
    runs.open_run("dpo", DPOConfig()).log(1, loss=1.0)
    assert {file.name for file in run.path.iterdir()} == {"run.json", "metrics.jsonl"}


def test_a_number_of_processes_alone_is_no_rank(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setenv("RANK", "3")  # left over from something else
    assert (runs.rank(), runs.processes()) == (0, 1)
