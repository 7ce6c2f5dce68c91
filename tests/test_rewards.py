"""Reward models on tiny random models: the loss by hand, one score in any batch, what is saved is what is read."""

import dataclasses
import json
import math
import threading

import pytest
import safetensors
import torch
import trl
from datasets import Dataset
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    Gemma2Config,
    Gemma2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
)

from labkit import data, models, pipeline, preferences, rewards, runs
from labkit.config import RewardConfig
from labkit.errors import DataError, ModelError
from labkit.stages import reward

WORDS = ["river", "stone", "lamp", "house", "dog", "cat"]
ROWS = [
    {"prompt": f"Say {a} {b}", "chosen": f"{a} {b}.", "rejected": f"{a} {b}. I hope."} for a in WORDS for b in WORDS
]
PROMPTS = ["Say river", "Say stone lamp house dog cat river", "lamp?", "Say dog dog"]
ANSWERS = ["river.", "stone", "The lamp stone house river dog cat lamp stone house. I hope.", ""]


@pytest.fixture(scope="module", params=["lfm2", "llama"])
def folder(request, tmp_path_factory):
    """A tiny language model in a folder, beside preference pairs."""
    root = tmp_path_factory.mktemp(request.param)
    tokenizer = models.train_tokenizer([f"{row['prompt']}. The {row['rejected']}" for row in ROWS], 320)
    if request.param == "lfm2":
        model = models.new_model(tokenizer, hidden_size=32, layers=2, heads=2, seed=0)
    else:
        torch.manual_seed(0)
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=320, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2
            )
        )
        tokenizer.pad_token = tokenizer.eos_token  # as SmolLM2 has it
    model.save_pretrained(root / "model")
    tokenizer.save_pretrained(root / "model")
    (root / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return root


def config_of(folder, **values) -> RewardConfig:
    few = {"steps": 6, "batch_size": 6, "eval_every": 3, "warmup_steps": 0, "learning_rate": 1e-2}
    own = {"model": str(folder / "model"), "data": str(folder / "pairs.jsonl")}
    return RewardConfig(**{**own, **few, **values})


def trained(folder, **values) -> runs.Run:
    return reward.train(config_of(folder, **values), folder / "model", "tiny", say=quiet)


def quiet(*_):
    pass


@pytest.mark.parametrize("pull", [0.0, 0.5])
def test_a_new_head_prefers_nothing_and_the_loss_is_minus_log_sigmoid(folder, pull):
    options = {"off_topic": False, "center_rewards_coefficient": pull}
    run = trained(folder, steps=10, eval_every=10, seed=2, **options)
    assert run.history()[0]["held_out_loss"] == pytest.approx(torch.tensor(2.0).log().item(), abs=1e-6)
    _, held_out = preferences.pairs(str(folder / "pairs.jsonl"))
    score = rewards.load(run)
    chosen, rejected = (score(held_out["prompt"], held_out[side]) for side in ("chosen", "rejected"))
    by_hand = -(1 / (1 + torch.exp(rejected - chosen))).log().mean().item()
    assert by_hand != pytest.approx(0.693, abs=0.02)
    expected = by_hand + pull * (chosen + rejected).pow(2).mean().item()
    assert run.metrics["held_out_loss"] == pytest.approx(expected, rel=0.02)
    assert run.metrics["held_out_margin"] == pytest.approx((chosen - rejected).mean().item(), rel=0.02, abs=0.01)


def test_every_weight_moves_in_full_tuning_and_the_preferred_answer_wins(folder):
    run = trained(folder, steps=30, eval_every=30)
    score, before = rewards.load(run), rewards.from_language_model(folder / "model")[0]
    after = dict(score.model.named_parameters())
    assert all(not torch.equal(weight, after[name]) for name, weight in before.named_parameters())
    prompts = [row["prompt"] for row in ROWS]
    wins = score(prompts, [row["chosen"] for row in ROWS]) > score(prompts, [row["rejected"] for row in ROWS])
    assert wins.float().mean() > 0.9
    assert run.metrics["held_out_pair_accuracy"] == 1.0


def test_lora_moves_the_adapter_and_the_head_alone(folder):
    seen = {}

    def at_look(run, model, tokenizer):
        seen.setdefault("model", model)
        weights = {name: weight.detach().clone() for name, weight in model.named_parameters()}
        seen.setdefault("first", weights)
        seen["last"] = weights

    options = {"tuning": "lora", "lora_rank": 2, "lora_alpha": 4}
    run = reward.train(config_of(folder, **options), folder / "model", "tiny", say=quiet, at_look=at_look)
    for name, weight in seen["model"].named_parameters():
        learns = "lora_" in name or "score.modules_to_save" in name
        assert weight.requires_grad == learns
        assert torch.equal(seen["first"][name], seen["last"][name]) != learns
    assert run.metrics["trainable_parameters"] < run.metrics["parameters"] / 4
    assert not (run.checkpoint / "model.safetensors").exists()
    seen["model"].eval()
    again = rewards.load(run)
    expected = rewards.RewardModel(seen["model"], again.tokenizer)(PROMPTS, ANSWERS)
    assert expected.abs().max() > 0
    torch.testing.assert_close(again(PROMPTS, ANSWERS), expected, rtol=0.02, atol=0.02)


def test_a_batch_gives_the_scores_of_one_by_one_on_either_side_of_padding(folder):
    score = rewards.load(trained(folder, seed=3))
    alone = torch.cat([score([prompt], [answer]) for prompt, answer in zip(PROMPTS, ANSWERS, strict=True)])
    assert alone.shape == (4,) and alone.dtype == torch.float32 and len(set(alone.tolist())) == 4
    for side in ("left", "right"):
        score.tokenizer.padding_side = side
        torch.testing.assert_close(score(PROMPTS, ANSWERS), alone, rtol=0.02, atol=0.05)  # bf16
        score.model.float()
        with torch.autocast("cpu", enabled=False):
            rows = rewards.encode(score.tokenizer, PROMPTS, ANSWERS, 512)
            batch = score.tokenizer.pad({"input_ids": rows}, return_tensors="pt").to(score.model.device)
            one = torch.cat([score.model(torch.tensor([row], device=batch.input_ids.device)).logits for row in rows])
            torch.testing.assert_close(score.model(**batch).logits, one, rtol=1e-4, atol=1e-5)
    assert torch.equal(score(PROMPTS * 2, ANSWERS * 2)[:4], score(PROMPTS * 2, ANSWERS * 2)[4:])
    assert score([], []).shape == (0,)


def test_the_score_is_read_at_the_end_of_the_answer_in_chat_format(folder):
    score = rewards.load(trained(folder, seed=3))
    text = score.tokenizer.apply_chat_template(data.messages(PROMPTS[0], ANSWERS[0]), tokenize=False)
    ids = torch.tensor([score.tokenizer(text, add_special_tokens=False)["input_ids"]], device=score.model.device)
    with torch.no_grad():
        hidden = score.model.base_model(ids, use_cache=False).last_hidden_state[0]
    places = [place for place, token in enumerate(ids[0]) if token != score.tokenizer.pad_token_id]
    expected = hidden[places[-1]] @ score.model.score.weight[0]
    assert score(PROMPTS[:1], ANSWERS[:1]).item() == pytest.approx(expected.item(), rel=0.02, abs=0.02)
    messages = [[{"role": "user", "content": PROMPTS[0]}]]
    assert torch.equal(score(messages, ANSWERS[:1]), score(PROMPTS[:1], ANSWERS[:1]))


def test_what_is_saved_scores_as_what_was_trained(folder):
    seen = {}
    run = reward.train(
        config_of(folder, seed=5), folder / "model", "tiny", say=quiet,
        at_look=lambda run, model, tokenizer: seen.update(now=rewards.RewardModel(model, tokenizer)(PROMPTS, ANSWERS)),
    )  # fmt: skip
    again = rewards.load(run.checkpoint)
    assert list(run.checkpoint.glob("*.safetensors")) and not list(run.checkpoint.glob("*.bin"))
    assert torch.equal(rewards.load(run.id)(PROMPTS, ANSWERS), again(PROMPTS, ANSWERS))
    again.model.set_attn_implementation("eager")  # as in training on a CPU: other kernels round otherwise
    torch.testing.assert_close(again(PROMPTS, ANSWERS), seen["now"], rtol=1e-3, atol=1e-3)


def test_an_identical_run_is_loaded(folder):
    first, said = trained(folder, seed=7), []
    again = reward.train(config_of(folder, seed=7), folder / "model", "tiny", say=said.append)
    assert again.id == first.id and "already run" in said[0]
    assert trained(folder, seed=7, pairs=9).id != first.id


def test_a_stop_is_resumed_to_the_same_losses(folder, store):
    config, stop = config_of(folder), threading.Event()
    whole = trained(folder, seed=0).history()

    def at_look(run, model, tokenizer):
        if run.history()[-1]["step"] == 3:
            stop.set()

    other = dataclasses.replace(config, retrain=True)
    run = reward.train(other, folder / "model", "tiny", say=quiet, stop=stop, at_look=at_look)
    assert run.status == "stopped" and run.checkpoint.exists()
    stop.clear()
    again = reward.train(config, folder / "model", "tiny", say=quiet, stop=stop)
    assert again.id == run.id and again.status == "finished"
    losses = [[(row["step"], row["loss"]) for row in rows if "loss" in row] for rows in (whole, again.history())]
    assert [step for step, _ in losses[0]] == [step for step, _ in losses[1]]
    assert losses[1][-1][1] == pytest.approx(losses[0][-1][1], rel=1e-3)


def test_off_topic_pairs_reject_what_was_chosen_for_another_prompt(folder):
    pairs, _ = preferences.pairs(str(folder / "pairs.jsonl"))
    found, again = (reward.off_topic(pairs, 0) for _ in range(2))
    assert found.to_list() == again.to_list() != reward.off_topic(pairs, 1).to_list()
    assert [found[name] for name in ("prompt", "chosen")] == [pairs[name] for name in ("prompt", "chosen")]
    for row in found:
        assert row["rejected"] in pairs["chosen"] and row["rejected"] != row["chosen"]
    shared = [len(set(row["chosen"].split()) & set(row["rejected"].split())) for row in found]
    assert sum(shared) / len(shared) > 0.5  # of two words; drawn blindly it would be a sixth of them
    lone = pairs.select([0, 0])
    assert reward.off_topic(lone, 0)["rejected"] == lone["rejected"]  # nothing else to reject
    assert trained(folder, off_topic=False, seed=8).id != trained(folder, seed=8).id


def test_a_good_answer_to_the_same_prompt_is_not_off_topic():
    texts = [f"{word} stone and {word}" for word in "abcdefgh"]
    rows = [{"prompt": f"{n // 4}?", "chosen": text, "rejected": "No."} for n, text in enumerate(texts)]
    pairs = Dataset.from_list(rows)
    for row in reward.off_topic(pairs, 0):
        assert row["rejected"] in texts and texts.index(row["rejected"]) // 4 != int(row["prompt"][0])


def test_logits_are_those_of_the_language_model_where_it_caps_them():
    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    sizes |= {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8, "final_logit_softcapping": 0.05}
    model, ids = Gemma2ForCausalLM(Gemma2Config(**sizes)).eval(), torch.arange(9)[None]
    found = model(ids, output_hidden_states=True)
    logits = model.lm_head(found.hidden_states[-1])
    assert torch.allclose(reward.as_its_model(logits, model.config), found.logits, atol=1e-6)
    assert not torch.allclose(logits, found.logits, atol=1e-3)


def test_a_classifier_without_a_score_is_refused(tmp_path, folder):
    sizes = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    BertForSequenceClassification(BertConfig(**sizes, num_attention_heads=2, num_labels=1)).save_pretrained(tmp_path)
    models.load(folder / "model")[1].save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="reward model cannot be loaded"):
        rewards.load(tmp_path)


def test_bad_pairs_are_refused_before_training(folder, tmp_path):
    same, long = tmp_path / "same.jsonl", tmp_path / "long.jsonl"
    same.write_text("".join(json.dumps({**row, "rejected": row["chosen"]}) + "\n" for row in ROWS))
    long.write_text("".join(json.dumps({**row, "prompt": "river " * 3000}) + "\n" for row in ROWS))
    for file, says in ((same, "the same answer"), (long, "fills the context")):
        with pytest.raises(DataError, match=says):
            reward.train(config_of(folder, seed=9, data=str(file)), folder / "model", "tiny", say=quiet)


def test_conversations_train_through_the_pipeline_and_what_is_odd_is_said(tmp_path, store):
    said, own = [], tmp_path / "own.jsonl"
    turns = [{"role": role, "content": text} for role, text in (("user", "Hi?"), ("assistant", "Hello."))]
    row = {"prompt": turns[:1], "chosen": turns[1:], "rejected": [{"role": "assistant", "content": "What?"}]}
    own.write_text("\n".join([json.dumps(row)] * 8))
    config = RewardConfig(model="smoke", data=str(own), steps=2, batch_size=2, eval_every=2)
    run = pipeline.train_stage("reward", config, say=said.append)
    assert run.status == "finished" and any("7 of 8 pairs are given twice" in line for line in said)
    assert runs.get(run.parent).stage == "sft"
    assert pipeline.default_run("reward", "smoke", 1, say=quiet).config["steps"] == 4


@pytest.mark.parametrize("what", ["a language model", "nothing"])
def test_what_gives_no_score_is_refused(folder, tmp_path, what):
    with pytest.raises(ModelError, match="reward model cannot be loaded"):
        rewards.load(folder / "model" if what == "a language model" else tmp_path / "nowhere")


def test_sft_coef_adds_the_chosen_answers_next_token_loss(folder):
    """By hand, from the language model itself: the same rows, the same answer tokens."""
    source = folder / "model"
    language_model, tokenizer = models.load(source)
    head_of, _ = rewards.from_language_model(source)
    pairs = preferences.pairs(str(folder / "pairs.jsonl"))[0].select(range(5))
    rows = reward.tokens(tokenizer, pairs, 256)
    args = trl.RewardConfig(output_dir=str(folder / "out"), use_cpu=True, bf16=False, max_length=None, report_to="none")
    trainer = reward.Trainer(
        head_of,
        args,
        processing_class=tokenizer,
        train_dataset=rows,
        data_collator=reward.Collator(tokenizer.pad_token_id),
    )
    batch = trainer.data_collator(list(rows))
    head_of.train()
    alone = trainer.compute_loss(head_of, dict(batch))
    trainer.sft_coef = 0.5
    both = trainer.compute_loss(head_of, dict(batch))
    said = [[*pair["messages"], {"role": "assistant", "content": pair["chosen"]}] for pair in pairs]
    losses = []
    for messages in said:
        asked, whole = (
            tokenizer.apply_chat_template(some, add_generation_prompt=some is not messages, return_dict=True)[
                "input_ids"
            ]
            for some in (messages[:-1], messages)
        )
        log_probs = language_model(torch.tensor([whole])).logits[0].float().log_softmax(-1)
        losses += [-log_probs[place - 1, whole[place]] for place in range(len(asked), len(whole))]
    expected = torch.stack(losses).mean()
    assert alone.item() == pytest.approx(math.log(2), abs=1e-5)
    assert (both - alone).item() == pytest.approx(0.5 * expected.item(), rel=0.01)
    both.backward()
    assert all(weight.grad is not None for weight in head_of.model.parameters())
    head_of.eval()
    assert trainer.compute_loss(head_of, dict(batch)).item() == pytest.approx(alone.item(), abs=1e-5)


def test_an_output_head_of_its_own_stays_frozen_and_is_not_saved(folder):
    model, _ = rewards.from_language_model(folder / "model")
    head = model.output_head[0].weight
    own = head is not model.get_input_embeddings().weight
    assert head.requires_grad != own
    assert not any("output_head" in name for name in model.state_dict())
    assert own == (model.config.model_type == "llama")
    seen = []
    run = reward.train(
        config_of(folder, seed=11), folder / "model", "tiny", say=quiet,
        at_look=lambda run, model, tokenizer: seen.append(model.output_head[0].weight.detach().clone()),
    )  # fmt: skip
    assert torch.equal(seen[0], seen[-1]) == own
    with safetensors.safe_open(run.checkpoint / "model.safetensors", "pt") as file:
        names = file.keys()
    assert any("score" in name for name in names)
    assert not any("lm_head" in name or "output_head" in name for name in names)
