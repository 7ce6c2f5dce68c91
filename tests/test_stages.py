"""The stages on tiny random models: weights move, losses are what the formulas say, a stop can be resumed."""

import dataclasses
import json
import math
import shutil
import threading

import pytest
import torch
import transformers
from safetensors.torch import load_file

from labkit import adapters, budget, data, models, pipeline, runs, training
from labkit.config import STAGES, DPOConfig, OwnConfig, PretrainConfig, SFTConfig, sized
from labkit.errors import ConfigError, DataError, RunError, TrainingError
from labkit.stages import dpo, pretrain, sft


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny model in a folder, and small data files."""
    root = tmp_path_factory.mktemp("stages")
    words = ["river", "stone", "lamp", "house", "dog", "cat"]
    rows = [{"prompt": f"Say {a} {b}", "answer": f"{a} {b}."} for a in words for b in words]
    pairs = [{"prompt": r["prompt"], "chosen": r["answer"], "rejected": r["answer"] + " I hope."} for r in rows]
    texts = [{"text": f"{r['prompt']}. {r['answer']} The {r['answer']}"} for r in rows]
    for name, content in (("sft", rows), ("pairs", pairs), ("corpus", texts * 20)):
        (root / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))
    tokenizer = models.train_tokenizer([row["text"] for row in texts], 320)
    models.new_model(tokenizer, hidden_size=32, layers=2, heads=2, seed=0).save_pretrained(root / "model")
    tokenizer.save_pretrained(root / "model")
    return root


def quiet(*_):
    pass


def moved(run, start) -> bool:
    before, _ = models.load(start)
    after, _ = models.load(run.checkpoint)
    return all(not torch.equal(a, b) for a, b in zip(before.parameters(), after.parameters(), strict=True))


def test_pretraining_learns_and_is_found_again(folder):
    config = PretrainConfig(
        corpus=str(folder / "corpus.jsonl"), steps=12, batch_size=4, block_size=32, vocab_size=320, hidden_size=32,
        layers=2, heads=2, eval_every=6, learning_rate=0.01,
    )  # fmt: skip
    run = pretrain.train(config, say=quiet)
    looks = [row["held_out_loss"] for row in run.history() if "held_out_loss" in row]
    assert math.isclose(looks[0], math.log(320), rel_tol=0.05)  # an untrained model spreads its guess evenly
    assert looks[-1] < looks[0] - 0.5
    assert run.status == "finished" and run.metrics["bits_per_byte"] > 0
    said = []
    assert pretrain.train(config, say=said.append).id == run.id and "already run" in said[0]


@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_skipping_unlearned_tokens_changes_neither_loss_nor_gradients(folder, tuning):
    config = SFTConfig(model=str(folder / "model"), tuning=tuning)
    batch = {"input_ids": torch.arange(5, 29).view(2, 12), "labels": torch.arange(5, 29).view(2, 12).clone()}
    batch["labels"][0, :4] = batch["labels"][1, 3:9] = data.IGNORED
    found = []
    for skip in (False, True):
        base, tokenizer = models.load(folder / "model")
        model = adapters.attach(base, config, tokenizer)
        if skip:
            sft.score_learned_tokens_only(model)
        loss, mean = model(**batch, num_items_in_batch=7).loss, model(**batch).loss
        logits = model(input_ids=batch["input_ids"]).logits
        (loss + mean).backward()
        gradients = [weight.grad for weight in model.parameters() if weight.grad is not None]
        found.append((loss, mean, logits, *gradients))
    assert len(found[0]) == len(found[1]) > 5 and found[1][2].shape[:2] == (2, 12)
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)  # sums in another order


def test_sft_moves_every_weight(folder):
    config = SFTConfig(model=str(folder / "model"), data=str(folder / "sft.jsonl"), steps=4, batch_size=4, eval_every=4)
    run = sft.train(config, folder / "model", "tiny", say=quiet)
    assert moved(run, folder / "model")
    assert runs.get(run.id).parent == "tiny"
    before, loading, training = (run.info["peaks_mb"][when] for when in ("before loading", "loading", "training"))
    assert 100 < before <= loading <= training
    assert run.metrics["tokens_seen"] > run.metrics["rows_seen"] == 16


def test_sft_loss_is_the_masked_mean(folder):
    """The loss logged before the first step equals the mean over the answers' tokens, computed by hand."""
    config = SFTConfig(
        model=str(folder / "model"), data=str(folder / "sft.jsonl"), steps=1, batch_size=64, eval_every=1
    )
    run = sft.train(config, folder / "model", "tiny-2", say=quiet)
    model, tokenizer = models.load(folder / "model")
    _, held_out = data.instructions(str(folder / "sft.jsonl"))
    total = count = 0
    for row in held_out:
        encoded = data.chat_row(tokenizer, row["prompt"], row["answer"])
        with torch.no_grad():
            logp = model(torch.tensor([encoded["input_ids"]])).logits[0].float().log_softmax(-1)
        for place, label in enumerate(encoded["labels"][1:]):
            if label != data.IGNORED:
                total, count = total - logp[place, label].item(), count + 1
    assert math.isclose(run.history()[0]["held_out_loss"], total / count, rel_tol=0.01)


def test_dpo_starts_at_log_two_and_widens_the_margin(folder):
    config = DPOConfig(
        model=str(folder / "model"), data=str(folder / "pairs.jsonl"), steps=8, batch_size=8, eval_every=8,
        learning_rate=1e-3, warmup_steps=0, loss_type="sigmoid",
    )  # fmt: skip
    run = dpo.train(config, folder / "model", "tiny", say=quiet)
    losses = [row["loss"] for row in run.history() if "loss" in row]
    assert math.isclose(losses[0], math.log(2), abs_tol=0.02)
    assert run.metrics["held_out_margin"] > 0.05
    assert moved(run, folder / "model")


@pytest.mark.parametrize("stage", ["reward", "dpo", "orpo"])
def test_an_adapter_on_a_base_that_never_saw_the_chat_tokens_learns_pairs(folder, stage):
    """Its adapter trains those tokens' rows too, in a wrapper around the output head."""
    few = {"steps": 2, "eval_every": 2, "batch_size": 2, "warmup_steps": 0, "lora_rank": 4, "tuning": "lora"}
    config = STAGES[stage](model="nano", parent="nano", data=str(folder / "pairs.jsonl"), **few)
    run = pipeline.train_stage(stage, config, say=quiet)
    assert run.status == "finished" and math.isfinite(run.metrics["held_out_loss"])
    weights = load_file(run.checkpoint / "adapter_model.safetensors")
    rows = next(weight for name, weight in weights.items() if "token_adapter" in name)
    base, tokenizer = models.load(data.BASE)
    before = base.get_input_embeddings().weight[adapters.untaught(base, tokenizer)]
    assert rows.shape == before.shape and not torch.equal(rows.float(), before.float())


def test_a_stop_is_resumed_to_the_same_losses(folder, monkeypatch, tmp_path):
    """Stop after the third step, go on, and end at the losses of a run that was never stopped."""
    config = SFTConfig(model=str(folder / "model"), data=str(folder / "sft.jsonl"), steps=6, batch_size=4, eval_every=2)
    monkeypatch.setenv("LABKIT_RUNS", str(tmp_path / "whole"))
    whole = sft.train(config, folder / "model", "tiny", say=quiet).history()

    monkeypatch.setenv("LABKIT_RUNS", str(tmp_path / "stopped"))
    stop = threading.Event()

    def at_look(run, model, tokenizer):
        if run.history()[-1]["step"] == 2:
            stop.set()

    run = sft.train(config, folder / "model", "tiny", say=quiet, stop=stop, at_look=at_look)
    assert run.status == "stopped" and run.checkpoint.exists()
    stop.clear()
    again = sft.train(config, folder / "model", "tiny", say=quiet, stop=stop)
    assert again.id == run.id and again.status == "finished"
    losses = [(row["step"], row["loss"]) for row in whole if "loss" in row]
    resumed = [(row["step"], row["loss"]) for row in again.history() if "loss" in row]
    assert [step for step, _ in resumed] == [step for step, _ in losses]
    assert resumed[-1][1] == pytest.approx(losses[-1][1], rel=1e-3)


def test_a_checkpoint_torn_by_a_kill_is_passed_by(folder, store):
    config = SFTConfig(model=str(folder / "model"), data=str(folder / "sft.jsonl"), steps=4, batch_size=4, eval_every=2)
    stop = threading.Event()

    def at_look(run, model, tokenizer):
        if run.history()[-1]["step"] == 2:
            stop.set()

    run = sft.train(config, folder / "model", "tiny", say=quiet, stop=stop, at_look=at_look)
    (kept,) = (run.path / "resume").glob("checkpoint-*")
    torn = run.path / "resume" / "checkpoint-9"
    torn.mkdir()
    (torn / "model.safetensors").write_bytes(b"half")
    again = sft.train(config, folder / "model", "tiny", say=quiet)
    assert kept.name != torn.name and again.id == run.id and again.status == "finished"


def test_a_trainer_keeps_to_one_gpu():
    args = transformers.TrainingArguments(output_dir="unused", use_cpu=True)
    args._n_gpu = 4  # what a machine with four would give it
    assert args.train_batch_size == 4 * args.per_device_train_batch_size
    assert training.on_one_device(args).train_batch_size == args.per_device_train_batch_size


def test_rows_longer_than_the_models_context_are_refused(folder, store):
    config = PretrainConfig(model=str(folder / "model"), block_size=2048)
    with pytest.raises(ConfigError, match=r"block_size.*1024"):
        pretrain.prepare(config)


@pytest.mark.parametrize("stage", ["sft", "dpo"])
def test_a_loss_that_is_no_number_halts_the_training(folder, monkeypatch, stage):
    """At the step where it happens, although transformers would log an earlier mean in its place."""
    values = {
        "model": str(folder / "model"),
        "steps": 6,
        "batch_size": 2,
        "eval_every": 6,
        "warmup_steps": 0,
        "seed": 7,
    }
    module, kind, file = {"sft": (sft, SFTConfig, "sft"), "dpo": (dpo, DPOConfig, "pairs")}[stage]
    plain, seen = transformers.Trainer.training_step, []

    def broken(self, *args, **kwargs):
        seen.append(1)
        loss = plain(self, *args, **kwargs)
        return loss * math.nan if len(seen) == 3 else loss

    monkeypatch.setattr(transformers.Trainer, "training_step", broken)
    with pytest.raises(TrainingError, match="no longer a number at step 3"):
        module.train(kind(**values, data=str(folder / f"{file}.jsonl")), folder / "model", "tiny", say=quiet)
    assert len(seen) == 3 and runs.all_runs(stage)[-1].status == "failed"


def test_a_probe_trains_as_the_stage_does(folder, monkeypatch):
    seen = {}

    def steps(step, n):
        seen["loss"] = step()
        return 1.0

    plain = torch.nn.functional.cross_entropy

    def counted(logits, targets, **options):
        seen["scored"] = len(targets)
        return plain(logits, targets, **options)

    def muon(self, model, rate, plain=pretrain.MuonWithAdamW.__init__):
        seen["muon"] = True
        plain(self, model, rate)

    monkeypatch.setattr(budget, "probe", steps)
    monkeypatch.setattr(torch.nn.functional, "cross_entropy", counted)
    monkeypatch.setattr(pretrain.MuonWithAdamW, "__init__", muon)
    attention = training.write_attention_out
    monkeypatch.setattr(
        training, "write_attention_out", lambda *given: seen.update(short=given[1]) or attention(*given)
    )
    for tuning in ("full", "lora"):
        sft_config = SFTConfig(model=str(folder / "model"), data=str(folder / "sft.jsonl"), batch_size=3, tuning=tuning)
        knobs = budget.knobs("sft", sft_config)
        assert training.probe(sft_config, knobs) == 1.0 and math.isfinite(seen["loss"])
        assert seen["scored"] == 3 * knobs["learned_tokens"] < 3 * (knobs["seq_length"] - 1)
        assert seen["short"] == knobs["seq_length"] and "muon" not in seen
    config = PretrainConfig(vocab_size=320, hidden_size=32, layers=2, heads=2, block_size=16, batch_size=2)
    training.probe(config, budget.knobs("pretrain", config))
    assert seen["muon"]


def test_bad_rows_are_named_before_training(folder, tmp_path):
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"prompt": "a", "answer": "b"}\n{"prompt": "c", "answer": " "}\n')
    config = SFTConfig(model=str(folder / "model"), data=str(bad), steps=1)
    with pytest.raises(DataError, match="line 2"):
        sft.train(config, folder / "model", "tiny", say=quiet)


def test_a_parent_that_is_the_model_itself_is_taken_as_it_is(folder):
    own = str(folder / "model")
    assert pipeline.source_of(DPOConfig(model=own, parent=own)) == (own, own)
    source, name = pipeline.source_of(DPOConfig(model="nano", parent="nano"))
    assert source == data.BASE and name.startswith("shipped-base-")
    smol = sized(DPOConfig(model="smol"))
    assert pipeline.source_of(smol) == ("smol", "smol") and smol.data == "brief" and smol.tuning == "lora"


def test_a_task_of_ones_own_starts_from_an_instruction_model(folder, store):
    own = str(folder / "model")
    assert pipeline.source_of(OwnConfig(model=own)) == (own, own)
    config = sized(OwnConfig(model="smoke", seed=3))
    assert pipeline.existing("sft", config) is None and not runs.all_runs()  # asking trains nothing
    source, name = pipeline.source_of(config, say=quiet)
    (parent,) = runs.all_runs()
    assert (source, name) == (parent.checkpoint, parent.id) and parent.config["seed"] == 3
    assert pipeline.train_stage("sft", config, say=quiet).id == pipeline.existing("sft", config).id != parent.id


def test_an_unknown_parent_is_an_error():
    with pytest.raises(RunError, match="sft-nowhere"):
        pipeline.source_of(dataclasses.replace(DPOConfig(), parent="sft-nowhere"))


def test_dpo_stops_in_its_reference_pass(folder, monkeypatch):
    few = {"steps": 4, "eval_every": 4, "batch_size": 4, "warmup_steps": 0}
    start = runs.open_run("sft", SFTConfig(model=str(folder / "model"), seed=11, **few))
    shutil.copytree(folder / "model", start.checkpoint)
    start.finish(held_out_loss=1.0)
    config = DPOConfig(model=str(folder / "model"), data=str(folder / "pairs.jsonl"), parent=start.id, **few)
    stop = threading.Event()
    stop.set()
    run = pipeline.train_stage("dpo", config, say=quiet, stop=stop)
    assert run.status == "stopped" and run.history() == []
    assert pipeline.train_stage("dpo", config, say=quiet).status == "finished"  # it goes on


def test_denormal_numbers_are_zeros_in_a_training_and_not_after_it(store):
    seen = []
    config = sized(SFTConfig(model="smoke"))
    pipeline.train_stage("sft", config, say=lambda line: None, at_look=lambda *_: seen.append(float("1e-320") > 0))
    assert seen and not any(seen) and float("1e-320") > 0


def test_a_run_that_ends_before_its_first_step_is_marked_as_failed(folder):
    bad = folder / "never_stops.jsonl"
    bad.write_text(
        json.dumps({"prompt": "a " * 600, "answer": "b"}) + "\n" + json.dumps({"prompt": "a", "answer": "b"})
    )
    config = SFTConfig(model=str(folder / "model"), data=str(bad), steps=2, eval_every=2)
    with pytest.raises(DataError):
        pipeline.train_stage("sft", config, say=quiet)
    run = pipeline.existing("sft", config)
    assert run.status == "failed" and "masked from end to end" in run.info["error"]


def test_denormals_are_flushed_in_the_child_of_a_parent_trained_just_now(store, monkeypatch):
    """The parent's training ends by switching it off; the child's own must have it on, and nothing after."""

    def flushed() -> bool:
        return (torch.tensor([1e-39]) * 0.5).item() == 0.0

    seen, plain = [], dpo.train

    def noting(*args, **options):
        seen.append(flushed())
        return plain(*args, **options)

    monkeypatch.setattr(dpo, "train", noting)
    assert not flushed()
    pipeline.train_stage("dpo", DPOConfig(model="smoke", steps=2, batch_size=2, eval_every=2), say=quiet)
    assert len(runs.all_runs("sft")) == 1 and seen == [True] and not flushed()
