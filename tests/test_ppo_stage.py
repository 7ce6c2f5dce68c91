"""The stage PPO, with RLOO and GRPO: rollouts, what trains, stops and resumed runs, bad rewards."""

import dataclasses
import json
import math
import threading

import numpy as np
import pytest
import torch

from labkit import models, pipeline, ppo, preferences, rewards, rollouts, runs
from labkit.config import PPOConfig
from labkit.errors import ConfigError, DataError, TrainingError
from labkit.stages import groups
from labkit.stages import ppo as stage
from labkit.ui import plots


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny model in a folder, and small pairs."""
    root = tmp_path_factory.mktemp("ppo")
    words = ["river", "stone", "lamp", "house", "dog", "cat"]
    pairs = [{"prompt": f"Say {a} {b}", "chosen": f"{a} {b}.", "rejected": f"{b}!"} for a in words for b in words]
    (root / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    tokenizer = models.train_tokenizer([row["prompt"] + row["chosen"] for row in pairs], 320)
    models.new_model(tokenizer, hidden_size=32, layers=2, heads=2, seed=0).save_pretrained(root / "model")
    tokenizer.save_pretrained(root / "model")
    return root


def configuration(folder, **options):
    few = {
        "steps": 3,
        "batch_size": 8,
        "minibatch_size": 4,
        "eval_every": 2,
        "max_new_tokens": 6,
        "learning_rate": 1e-3,
    }
    return PPOConfig(**{"model": str(folder / "model"), "data": str(folder / "pairs.jsonl"), **few, **options})


def quiet(*_):
    pass


def short(prompts, texts):
    """A reward: the fewer letters, the better."""
    return torch.tensor([-0.1 * len(text) for text in texts])


def go(folder, config, **options):
    return stage.train(config, folder / "model", "tiny", say=quiet, **{"reward_function": short, **options})


def learner(folder, config):
    torch.manual_seed(0)
    model, tokenizer = models.load(folder / "model")
    model = stage.adapters.attach(model, config, tokenizer)
    return stage.Learner(config, model, tokenizer, rollouts.scorer(short, 1.0))


def rows(folder, config, n=8):
    found = preferences.pairs(config.data)[0][:n]
    return {"asked": found["prompt"], "messages": found["messages"]}


@pytest.mark.parametrize("options", [{}, {"tuning": "lora"}, {"value_model": "separate"}])
def test_the_ratio_is_1_before_the_first_update(folder, options):
    config = configuration(folder, **options)
    one = learner(folder, config)
    one.update(one.experience(rows(folder, config)))  # an adapter starts at 0: move it first
    batch = one.experience(rows(folder, config))
    batch |= {"whitened": ppo.whiten(batch["advantages"], batch["mask"])}
    for part in one.minibatches(batch):
        logits, hidden = rollouts.forward(one.policy, part)
        assert torch.equal(ppo.log_probs(logits, part["tokens"]) * part["mask"], part["log_probs"] * part["mask"])
        assert torch.equal(one.critic(hidden, part), part["values"])
        loss, clipped, _ = one.losses(part)
        assert clipped == 0 and loss.item() == pytest.approx(-ppo.masked_mean(part["whitened"], part["mask"]).item())


def test_log_probs_are_those_of_generation(folder):
    """The padding on the left changes nothing: each row alone, without any, has the same log-probabilities."""
    config = configuration(folder)
    one = learner(folder, config)
    batch = one.experience(rows(folder, config))
    width = batch["mask"].shape[1]
    for row in range(8):
        kept = batch["attention"][row].bool()
        ids, n = batch["ids"][row][kept], int(batch["mask"][row].sum())
        with torch.no_grad():
            log_p = one.policy(input_ids=ids[None]).logits[0].float().log_softmax(-1)
        wanted = log_p[-n - 1 : -1].gather(1, ids[-n:, None])[:, 0]
        torch.testing.assert_close(batch["log_probs"][row, :n], wanted, rtol=0.02, atol=0.05)  # bf16
        assert batch["mask"][row, n:].sum() == 0 and n <= width


def test_a_value_knows_nothing_of_the_token_that_it_is_before(folder):
    config = configuration(folder)
    one = learner(folder, config)
    batch = one.experience(rows(folder, config))
    _, hidden = rollouts.forward(one.policy, batch)
    for place in (-1, -2):
        ids = batch["ids"].clone()
        ids[:, place] = (ids[:, place] + 1) % 320
        _, changed = rollouts.forward(one.policy, batch | {"ids": ids})
        n = hidden.shape[1] + place + 1
        assert torch.equal(changed[:, :n], hidden[:, :n])
        assert place == -1 or not torch.equal(changed[:, n:], hidden[:, n:])


def test_a_look_leaves_the_random_numbers_alone_and_dropout_stays_off(folder):
    config = configuration(folder)
    one = learner(folder, config)
    before = torch.get_rng_state()
    first = stage.look(one, rows(folder, config), [])
    assert torch.equal(torch.get_rng_state(), before) and stage.look(one, rows(folder, config), []) == first
    one.policy.train()  # as whoever looks may leave it
    one.experience(rows(folder, config))
    assert not one.policy.training


def test_an_answer_ends_with_its_first_end_token(folder):
    _, tokenizer = models.load(folder / "model")
    end, word = tokenizer.eos_token_id, 40

    class Model(torch.nn.Module):
        device = torch.device("cpu")

        def generate(self, input_ids, **_):
            said = torch.tensor([[word, end, end, end], [word, word, word, word], [end, end, end, end]])
            return torch.cat([input_ids, said], dim=1)

    messages = [[{"role": "user", "content": "Say dog"}]] * 3
    batch, texts = rollouts.sample(Model(), tokenizer, messages, 4)
    assert batch["mask"].tolist() == [[1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0]]
    assert batch["ended"].tolist() == [True, False, True] and texts[2] == ""
    assert texts[1] == tokenizer.decode([word] * 4).strip()
    scored = rollouts.scorer(lambda prompts, said: torch.zeros(3), 1.5)(["a"] * 3, texts, batch["ended"].tolist())
    assert scored.tolist() == [0.0, -1.5, 0.0]


@pytest.mark.parametrize("value_model", ["shared", "separate"])
def test_full_tuning_moves_every_weight_and_leaves_the_reference(folder, value_model):
    config = configuration(folder, value_model=value_model)
    one = learner(folder, config)
    start = {name: weight.detach().clone() for name, weight in one.trainable().items()}
    before = [weight.clone() for weight in one.reference.parameters()]
    for _ in range(2):
        one.update(one.experience(rows(folder, config)))
    assert all(torch.equal(a, b) for a, b in zip(before, one.reference.parameters(), strict=True))
    assert all(not torch.equal(start[name], weight) for name, weight in one.trainable().items())
    assert any(name.startswith("critic.model") for name in start) is (value_model == "separate")


def test_with_lora_only_adapter_and_head_move(folder):
    config = configuration(folder, tuning="lora", lora_rank=4)
    one = learner(folder, config)
    assert one.reference is None
    both = {**dict(one.policy.named_parameters()), **dict(one.critic.named_parameters())}
    start = {name: weight.detach().clone() for name, weight in both.items()}
    first = one.experience(rows(folder, config))
    assert torch.equal(first["log_probs"], first["ref_log_probs"])  # an adapter starts as nothing
    for _ in range(2):
        one.update(one.experience(rows(folder, config)))
    moved = {name for name, weight in both.items() if not torch.equal(start[name], weight)}
    assert moved == {name for name in both if "lora" in name or name.startswith("head")}
    torch.manual_seed(1)
    again = one.experience(rows(folder, config))
    assert not torch.equal(again["log_probs"], again["ref_log_probs"])


def test_a_reward_is_earned_and_the_run_is_found_again(folder, store):
    config = configuration(folder, steps=25, batch_size=32, minibatch_size=16, kl_coef=0.0, eval_every=25)
    run = go(folder, config)
    looks = [row["held_out_reward"] for row in run.history() if "held_out_reward" in row]
    rewards = [row["reward"] for row in run.history() if "reward" in row]
    assert np.mean(rewards[-5:]) > np.mean(rewards[:5]) + 0.05 and len(looks) == 2
    last = run.history()[-2]
    for name in ("kl", "entropy", "clip_share", "value_loss", "explained_variance", "answer_length", "seconds"):
        assert math.isfinite(last[name])
    assert run.metrics["models_in_memory"] == 2 and run.metrics["answers_seen"] == 25 * 32
    worked = json.loads((run.path / "rollout.json").read_text())
    tensors = {name: torch.tensor(worked[name]) for name in ("rewards", "values", "mask", "advantages")}
    found, _ = ppo.gae(tensors["rewards"], tensors["values"], tensors["mask"], config.gamma, config.lam)
    torch.testing.assert_close(found, tensors["advantages"])
    model, _ = models.load(run.checkpoint)
    assert model.dtype == torch.float32
    said = []
    again = stage.train(config, folder / "model", "tiny", say=said.append, reward_function=short)
    assert again.id == run.id and "already run" in said[0]


def test_another_reward_is_another_run():
    def longer(than):
        return lambda prompts, texts: torch.tensor([float(len(text) > than) for text in texts])

    assert rollouts.name_of(longer(3)) == rollouts.name_of(longer(3)) != rollouts.name_of(longer(4))
    assert rollouts.name_of(lambda prompts, texts: 1) != rollouts.name_of(lambda prompts, texts: 2)
    inside = rollouts.name_of(lambda prompts, texts: [len(text) for text in texts])
    assert inside != rollouts.name_of(lambda prompts, texts: [-len(text) for text in texts])
    assert rollouts.name_of(short).startswith("function short ") and rollouts.name_of(print).startswith(
        "function builtin"
    )


@pytest.mark.parametrize("options", [{}, {"tuning": "lora", "value_model": "separate"}, {"kl_target": 0.5}])
def test_a_stop_is_resumed_to_the_same_numbers(folder, monkeypatch, tmp_path, options):
    config = configuration(folder, steps=4, **options)
    monkeypatch.setenv("LABKIT_RUNS", str(tmp_path / "whole"))
    whole = go(folder, config).history()
    monkeypatch.setenv("LABKIT_RUNS", str(tmp_path / "stopped"))
    stop = threading.Event()

    def stop_at_2(run, model, tokenizer):
        model.train()  # as the bench does
        if run.history()[-1]["step"] == 2:
            stop.set()

    run = go(folder, config, stop=stop, at_look=stop_at_2)
    assert run.status == "stopped" and run.checkpoint.exists()
    stop.clear()
    run.log(3, reward=99.0)  # of a run that was killed after its last checkpoint
    again = go(folder, config, stop=stop)
    assert again.id == run.id and again.status == "finished"
    for name in ("reward", "kl", "loss", "held_out_reward"):
        found, wanted = ([row[name] for row in rows if name in row] for rows in (again.history(), whole))
        assert found == pytest.approx(wanted, rel=1e-4, abs=1e-6)


def test_eval_every_does_not_change_the_result(folder, store):
    config = configuration(folder, steps=4)
    numbers = []
    for every in (1, 4):
        run = go(folder, dataclasses.replace(config, eval_every=every, retrain=True))
        numbers.append([row["reward"] for row in run.history() if "reward" in row])
    assert numbers[0] == numbers[1]


BAD = {
    "shape": (lambda prompts, texts: torch.zeros(len(texts), 1), "one number for each of 4 answers"),
    "one number for all": (lambda prompts, texts: torch.tensor(1.0), "one number for each"),
    "NaN": (lambda prompts, texts: torch.full((len(texts),), math.nan), "no number"),
    "infinity": (lambda prompts, texts: torch.full((len(texts),), math.inf), "no number"),
}


@pytest.mark.parametrize("fault", BAD)
def test_a_bad_reward_is_refused_before_training(folder, store, fault):
    reward, says = BAD[fault]
    with pytest.raises(TrainingError, match=says) as caught:
        go(folder, configuration(folder), reward_function=reward)
    assert caught.value.remedy
    assert runs.all_runs("ppo")[0].status == "failed" and runs.all_runs("ppo")[0].history() == []


def test_a_loss_that_is_no_number_is_halted(folder, store):
    with pytest.raises(TrainingError, match="no number at step 1"):
        go(folder, configuration(folder, value_coef=100.0), reward_function=lambda p, t: torch.full((len(t),), 3e37))
    assert "not_a_number" in [alarm["name"] for alarm in runs.all_runs("ppo")[0].info["alarms"]]


def test_bad_settings_are_refused(folder, store):
    with pytest.raises(ConfigError, match="must divide batch_size"):
        PPOConfig(batch_size=10, minibatch_size=4)
    with pytest.raises(ConfigError, match="must divide minibatch_size"):
        PPOConfig(algorithm="rloo", generations=5)
    with pytest.raises(ConfigError, match="needs algorithm"):
        PPOConfig(generations=8)
    with pytest.raises(ConfigError, match="room for a prompt"):
        go(folder, configuration(folder, max_new_tokens=8000))
    long = folder / "long.jsonl"
    long.write_text("".join(json.dumps({"prompt": "dog " * 2000, "chosen": "a", "rejected": "b"}) + "\n" for _ in "ab"))
    with pytest.raises(DataError, match="fills the context"):
        go(folder, configuration(folder, data=str(long)))


@pytest.mark.parametrize("algorithm", ["rloo", "grpo"])
@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_rloo_and_grpo_by_trl(folder, store, algorithm, tuning):
    config = configuration(folder, algorithm=algorithm, tuning=tuning, generations=2, eval_every=3)
    run = go(folder, config)
    assert run.status == "finished"
    steps = [row["step"] for row in run.history() if "reward" in row]
    assert steps == [1, 2, 3] and [row["step"] for row in run.history() if "held_out_reward" in row] == [0, 3]
    before, after = models.load(folder / "model")[0], models.load(run.checkpoint)[0]
    assert any(not torch.equal(a, b) for a, b in zip(before.parameters(), after.parameters(), strict=True))


@pytest.mark.parametrize("algorithm", ["rloo", "grpo"])
def test_what_trl_is_told(folder, store, monkeypatch, algorithm):
    """Shao et al.'s GRPO, where trl's own default is DAPO; as many updates of each batch as PPO makes."""
    seen = []
    monkeypatch.setattr(groups.training, "fit", lambda trainer, *_: seen.append(trainer.args) or False)
    go(folder, configuration(folder, algorithm=algorithm, generations=2, kl_coef=0.3, clip=0.1, epochs=3))
    told = seen[0]
    assert (told.beta, told.epsilon, told.num_iterations, told.num_generations) == (0.3, 0.1, 3, 2)
    assert told.disable_dropout and told.temperature == 1.0 and told.top_p == 1.0
    if algorithm == "grpo":
        assert told.loss_type == "grpo" and not told.use_bias_correction_kl
    else:
        assert told.normalize_advantages


def test_without_a_price_rloo_and_grpo_log_no_kl(folder, store):
    run = go(folder, configuration(folder, algorithm="grpo", generations=2, kl_coef=0.0))
    assert not any("kl" in row for row in run.history() if "reward" in row)


@pytest.mark.parametrize("algorithm", ["ppo", "rloo"])
def test_a_last_look_that_was_cut_short_is_made_up_for(folder, store, algorithm):
    def interrupt(run, model, tokenizer):
        raise KeyboardInterrupt

    options = {"generations": 2} if algorithm == "rloo" else {}
    config = configuration(folder, algorithm=algorithm, eval_every=3, **options)
    looked = ppo_stage_look(interrupt, at=config.steps)
    with pytest.raises(KeyboardInterrupt):
        go(folder, config, at_look=looked)
    stopped = runs.all_runs("ppo")[0]
    assert stopped.status == "stopped"
    lines = [row for row in stopped.history() if "held_out_reward" not in row or row["step"] < config.steps]
    (stopped.path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))  # cut in the look
    run = go(folder, config)
    assert run.id == stopped.id and run.status == "finished"
    assert [row["step"] for row in run.history() if "held_out_reward" in row] == [0, config.steps]


def ppo_stage_look(what, at):
    """An at_look that does `what` at the step `at` alone."""
    return lambda run, *rest: what(run, *rest) if run.history()[-1]["step"] == at else None


def test_trl_tells_which_answers_were_cut(folder, store, monkeypatch):
    told, scorer = [], rollouts.scorer

    def spied(reward, penalty):
        score = scorer(reward, penalty)
        return lambda prompts, texts, ended: told.extend(zip(texts, ended, strict=True)) or score(prompts, texts, ended)

    monkeypatch.setattr(rollouts, "scorer", spied)
    go(folder, configuration(folder, algorithm="rloo", generations=2, max_new_tokens=60, batch_size=16, eval_every=9))
    lengths = {side: [len(text) for text, ended in told[1:] if ended is side] for side in (True, False)}
    assert min(map(len, lengths.values())) > 3 and np.mean(lengths[True]) < 0.8 * np.mean(lengths[False])


def test_the_reward_model_is_trained_and_named_in_the_run(store):
    """Left empty, the reward is the run of the same model, seed and data; its id is part of the run's identity."""
    config = PPOConfig(model="smoke", steps=1, batch_size=4, minibatch_size=4, max_new_tokens=4, eval_every=1)
    assert pipeline.existing("ppo", config) is None
    run = pipeline.train_stage("ppo", config, say=quiet)
    reward = runs.get(run.config["reward"])
    assert reward.stage == "reward" and reward.status == "finished" and run.metrics["models_in_memory"] == 3
    assert pipeline.existing("ppo", config).id == run.id
    assert pipeline.existing("ppo", dataclasses.replace(config, reward=reward.id)).id == run.id
    assert math.isfinite(run.metrics["gold"])
    assert pipeline.reward_of(config, say=quiet) == reward.id  # found, not trained again
    other = dataclasses.replace(config, reward=str(reward.checkpoint))
    assert pipeline.train_stage("ppo", other, say=quiet).metrics["held_out_reward"] == run.metrics["held_out_reward"]


def test_a_reward_model_reads_a_conversation_turn_by_turn(folder, store, monkeypatch):
    said = [{"role": "user", "content": "Say cat"}, {"role": "assistant", "content": "cat."}]
    good, bad = ([{"role": "assistant", "content": text}] for text in ("dog.", "no"))
    asked = ([*said, {"role": "user", "content": f"Say dog {n}"}] for n in range(12))
    rows = [{"prompt": prompt, "chosen": good, "rejected": bad} for prompt in asked]
    own = folder / "turns.jsonl"
    own.write_text("".join(json.dumps(row) + "\n" for row in rows))
    seen = []

    def load(source):
        return lambda prompts, texts: seen.extend(prompts) or torch.zeros(len(texts))

    monkeypatch.setattr(rewards, "load", load)
    go(folder, configuration(folder, data=str(own), reward="any", steps=1), reward_function=None)
    assert all(prompt[:2] == said and len(prompt) == 3 for prompt in seen)


def test_tokens_of_a_picture_are_no_markup():
    figure = plots.tokens(["<b>", " a", " a"], {"value": [1.0, 2.0, 3.0]}, title="", y="")
    assert figure.layout.xaxis.ticktext == ("&lt;b&gt;", " a", " a") and list(figure.data[0].x) == [0, 1, 2]
    assert plots.lines([0.0, 1.0], {"a": [1.0, 2.0]}, title="", x="x", y="y").layout.xaxis.title.text == "x"
