"""Averages are means over tokens, or pairs, of all held-out rows: whatever the size of a batch, and as a plain loop.

In fp32: each stage's numbers of its first look, when the weights are the same, against one row after another.
"""

import json
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch

from labkit import data, models, preferences, rewards, runs
from labkit.config import STAGES
from labkit.stages import dpo, orpo, reward, sft

WORDS = ["river", "stone", "lamp", "house", "dog"]
SIZES = (1, 2, 4, 8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Rows of very different lengths: means of batches' means would be far off."""
    root = tmp_path_factory.mktemp("averages")
    rows = [
        {"prompt": f"Say {a} {b}", "answer": " ".join([f"{a} {b}."] * (1 + n * m % 7))}
        for n, a in enumerate(WORDS)
        for m, b in enumerate(WORDS)
    ]
    more = [{"prompt": f"{r['prompt']} again {k}", "answer": r["answer"]} for k in range(6) for r in rows]
    pairs = [{"prompt": r["prompt"], "chosen": r["answer"], "rejected": f"I hope {r['answer']}"} for r in more]
    for name, content in (("sft", more), ("pairs", pairs)):
        (root / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))
    (root / "texts.txt").write_text("\n\n".join(f"{r['prompt']}. {r['answer']}" for r in more))
    tokenizer = models.train_tokenizer([f"{row['prompt']}. {row['rejected']}" for row in pairs], 300)
    models.new_model(tokenizer, hidden_size=32, layers=2, heads=2, seed=0).save_pretrained(root / "model")
    tokenizer.save_pretrained(root / "model")
    return root


@pytest.fixture(autouse=True)
def in_fp32(monkeypatch):
    monkeypatch.setattr(models, "bf16", lambda: False)


CASES = {
    "pretrain": {"corpus": "texts.txt", "block_size": 16},
    "sft": {"data": "sft.jsonl", "replay": 0.0},
    "reward": {"data": "pairs.jsonl", "center_rewards_coefficient": 0.3},
    "orpo": {"data": "pairs.jsonl"},
}
LOSSES = ("sigmoid", "ipo", "mpo", "aot")
CASES |= {f"dpo {name}": {"data": "pairs.jsonl", "loss_type": name, "beta": 0.4} for name in LOSSES}


def trained(folder, case: str, batch_size: int, **more) -> runs.Run:
    stage = case.split()[0]
    knobs = {name: str(folder / v) if name in ("data", "corpus") else v for name, v in CASES[case].items()}
    few = {"steps": 2, "eval_every": 2, "batch_size": batch_size, "learning_rate": 3e-3, "warmup_steps": 0}
    config = STAGES[stage](model=str(folder / "model"), **{**few, **knobs, **more})
    start = () if stage == "pretrain" else (folder / "model", "tiny")
    return import_module(f"labkit.stages.{stage}").train(config, *start, say=lambda line: None)


def look(run: runs.Run, which: int = 0) -> dict[str, float]:
    """The held-out numbers of its first, or last, look; what is sampled left out."""
    rows = [row for row in run.history() if "held_out_loss" in row]
    return {name: value for name, value in rows[which].items() if name.startswith("held_out")}


@pytest.mark.parametrize("case", CASES)
def test_no_batch_size_changes_an_average(folder, store, case):
    found = [look(trained(folder, case, size)) for size in SIZES]
    assert len(found[0]) >= (1 if case in ("pretrain", "sft") else 4)
    for numbers in found[1:]:
        assert numbers == pytest.approx(found[0], rel=1e-6, abs=1e-6)


@torch.no_grad()
def nats(model, ids: list[int], labels: list[int]) -> tuple[float, int]:
    """Minus log p of a row's labels, one token after another."""
    log_p = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    places = [place for place in range(1, len(ids)) if labels[place] != data.IGNORED]
    return -sum(log_p[place - 1, labels[place]].item() for place in places), len(places)


def test_sft_is_the_mean_of_all_tokens(folder, store):
    run = trained(folder, "sft", 4)
    model, tokenizer = models.load(run.checkpoint)
    _, held_out = data.instructions(str(folder / "sft.jsonl"))
    rows = data.chat_rows(tokenizer, held_out, loss_on="answer", max_length=1024)
    sums = [nats(model, row["input_ids"], row["labels"]) for row in rows]
    assert len({n for _, n in sums}) > 1  # of different lengths
    assert look(run, -1)["held_out_loss"] == pytest.approx(sum(n for n, _ in sums) / sum(t for _, t in sums), rel=1e-6)


def of_pairs(model, tokenizer, rows) -> dict[str, torch.Tensor]:
    """Columns of pairs, one answer after another."""
    columns = {name: [] for name in ("chosen", "rejected", "chosen_tokens", "rejected_tokens")}
    for row in preferences.tokens(rows, tokenizer):
        for side in ("chosen", "rejected"):
            ids = [*row["prompt_ids"], *row[f"{side}_ids"]]
            labels = [data.IGNORED] * len(row["prompt_ids"]) + list(row[f"{side}_ids"])
            total, number = nats(model, ids, labels)
            columns[side].append(-total)
            columns[f"{side}_tokens"].append(number)
    return {name: torch.tensor(values, dtype=torch.float64) for name, values in columns.items()}


@pytest.mark.parametrize("case", [case for case in CASES if case.startswith("dpo")])
def test_dpo_is_the_loss_of_all_pairs_together(folder, store, case):
    run = trained(folder, case, 4)
    _, held_out = preferences.pairs(str(folder / "pairs.jsonl"))
    (policy, tokenizer), (reference, _) = (models.load(where) for where in (run.checkpoint, folder / "model"))
    now, before = (of_pairs(model, tokenizer, held_out) for model in (policy, reference))
    p = dpo.LogProbs(**now, ref_chosen=before["chosen"], ref_rejected=before["rejected"])
    found = look(run, -1)
    assert found["held_out_loss"] == pytest.approx(dpo.loss_of(p, case.split()[1], 0.4).item(), rel=1e-5)
    assert found["held_out_margin"] == pytest.approx(0.4 * (p.c - p.r).mean().item(), rel=1e-4, abs=1e-5)
    assert found["held_out_pair_accuracy"] == (p.c > p.r).double().mean().item()


def test_orpo_is_the_loss_of_all_pairs_together(folder, store):
    run = trained(folder, "orpo", 4)
    _, held_out = preferences.pairs(str(folder / "pairs.jsonl"))
    columns = of_pairs(*models.load(run.checkpoint), held_out)
    nll = -columns["chosen"].sum() / columns["chosen_tokens"].sum()
    means = [(columns[side] / columns[f"{side}_tokens"]) for side in ("chosen", "rejected")]
    odds = means[0] - torch.log1p(-means[0].exp()) - means[1] + torch.log1p(-means[1].exp())
    loss = nll + run.config["beta"] * torch.log1p((-odds).exp()).mean()
    found = look(run, -1)
    assert found["held_out_loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert found["held_out_chosen_loss"] == pytest.approx(nll.item(), rel=1e-5)
    assert found["held_out_log_odds"] == pytest.approx(odds.mean().item(), rel=1e-4, abs=1e-5)


def test_the_reward_s_numbers_are_those_of_all_pairs(folder, store):
    run = trained(folder, "reward", 4)
    _, held_out = preferences.pairs(str(folder / "pairs.jsonl"))
    model = rewards.load(run)
    model.batch_size = 1
    chosen, rejected = (model(held_out["messages"], held_out[side]).double() for side in ("chosen", "rejected"))
    loss = torch.log1p((rejected - chosen).exp()).mean() + 0.3 * (chosen + rejected).square().mean()
    found = look(run, -1)
    assert found["held_out_loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert found["held_out_pair_accuracy"] == (chosen > rejected).double().mean().item()
    assert found["held_out_margin"] == pytest.approx((chosen - rejected).mean().item(), rel=1e-4, abs=1e-6)
    assert reward.loss_of(chosen, rejected, 0.3).item() == pytest.approx(loss.item())


@pytest.mark.parametrize("case", ["pretrain", "sft"])
def test_the_training_loss_is_a_mean_of_tokens_under_accumulation_too(folder, store, monkeypatch, case):
    """A step of eight rows in one batch or in four: the same loss, although rows differ in length."""
    found = []
    for parts in (1, 4):
        arguments = sft.training.arguments

        def split(config, run, parts=parts, arguments=arguments):
            made = arguments(config, run)
            made["per_device_train_batch_size"] //= parts
            return made | {"gradient_accumulation_steps": parts}

        with monkeypatch.context() as patch:
            patch.setattr(sft.training, "arguments", split)
            run = trained(folder, case, 8, retrain=True)
        found.append([row["loss"] for row in run.history() if "loss" in row])
        assert len(found[-1]) == 2
    assert found[1] == pytest.approx(found[0], rel=1e-5)


def test_orpo_s_formulas():
    """By hand: P = 0.8 and 0.5 have odds 4 and 1; -log sigmoid(log 4) = log 1.25."""
    chosen, rejected = torch.tensor([0.8]).log(), torch.tensor([0.5]).log()
    assert orpo.log_odds(chosen).exp().item() == pytest.approx(4.0, rel=1e-5)
    assert orpo.odds_ratio_loss(chosen, rejected).item() == pytest.approx(0.22314355, rel=1e-5)


TOGETHER = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import test_averages
from labkit import models
models.bf16 = lambda: False
for case in sys.argv[3:]:
    test_averages.trained(Path(sys.argv[2]), case, 4)
"""


def test_no_number_of_processes_changes_an_average(folder, store, tmp_path, monkeypatch):
    cases = ["pretrain", "sft", "reward", "orpo", "dpo ipo"]
    (tmp_path / "together.py").write_text(TOGETHER)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += [str(tmp_path / "together.py"), str(Path(__file__).parent), str(folder), *cases]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    two = {run.stage: look(run) for run in runs.all_runs()}
    monkeypatch.setenv("LABKIT_RUNS", str(tmp_path / "one"))
    for case in cases:
        assert two[case.split()[0]] == pytest.approx(look(trained(folder, case, 4)), rel=1e-6, abs=1e-6), case
