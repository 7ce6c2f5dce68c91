"""A stopped run goes on as if nothing had happened: the same rows, losses, samples and weights, bit for bit.

In every stage, in fp32 with one thread: stopped by its event, by an interrupt or by a kill of its process, within the
first epoch, at its border, in a later one, within a look at held-out data, and in DPO's pass of the reference.
"""

import json
import os
import signal
import subprocess
import sys
import threading
from importlib import import_module
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from labkit import models, rollouts, runs
from labkit.background import Training
from labkit.config import STAGES
from labkit.stages import dpo

WORDS = ["river", "stone", "lamp"]
STEPS, EVERY, BATCH = 6, 3, 4  # nine rows to learn: an epoch's border within step 3, another within step 5
CASES = {
    "pretrain": ("pretrain", {"corpus": "texts.txt", "block_size": 16}),
    "muon": ("pretrain", {"corpus": "texts.txt", "block_size": 16, "optimizer": "muon"}),
    "sft": ("sft", {"data": "sft.jsonl", "replay": 0.0}),
    "sft by LoRA": ("sft", {"data": "sft.jsonl", "replay": 0.0, "tuning": "lora", "lora_dropout": 0.2}),
    "reward": ("reward", {"data": "pairs.jsonl"}),
    "dpo": ("dpo", {"data": "pairs.jsonl"}),
    "dpo by LoRA": ("dpo", {"data": "pairs.jsonl", "tuning": "lora"}),
    "orpo": ("orpo", {"data": "pairs.jsonl"}),
    "ppo": ("ppo", {"data": "pairs.jsonl", "kl_target": 0.5}),
    "rloo": ("ppo", {"data": "pairs.jsonl", "algorithm": "rloo"}),
    "grpo": ("ppo", {"data": "pairs.jsonl", "algorithm": "grpo"}),
}


@pytest.fixture(scope="module", autouse=True)
def exact():
    """One thread, as in the processes below: sums are then made in one order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def in_fp32(monkeypatch):
    monkeypatch.setattr(models, "bf16", lambda: False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("resume")
    texts = [f"{a} {b}" for a in WORDS for b in WORDS] + ["dog"]
    rows = [{"prompt": f"Say {text}", "answer": f"{text}." * (1 + n % 3)} for n, text in enumerate(texts)]
    pairs = [{"prompt": r["prompt"], "chosen": r["answer"], "rejected": r["answer"] + " I hope."} for r in rows]
    for name, content in (("sft", rows), ("pairs", pairs)):
        (root / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))
    (root / "texts.txt").write_text(
        "\n\n".join(f"{a} {b} {c} {b} {a} {c}." for a in WORDS for b in WORDS for c in WORDS)
    )
    tokenizer = models.train_tokenizer([f"{row['prompt']}. {row['rejected']}" for row in pairs], 300)
    models.new_model(tokenizer, hidden_size=32, layers=2, heads=2, seed=0).save_pretrained(root / "model")
    tokenizer.save_pretrained(root / "model")
    return root


def length(prompts: list[str], texts: list[str]) -> torch.Tensor:
    """A reward that needs no model."""
    return torch.tensor([len(text) / 10 for text in texts])


def configuration(folder: Path, case: str):
    stage, knobs = CASES[case]
    knobs = {name: str(folder / value) if name in ("data", "corpus") else value for name, value in knobs.items()}
    few = {"steps": STEPS, "eval_every": EVERY, "batch_size": BATCH, "learning_rate": 3e-3, "warmup_steps": 2}
    if stage == "ppo":
        few |= {"max_new_tokens": 6, "minibatch_size": 2, "epochs": 2, "reward": rollouts.name_of(length)}
        few |= {"generations": 2} if "algorithm" in knobs else {}
    return STAGES[stage](model=str(folder / "model"), **{**few, **knobs})


def train(folder: Path, case: str, stop=None, at_look=None) -> runs.Run:
    """The stage itself with the panel's samples at every look; at_look(run) is called after them."""
    stage, config = CASES[case][0], configuration(folder, case)
    sampler = Training(stage, config, [] if stage == "reward" else ["Say dog", "Say river stone"])

    def look(run, model, tokenizer):
        sampler._look(run, model, tokenizer)
        if at_look is not None:
            at_look(run)

    start = () if stage == "pretrain" else (folder / "model", "tiny")
    more = {"reward_function": length} if stage == "ppo" else {}
    return import_module(f"labkit.stages.{stage}").train(
        config, *start, say=lambda line: None, stop=stop, at_look=look, **more
    )


def content(run: runs.Run) -> dict:
    """All that must be the same, and nothing that tells the time."""
    untimed = [{name: v for name, v in row.items() if "seconds" not in name} for row in run.history()]
    metrics = {name: v for name, v in run.metrics.items() if "seconds" not in name}
    samples = [json.loads(line) for line in (run.path / "samples.jsonl").read_text().splitlines()]
    first = run.path / "first_batch.json"
    weights = {file.name: load_file(file) for file in run.checkpoint.glob("*.safetensors")}
    batch = first.read_text() if first.exists() else ""
    return {
        "history": untimed, "metrics": metrics, "samples": samples, "first_batch": batch,
        "alarms": run.info["alarms"], "status": run.status, "weights": weights,
    }  # fmt: skip


def check_same(found: dict, wanted: dict) -> None:
    for name in wanted.keys() - {"weights"}:
        assert found[name] == wanted[name], name
    assert found["weights"].keys() == wanted["weights"].keys() and found["weights"]
    for file, tensors in wanted["weights"].items():
        for name, tensor in tensors.items():
            assert torch.equal(found["weights"][file][name], tensor), name


@pytest.fixture(scope="module")
def undisturbed(folder, tmp_path_factory):
    """case -> what a run that nothing disturbs leaves behind."""
    found = {}

    def of(case: str) -> dict:
        if case not in found:
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("LABKIT_RUNS", str(tmp_path_factory.mktemp("undisturbed")))
                patch.setattr(models, "bf16", lambda: False)
                found[case] = content(train(folder, case))
        return found[case]

    return of


def stop_at(step: int, how: str, stop: threading.Event):
    """Called with each step that is logged: does what stops a training as soon as `step` is."""

    def act(now: int) -> None:
        if now == step and not stop.fired:
            stop.fired = True
            if how == "event":
                stop.set()
            elif how == "interrupt":
                signal.raise_signal(signal.SIGINT)
            else:
                raise KeyboardInterrupt

    return act


def disturbed(folder, case, monkeypatch, step: int, how: str, in_look: bool = False) -> runs.Run:
    """Stop the case at a step, or within the look at it, and go on until the end."""
    stop = threading.Event()
    stop.fired = False
    act = stop_at(step, how, stop)
    log = runs.Run.log
    if not in_look:

        def acting(run, now, **numbers):
            log(run, now, **numbers)
            if "loss" in numbers:
                act(now)

        monkeypatch.setattr(runs.Run, "log", acting)
    at_look = (lambda run: act(run.history()[-1]["step"])) if in_look else None
    try:
        stopped = train(folder, case, stop, at_look)
    except KeyboardInterrupt:
        (stopped,) = runs.all_runs()
        assert how != "event"
    assert stop.fired and stopped.status == "stopped"
    stop.clear()
    again = train(folder, case, stop)
    assert again.id == stopped.id
    return again


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("step", [1, 3, 4])
def test_a_stop_changes_nothing(folder, store, undisturbed, monkeypatch, case, step):
    how = {1: "event", 3: "interrupt", 4: "event"}[step]
    check_same(content(disturbed(folder, case, monkeypatch, step, how)), undisturbed(case))


LOOKS = [(3, "event", case) for case in CASES]  # in the middle of each, and at both ends of those that look otherwise
LOOKS += [
    (step, how, case) for step, how in ((0, "event"), (6, "raise")) for case in ("pretrain", "dpo", "ppo", "grpo")
]


@pytest.mark.parametrize(("step", "how", "case"), LOOKS)
def test_a_stop_within_a_look_changes_nothing(folder, store, undisturbed, monkeypatch, case, step, how):
    check_same(content(disturbed(folder, case, monkeypatch, step, how, in_look=True)), undisturbed(case))


@pytest.mark.parametrize("case", ["sft", "orpo", "ppo"])
def test_an_interrupt_amid_a_step_keeps_nothing_half_done(folder, store, undisturbed, monkeypatch, case):
    """Raised where no handler can put it off: training goes on from the last checkpoint before."""
    check_same(content(disturbed(folder, case, monkeypatch, 5, "raise")), undisturbed(case))


@pytest.mark.parametrize("tuning", ["dpo", "dpo by LoRA"])
def test_a_stop_in_the_reference_pass_changes_nothing(folder, store, undisturbed, monkeypatch, tuning):
    stop, calls = threading.Event(), []
    plain = dpo.trl.DPOTrainer.compute_ref_log_probs

    def second(*batch):
        calls.append(1)
        if len(calls) == 2:
            stop.set()
        return plain(*batch)

    monkeypatch.setattr(dpo.trl.DPOTrainer, "compute_ref_log_probs", second)
    with pytest.raises(dpo.Stopped):
        train(folder, tuning, stop)
    stop.clear()
    check_same(content(train(folder, tuning, stop)), undisturbed(tuning))


CHILD = """
import json, os, signal, sys
import torch
torch.set_num_threads(1)
from labkit import models, runs
models.bf16 = lambda: False
sys.path.insert(0, sys.argv[1])
import test_resume
log = runs.Run.log
def dying(run, now, **numbers):
    log(run, now, **numbers)
    if now == int(sys.argv[4]) and "loss" in numbers:
        os.kill(os.getpid(), signal.SIGKILL)
runs.Run.log = dying
from pathlib import Path
test_resume.train(Path(sys.argv[2]), sys.argv[3])
"""


@pytest.mark.parametrize(("case", "step"), [("sft by LoRA", 2), ("dpo", 5), ("ppo", 5)])
def test_a_kill_changes_nothing(folder, store, undisturbed, case, step):
    command = [sys.executable, "-c", CHILD, str(Path(__file__).parent), str(folder), case, str(step)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == -signal.SIGKILL, done.stderr
    (killed,) = runs.all_runs()
    assert killed.status == "stopped" and killed.history()[-1]["step"] == step
    check_same(content(train(folder, case)), undisturbed(case))


def test_each_row_is_learned_as_often_as_the_others(folder, store, monkeypatch):
    """24 rows of nine: no row more than three times, none less than twice, whatever the stop."""
    seen = []
    from labkit.stages import sft

    plain = sft.Trainer.training_step

    def noting(trainer, model, inputs, *args):
        whole = zip(inputs["input_ids"], inputs["attention_mask"].bool(), strict=True)
        seen.extend(tuple(row[mask].tolist()) for row, mask in whole)
        return plain(trainer, model, inputs, *args)

    monkeypatch.setattr(sft.Trainer, "training_step", noting)
    run = disturbed(folder, "sft", monkeypatch, 5, "event")
    counts = [seen.count(row) for row in set(seen)]
    assert run.metrics["rows_seen"] == len(seen) == sum(counts) == STEPS * BATCH
    assert len(counts) == 9 and set(counts) == {2, 3}
    assert run.metrics["tokens_seen"] == sum(map(len, seen))
