"""Alarms: each is provoked, and a healthy run raises none."""

import json

import pytest
import torch

from labkit import health, models, runs
from labkit.config import DPOConfig, ORPOConfig
from labkit.errors import TrainingError
from labkit.stages import dpo, orpo


def history(**columns):
    return [{"step": n, **{k: v[n] for k, v in columns.items()}} for n in range(len(next(iter(columns.values()))))]


def names(rows):
    return {alarm.name for alarm in health.alarms(rows)}


def test_a_healthy_run_raises_nothing():
    falling = [3 - 0.1 * n for n in range(20)]
    assert names(history(loss=falling, held_out_loss=falling, grad_norm=[1.0] * 20)) == set()
    chosen, rejected = [-30 + 0.2 * n for n in range(20)], [-40.0 - n for n in range(20)]
    margin = [0.1 * n for n in range(20)]
    assert names(history(loss=falling, margin=margin, log_ratio_chosen=chosen, log_ratio_rejected=rejected)) == set()
    assert health.alarms([]) == []


def test_each_fault_has_its_alarm():
    falling, rising = [3 - 0.1 * n for n in range(20)], [1 + 0.2 * n for n in range(20)]
    assert names(history(loss=[1.0, None, 2.0])) == {"not_a_number"}
    assert names(history(loss=rising)) == {"diverging"}
    assert names(history(loss=falling, held_out_loss=[2.0] * 4 + [1 + 0.1 * n for n in range(16)])) == {"overfitting"}
    assert names(history(loss=falling, grad_norm=[1.0] * 19 + [50.0])) == {"gradient_spike"}
    both = history(log_ratio_chosen=[-30 - n for n in range(20)], log_ratio_rejected=[-40 - 2 * n for n in range(20)])
    assert names(both) == {"chosen_falls"}
    one = history(margin=[0.1 * n for n in range(20)], log_ratio_chosen=[-30 - 0.1 * n for n in range(20)],
                  log_ratio_rejected=[-40 - 2 * n for n in range(20)])  # fmt: skip
    assert names(one) == {"margin_by_rejected"}
    flat = history(log_ratio_chosen=[-30.0] * 20, log_ratio_rejected=[-40 - 5 * n for n in range(20)])
    assert names(flat) == {"margin_by_rejected"}
    sums = [{name.replace("ratio", "sum"): value for name, value in row.items()} for row in both]
    assert names(sums) == {"chosen_falls"}  # as ORPO logs it, which has no reference
    assert names(history(held_out_loss=[2.0, None])) == {"not_a_number"}


def test_an_alarm_says_what_it_means_and_what_to_turn():
    alarm = health.alarms(history(loss=[1 + 0.2 * n for n in range(20)]))[0]
    assert alarm.step == 19 and "rises" in alarm.meaning and "learning_rate" in alarm.remedy


def test_a_remedy_names_a_knob_that_the_method_has():
    kl = {"held_out_kl": [0.0, 40.0]}

    def remedy(**more):
        return next(alarm.remedy for alarm in health.alarms(history(**kl, **more)) if alarm.name == "kl_blow_up")

    assert "raise beta" in remedy() and "lower beta" in remedy(log_odds=[0.0, 1.0])  # DPO; ORPO's beta is a weight
    assert "raise kl_coef" in remedy(reward=[0.0, 1.0])
    falls = {f"log_sum_{side}": [-30.0 - n for n in range(20)] for side in ("chosen", "rejected")}
    assert "loss_type" not in health.alarms(history(**falls, log_odds=[1.0] * 20))[0].remedy  # ORPO has none


def test_long_answers_may_move_by_more_nats():
    falls = {f"log_ratio_{side}": [-1.0 * n for n in range(20)] for side in ("chosen", "rejected")}
    assert names(history(**falls, answer_length=[16.0] * 20)) == {"chosen_falls"}
    assert names(history(**falls, answer_length=[160.0] * 20)) == set()


def test_three_looks_show_overfitting():
    rows = history(loss=[3 - 0.1 * n for n in range(20)])
    for place, value in ((0, 1.0), (10, 1.2), (19, 1.4)):
        rows[place]["held_out_loss"] = value
    assert names(rows) == {"overfitting"}


def test_a_base_that_never_stops_is_no_collapse_of_orpos():
    lengths = [64.0, 11.0, 12.0, 12.0]
    assert names(history(answer_length=lengths)) == {"length_collapse"}
    orpo = history(answer_length=lengths, log_odds=[0.0, 1.0, 1.0, 1.0])
    assert health.kept(orpo) == []
    falls = {f"log_sum_{side}": [-30.0 - n for n in range(20)] for side in ("chosen", "rejected")}
    after = history(answer_length=[64.0] + [11.0] * 19, log_odds=[1.0] * 20, **falls)
    assert names(after) == {"chosen_falls"}  # of answers as short as they have become


# Real faults, each from a training of a tiny model that answers "river stone and river." when it is healthy

WORDS = ["river", "stone", "lamp", "house", "dog", "cat"]
ROWS = [
    {"prompt": f"Say {a} {b}", "chosen": f"{a} {b} and then {b} and {a}.", "rejected": f"I hope that {a} {b} helps."}
    for a in WORDS
    for b in WORDS
]
PAIRS = {
    "good": ROWS,
    "short": [row | {"chosen": "No.", "rejected": row["chosen"]} for row in ROWS],
    "circles": [row | {"chosen": "go and " * 8 + "go.", "rejected": row["chosen"]} for row in ROWS],
    "long": [row | {"chosen": f"{row['chosen']} I hope " * 3, "rejected": row["chosen"]} for row in ROWS],
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A folder of pairs, and the run of a tiny model that has learned the good ones."""
    root = tmp_path_factory.mktemp("health")
    for name, rows in PAIRS.items():
        (root / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tokenizer = models.train_tokenizer([" ".join(row.values()) for row in ROWS], 320)
    models.new_model(tokenizer, hidden_size=64, layers=2, heads=2, seed=0).save_pretrained(root / "model")
    tokenizer.save_pretrained(root / "model")
    config = ORPOConfig(
        model=str(root / "model"), data=str(root / "good.jsonl"), steps=160, batch_size=8, eval_every=40,
        learning_rate=5e-3, warmup_steps=5,
    )  # fmt: skip
    return root, orpo.train(config, root / "model", "tiny", say=lambda line: None)


def tuned(tiny, pairs="good", at_look=None, **knobs):
    root, start = tiny
    few = {"steps": 40, "batch_size": 8, "eval_every": 8, "warmup_steps": 0, "learning_rate": 3e-3}
    config = DPOConfig(model=str(root / "model"), data=str(root / f"{pairs}.jsonl"), **(few | knobs))
    return dpo.train(config, start.checkpoint, start.id, say=lambda line: None, at_look=at_look)


def kept(run) -> set[str]:
    """The alarms in the run's own run.json."""
    return {alarm["name"] for alarm in json.loads((run.path / "run.json").read_text())["alarms"] if alarm["at_end"]}


def test_healthy_trainings_raise_nothing(tiny):
    start, run = tiny[1], tuned(tiny, learning_rate=3e-4)
    for one in (start, run):
        looks = [row["answer_length"] for row in one.history() if "answer_length" in row]
        assert kept(one) == set() and len(looks) >= 5 and looks[-1] > 4
    assert "entropy" in run.history()[2]


def test_too_high_a_learning_rate(tiny):
    run = tuned(tiny, learning_rate=2e-2, loss_type="sigmoid")
    raised = {alarm["name"] for alarm in run.info["alarms"]}
    assert {"kl_blow_up", "length_blow_up", "chosen_falls", "repetition"} <= raised
    assert abs(run.history()[1]["held_out_kl"]) < 1e-3  # before the first step it is its own reference


def test_a_margin_by_the_rejected_answers_alone(tiny):
    run = tuned(tiny, learning_rate=3e-3, loss_type="sigmoid")
    assert "margin_by_rejected" in {alarm["name"] for alarm in run.info["alarms"]}


def test_a_loss_that_is_no_number(tiny):
    """A weight overflows: the run fails, says so, and saves no such model."""

    def overflow(run, model, tokenizer):
        next(model.parameters()).data.mul_(float("inf"))

    with pytest.raises(TrainingError, match="no longer a number"):
        tuned(tiny, at_look=overflow)
    run = next(one for one in runs.all_runs() if one.status == "failed")
    assert "not_a_number" in kept(run) and not run.checkpoint.exists()


@pytest.mark.parametrize(
    ("pairs", "alarm"), [("short", "length_collapse"), ("long", "length_blow_up"), ("circles", "repetition")]
)
def test_pairs_that_prefer_a_fault(tiny, pairs, alarm):
    assert alarm in kept(tuned(tiny, pairs, steps=80, learning_rate=5e-3))


def test_a_policy_that_climbs_a_proxy():
    """Mirror descent, pi <- pi exp(0.2 reward), on 30 answers and a reward that grows with their length."""
    words = torch.arange(30.0)
    gold, reward = 3 - ((words - 8) ** 2) / 64, 0.1 * words  # the best answer has 8 words; the reward likes more
    logits, rows = -0.5 * (words - 3).abs(), []
    for step in range(100):
        policy = logits.softmax(-1)
        rows.append({"step": step, "reward": float(policy @ reward)})
        rows[-1] |= {"gold": float(policy @ gold)} if step % 10 == 0 else {}
        logits = logits + 0.2 * reward
    looks = {row["step"]: row["gold"] for row in rows if "gold" in row}
    best = max(looks, key=looks.get)
    assert 0 < best < 60  # gold rises first
    alarm = next(one for one in health.alarms(rows) if one.name == "reward_up_gold_down")
    assert f"near step {best}" in alarm.remedy and alarm.meaning.startswith("The reward rises")
    assert names(rows[: best + 1]) == set()


def test_a_policy_that_says_one_thing():
    """Policy gradient without an entropy bonus."""
    logits, rows, reward = torch.zeros(20), [], torch.linspace(0, 1, 20)
    for step in range(80):
        policy = logits.softmax(-1)
        rows.append({"step": step, "entropy": float(-(policy * policy.log()).sum()), "reward": float(policy @ reward)})
        logits = logits + 20 * policy * (reward - policy @ reward)
    assert names(rows) == {"entropy_collapse"}


def test_repeated_counts_runs_of_three_words():
    assert health.repeated("one two three") == health.repeated("") == 0
    assert health.repeated("a b c d e f") == 0
    assert health.repeated("a b c a b c") == pytest.approx(1 / 4)  # abc bca cab abc


def test_an_alarm_that_has_gone_is_kept_and_says_so():
    rows = history(loss=[3 - 0.1 * n for n in range(20)], grad_norm=[1.0] * 10 + [50.0] + [1.0] * 9)
    assert names(rows) == set()
    assert [(alarm["name"], alarm["step"], alarm["at_end"]) for alarm in health.kept(rows)] == [
        ("gradient_spike", 10, False)
    ]


def test_a_long_run_is_not_read_once_for_every_row(monkeypatch):
    looks, alarms = [], health.alarms
    monkeypatch.setattr(health, "alarms", lambda rows: looks.append(len(rows)) or alarms(rows))
    rows = history(loss=[3.0] * 5_000, grad_norm=[1.0] * 4_999 + [50.0])
    assert [alarm["name"] for alarm in health.kept(rows)] == ["gradient_spike"]  # the last row is always looked at
    assert len(looks) <= 202 and max(looks) == 5_000
