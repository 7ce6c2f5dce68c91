"""ORPO: the loss of Hong et al. 2024 by hand, one stage from a base, and pairs made of instructions."""

import json
import threading

import pytest
import torch

from labkit import data, models, pipeline, preferences, runs
from labkit.config import ORPOConfig
from labkit.errors import DataError
from labkit.evaluate import answers
from labkit.stages import orpo
from labkit.stages.orpo import orpo as trl_orpo

WORDS = ["river", "stone", "lamp", "house", "dog", "cat"]
ROWS = [
    {"prompt": f"Say {a} {b}", "chosen": f"{a} {b}.", "rejected": f"{a} {b}. I hope."} for a in WORDS for b in WORDS
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("orpo")
    (root / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS[:10]))  # the first is held out
    tokenizer = models.train_tokenizer([f"{row['prompt']}. {row['rejected']}" for row in ROWS], 300)
    models.new_model(tokenizer, hidden_size=32, layers=2, heads=2, seed=0).save_pretrained(root / "model")
    tokenizer.save_pretrained(root / "model")
    return root


def config(folder, **knobs):
    few = {"steps": 6, "batch_size": 4, "eval_every": 3, "warmup_steps": 0, "learning_rate": 3e-3}
    return ORPOConfig(**{"model": str(folder / "model"), "data": str(folder / "pairs.jsonl"), **few, **knobs})


def quiet(*_):
    pass


def from_means(model, tokenizer, held_out, beta):
    """(loss, log odds ratio) of the held-out pair: equations 3 to 7, with plain probabilities."""
    mean = [
        torch.div(*answers.log_probs(model, tokenizer, held_out["prompt"], held_out[side])).double()
        for side in ("chosen", "rejected")
    ]
    odds = [one.exp() / (1 - one.exp()) for one in mean]
    ratio = (odds[0] / odds[1]).log()
    return float(-mean[0] - beta * torch.sigmoid(ratio).log()), float(ratio)


def test_a_row_is_the_chat_template_s_and_nothing_else(folder, store, monkeypatch):
    """trl puts the tokenizer's bos_token before a row, which no other stage and no question to the model has."""
    seen = []
    plain = orpo.Trainer.__init__

    def keep(self, *args, **kwargs):
        plain(self, *args, **kwargs)
        seen.append((self.train_dataset, self.processing_class))

    monkeypatch.setattr(orpo.Trainer, "__init__", keep)
    orpo.train(config(folder, steps=1, eval_every=1), folder / "model", "tiny", say=quiet)
    rows, tokenizer = seen[0]
    assert tokenizer.bos_token_id is not None and len(rows) > 3
    for row in rows:
        for side in ("chosen", "rejected"):
            assert row[f"{side}_labels"][-1] == tokenizer.eos_token_id  # and nothing after the end
            said = tokenizer.decode(row[f"{side}_input_ids"])
            pair = next(one for one in ROWS if f"{one['prompt']}<" in said)
            assert row[f"{side}_input_ids"] == data.chat_row(tokenizer, pair["prompt"], pair[side])["input_ids"]


@pytest.mark.parametrize("beta", [0.0, 0.1, 2.0])
@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_the_logged_loss_is_the_paper_s_and_weights_move(folder, store, beta, tuning):
    run = orpo.train(config(folder, beta=beta, tuning=tuning), folder / "model", "tiny", say=quiet)
    looks = [row for row in run.history() if "held_out_loss" in row]
    _, held_out = preferences.pairs(str(folder / "pairs.jsonl"))
    assert len(held_out) == 1 and len(looks) == 3
    for look, where in ((looks[0], folder / "model"), (looks[-1], run.checkpoint)):
        loss, ratio = from_means(*models.load(where), held_out, beta)
        assert look["held_out_loss"] == pytest.approx(loss, rel=0.02, abs=0.02)  # bf16
        assert look["held_out_log_odds"] == pytest.approx(ratio, rel=0.05, abs=0.05)
    assert looks[-1]["held_out_loss"] < looks[0]["held_out_loss"] - 0.1
    if tuning == "full":
        before, after = (dict(models.load(where)[0].named_parameters()) for where in (folder / "model", run.checkpoint))
        assert all(not torch.equal(before[name], after[name]) for name in before)
    else:
        assert run.metrics["trainable_parameters"] < run.metrics["parameters"]


def test_the_loss_is_trl_s_own_on_the_same_batches(folder, store, monkeypatch):
    """But for the SFT term, which counts the prompt too in trl's."""
    monkeypatch.setattr(models, "bf16", lambda: False)
    plain, seen = orpo.Trainer.compute_loss, []

    def both(trainer, model, inputs, *args, **kwargs):
        loss = plain(trainer, model, inputs, *args, **kwargs)
        with torch.no_grad():
            theirs, numbers = trl_orpo.ORPOTrainer.get_batch_loss_metrics(trainer, model, inputs)
        ours = {name: values[-1] for name, values in trainer._stored_metrics["train"].items()}
        seen.append((loss.item() - ours["nll_loss"], theirs.item() - numbers["nll_loss"], ours, numbers))
        return loss

    monkeypatch.setattr(orpo.Trainer, "compute_loss", both)
    orpo.train(config(folder, steps=4, beta=0.7), folder / "model", "tiny", say=quiet)
    assert len(seen) == 4
    for ours, theirs, mine, trls in seen:
        assert ours == pytest.approx(theirs, rel=1e-5)
        for name in ("log_odds_chosen", "logps/chosen", "logps/rejected", "rewards/accuracies"):
            assert mine[name] == pytest.approx(trls[name], rel=1e-5, abs=1e-6)


def test_a_certain_answer_keeps_the_loss_finite(folder, store, monkeypatch):
    """Probability 1 has infinite odds: a head that is sure of every token leaves loss and weights numbers."""
    attach = orpo.training.load

    def sure(*args):
        model, tokenizer = attach(*args)
        model.get_output_embeddings().register_forward_hook(
            lambda head, inputs, found: found * 0 + 1e4 * torch.nn.functional.one_hot(targets.pop(0), found.shape[-1])
        )
        return model, tokenizer

    targets = []
    plain = orpo.Trainer.concatenated_inputs

    def remember(*args, **kwargs):
        both = plain(*args, **kwargs)
        labels = both["concatenated_labels"][:, 1:]
        targets[:] = [labels[labels != data.IGNORED]]
        return both

    monkeypatch.setattr(orpo.Trainer, "concatenated_inputs", staticmethod(remember))
    monkeypatch.setattr(orpo.training, "load", sure)
    monkeypatch.setattr(orpo, "watch_answers", quiet)
    run = orpo.train(config(folder, steps=2, eval_every=2), folder / "model", "sure", say=quiet)
    assert all(row["loss"] is not None and row["grad_norm"] is not None for row in run.history() if "loss" in row)


def test_an_identical_run_is_loaded_and_a_stop_is_resumed(folder, store):
    stop = threading.Event()

    def at_look(run, model, tokenizer):
        if run.history()[-1]["step"] == 3:
            stop.set()

    stopped = orpo.train(config(folder), folder / "model", "tiny", say=quiet, stop=stop, at_look=at_look)
    assert stopped.status == "stopped" and stopped.checkpoint.exists()
    run = orpo.train(config(folder), folder / "model", "tiny", say=quiet)
    assert run.id == stopped.id and run.status == "finished" and run.metrics["pairs_seen"] == 24
    said = []
    assert orpo.train(config(folder), folder / "model", "tiny", say=said.append).id == run.id and "loaded" in said[0]


def test_it_starts_from_the_base(store):
    assert pipeline.source_of(ORPOConfig())[0] == data.BASE
    run = pipeline.default_run("orpo", "smoke", 0, say=quiet)
    assert run.stage == "orpo" and run.status == "finished" and run.parent == "smoke"
    assert pipeline.existing("orpo", pipeline._default(ORPOConfig, "smoke", 0)).id == run.id


def test_pairs_that_prefer_nothing_are_named_before_training(folder, store, tmp_path):
    bad = tmp_path / "bad.jsonl"
    bad.write_text("\n".join(json.dumps(row) for row in [ROWS[0], ROWS[1] | {"rejected": ROWS[1]["chosen"]}]))
    with pytest.raises(DataError, match="line 2"):
        orpo.train(config(folder, data=str(bad)), folder / "model", "tiny", say=quiet)
    assert not [run for run in runs.all_runs("orpo") if run.history()]


def test_pairs_made_of_instructions():
    """Only texts that the instructions hold, good over not good where the fact is the same, and no test question."""
    rows, _ = data.instructions()
    good = {row["answer"] for row in rows if row["style"] == "good"}
    known, prompts = {row["answer"] for row in rows}, {row["prompt"] for row in rows}
    made = preferences.from_instructions()
    assert len(made) > 9000 and made[:5] == preferences.from_instructions()[:5]
    assert {*made["chosen"]} <= good and {*made["rejected"]} <= known and {*made["prompt"]} <= prompts
    assert not {data.normalised(row["prompt"]) for row in data.questions()} & set(map(data.normalised, made["prompt"]))
    by_prompt = {row["prompt"]: row for row in made}
    for row in rows.select(range(300)):
        pair = by_prompt.get(row["prompt"])
        if pair and row["style"] == "rambling":
            assert pair["rejected"] != pair["chosen"] and pair["chosen"] in good
    train, held_out = preferences.pairs("all")
    lab, lab_held_out = preferences.pairs("lab")
    assert len(train) == len(lab) + len(made) and set(held_out["prompt"]) < set(lab_held_out["prompt"])
    assert preferences.data_hash("all") != preferences.data_hash("lab")
