"""PPO, the reinforcement learning of RLHF (Ziegler et al. 2019, Stiennon et al. 2020, Ouyang et al. 2022).

Every step:  1. sample an answer to each prompt of a batch                           pi_old
             2. score it with the reward; charge every token for its KL from the reference    token_rewards
             3. credit every token: how much better it went on than the values expected       gae, whiten
             4. a few passes over minibatches: policy and values learn, clipped               policy_loss, value_loss

The formulas are labkit/ppo.py. Up to four models: policy, reference, reward and values. With an adapter the reference
is the policy without it; with value_model="shared" the values are a head on the policy's hidden states. Dropout is off,
and log-probabilities of the sampled answers come from the same forward pass of the same rows as in training, so that
the ratio pi / pi_old is exactly 1 before a batch's first update.
"""

import contextlib
import copy
import dataclasses
import math
import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch
import transformers
from datasets import concatenate_datasets

from labkit import adapters, budget, data, health, models, ppo, preferences, rewards, rollouts, runs, training
from labkit.config import PPOConfig
from labkit.errors import ConfigError, Stopped, TrainingError
from labkit.evaluate import answers
from labkit.stages import groups

KL_HORIZON = 1_000  # answers over which kl_coef is adapted; Ziegler et al. 2019 took 10,000 of their two million


class Critic(torch.nn.Module):
    """V_t, the reward expected from token t on: a linear head, 0 at first, on hidden states (B, T, H) -> (B, T).

    model: its own backbone, or None where it reads the policy's hidden states.
    """

    def __init__(self, hidden_size: int, model=None):
        super().__init__()
        self.head, self.model = torch.nn.Linear(hidden_size, 1), model
        torch.nn.init.zeros_(self.head.weight)
        torch.nn.init.zeros_(self.head.bias)

    def forward(self, hidden: torch.Tensor, batch: dict) -> torch.Tensor:
        return self.head(hidden if self.model is None else rollouts.forward(self.model, batch)[1]).squeeze(-1)


class Learner:
    """Policy, reference, critic and optimizer; `experience` samples and scores a batch, `update` learns from it."""

    def __init__(self, config: PPOConfig, policy, tokenizer, score: Callable):
        self.config, self.policy, self.tokenizer, self.score = config, policy.eval(), tokenizer, score
        self.reference = None if adapters.is_peft(policy) else copy.deepcopy(policy).requires_grad_(False)
        own = copy.deepcopy(policy) if config.value_model == "separate" else None
        self.critic = Critic(policy.config.hidden_size, own).to(policy.device)
        self.step, self.looked, self.kl_coef = 0, -1, config.kl_coef  # looked: the step of the last look completed
        head = list(self.critic.head.parameters())
        rest = [weight for name, weight in self.trainable().items() if not name.startswith("critic.head")]
        self.groups = [(rest, config.learning_rate), (head, config.value_learning_rate)]  # what trains, its peak rate
        self.optimizer = torch.optim.AdamW(
            [{"params": part} for part, _ in self.groups], betas=(0.9, 0.95), weight_decay=0.0
        )

    def trainable(self) -> dict[str, torch.Tensor]:
        """The weights that train, by name."""
        both = torch.nn.ModuleDict({"policy": self.policy, "critic": self.critic})
        return {name: weight for name, weight in both.named_parameters() if weight.requires_grad}

    def minibatches(self, batch: dict) -> list[dict]:
        """The batch in parts that are the same at every pass, so that shapes, and with them rounding, are the same."""
        size = self.config.minibatch_size
        parts = zip(*(tensor.split(size) for tensor in batch.values()), strict=True)
        return [dict(zip(batch, part, strict=True)) for part in parts]

    @torch.no_grad()
    def experience(self, rows: dict[str, list]) -> dict[str, torch.Tensor]:
        """Sampled answers to rows {asked, messages} with all that learning needs; per-token tensors are (B, T)."""
        self.policy.eval()
        batch, texts = rollouts.sample(self.policy, self.tokenizer, rows["messages"], self.config.max_new_tokens)
        parts = []
        for part in self.minibatches(batch):
            logits, hidden = rollouts.forward(self.policy, part)
            without = self.policy.disable_adapter() if self.reference is None else contextlib.nullcontext()
            with without:
                reference_logits, _ = rollouts.forward(self.reference or self.policy, part)
            parts.append(
                {
                    "log_probs": ppo.log_probs(logits, part["tokens"]),
                    "ref_log_probs": ppo.log_probs(reference_logits, part["tokens"]),
                    "entropy": ppo.entropy(logits),
                    "values": self.critic(hidden, part),
                }
            )
        batch |= {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        batch["repeated"] = torch.tensor([health.repeated(text) for text in texts], device=batch["ids"].device)
        batch["scores"] = self.score(rows["asked"], texts, batch["ended"].tolist()).to(batch["ids"].device)
        batch["rewards"] = ppo.token_rewards(
            batch["scores"], batch["log_probs"], batch["ref_log_probs"], batch["mask"], self.kl_coef
        )
        batch["advantages"], batch["returns"] = ppo.gae(
            batch["rewards"], batch["values"], batch["mask"], self.config.gamma, self.config.lam
        )
        return batch

    def losses(self, part: dict) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(policy loss, share of tokens clipped, value loss) of a minibatch."""
        logits, hidden = rollouts.forward(self.policy, part)
        log_probs = ppo.log_probs(logits, part["tokens"])
        mask, config = part["mask"], self.config
        loss, clipped = ppo.policy_loss(log_probs, part["log_probs"], part["whitened"], mask, config.clip)
        values = self.critic(hidden, part)
        return loss, clipped, ppo.value_loss(values, part["values"], part["returns"], mask, config.value_clip)

    def update(self, batch: dict) -> dict[str, float]:
        """Learn from a batch; the means of what was seen. The loss is nan, and nothing more is learned, as soon as it
        or its gradient is no number.
        """
        config, seen = self.config, []
        pace = min(1.0, (self.step + 1) / (min(config.warmup_steps, config.steps // 2) + 1))
        pace *= 1 - self.step / config.steps
        for group, (_, peak) in zip(self.optimizer.param_groups, self.groups, strict=True):
            group["lr"] = pace * peak
        batch = batch | {"whitened": ppo.whiten(batch["advantages"], batch["mask"])}
        parts = self.minibatches(batch)
        for _ in range(config.epochs):
            for place in torch.randperm(len(parts)).tolist():
                policy_loss, clipped, value_loss = self.losses(parts[place])
                loss = policy_loss + config.value_coef * value_loss
                self.optimizer.zero_grad()
                loss.backward()
                norm = torch.nn.utils.clip_grad_norm_(self.trainable().values(), 1.0)
                if not math.isfinite(loss.item() + norm.item()):
                    return {"loss": math.nan}
                self.optimizer.step()
                seen.append([float(number.detach()) for number in (loss, policy_loss, value_loss, clipped, norm)])
        names = ("loss", "policy_loss", "value_loss", "clip_share", "grad_norm")
        self.step += 1
        means = [sum(column) / len(seen) for column in zip(*seen, strict=True)]
        return {
            **dict(zip(names, means, strict=True)),
            "learning_rate": pace * config.learning_rate,
            "kl_coef": self.kl_coef,
        }

    def save(self, path: Path) -> None:
        """Everything that going on from here needs, written whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        state = {"step": self.step, "looked": self.looked, "kl_coef": self.kl_coef}
        state["optimizer"] = self.optimizer.state_dict()
        torch.save({**state, "weights": self.trainable()}, path.with_suffix(".new"))
        os.replace(path.with_suffix(".new"), path)

    @torch.no_grad()
    def restore(self, path: Path) -> None:
        state = torch.load(path, weights_only=True, map_location=self.policy.device)
        self.step, self.looked, self.kl_coef = state["step"], state["looked"], state["kl_coef"]
        self.optimizer.load_state_dict(state["optimizer"])
        for name, weight in self.trainable().items():
            weight.copy_(state["weights"][name])


def look(learner: Learner, held_out: dict[str, list], questions: list[dict]) -> dict[str, float]:
    """Held-out reward and KL of sampled answers, with the same random numbers at every look; gold of greedy answers."""
    with torch.random.fork_rng():
        torch.manual_seed(learner.config.seed)
        found = rollouts.averages(learner.experience(held_out))
    numbers = {f"held_out_{name}": found[name] for name in ("reward", "kl", "answer_length", "ended", "repetition")}
    if questions:
        said = answers.ask(learner.policy, learner.tokenizer, [row["prompt"] for row in questions])
        numbers["gold"] = sum(row["gold"] for row in answers.judged(questions, said)) / len(questions)
    return numbers


def learn(
    learner: Learner,
    run: runs.Run,
    prompts: list[dict],
    at_hand: Callable,
    stop: threading.Event,
    keep: Callable[[], None],
) -> bool:
    """The loop, from the last checkpoint of a stopped or killed run on: True if it reached the last step.

    A stop, a keyboard interrupt included, keeps what was learned. Random numbers are drawn from the seed and the step
    alone, so a resumed run samples what it would have sampled.
    """
    config, saved = learner.config, run.path / "resume" / "learner.pt"
    if found := saved.exists():
        learner.restore(saved)

    def due() -> bool:
        return training.look_due(learner.step, config.eval_every, config.steps) and learner.looked < learner.step

    def look_now() -> None:
        with torch.random.fork_rng():
            at_hand(learner.step)
        learner.looked = learner.step

    run.rewind(learner.step if found else -1, look=not due())
    whole = True  # between two steps: no weight is half updated
    try:
        with training.interruptible(stop):
            if due():  # a stop cut it short, or it is the first
                look_now()
            while learner.step < config.steps:
                if stop.is_set():
                    raise Stopped
                whole = False
                torch.manual_seed(config.seed * 1_000_003 + learner.step)
                started = time.monotonic()
                batch = learner.experience(prompts[learner.step])
                sampled = time.monotonic()
                numbers = rollouts.averages(batch) | learner.update(batch)
                took = {"seconds_sampling": sampled - started, "seconds_learning": time.monotonic() - sampled}
                if config.kl_target:
                    learner.kl_coef = ppo.adapted_kl_coef(
                        learner.kl_coef, numbers["kl"], config.kl_target, config.batch_size, KL_HORIZON
                    )
                took |= {"seconds": round(run.elapsed(), 2), "processor_seconds": round(run.processor_seconds(), 2)}
                run.log(learner.step, **numbers, **took)
                if not math.isfinite(numbers["loss"]):
                    what = f"the loss or its gradient is no number at step {learner.step + 1}"
                    raise TrainingError(what, got=numbers["loss"], remedy="Lower learning_rate or value_coef.")
                whole = True
                if due():
                    keep_rollout(run, batch)
                    look_now()
                    learner.save(saved)
    except (Stopped, KeyboardInterrupt) as stopped:
        if whole and learner.step:
            learner.save(saved)
            keep()
        run.stop()
        if isinstance(stopped, KeyboardInterrupt):
            raise
        return False
    except Exception as error:
        run.fail(error)
        raise
    return True


def keep_rollout(run: runs.Run, batch: dict, rows: int = 8) -> None:
    """Write the batch's first answers, with every number that PPO makes of their tokens, to rollout.json."""
    keep = {name: tensor[:rows].tolist() for name, tensor in batch.items() if name != "attention"}
    runs.write_json(run.path / "rollout.json", keep)


def train(
    config: PPOConfig,
    source: str | Path,
    parent: str,
    *,
    say: Callable = print,
    stop: threading.Event | None = None,
    at_look: Callable | None = None,
    reward_function: rollouts.Reward | None = None,
) -> runs.Run:
    """Tune the model at `source` (its name or run id: `parent`) to earn a high reward and return the run.

    The reward is the model `config.reward`, a run id or a folder; or reward_function(prompts, answers) -> (rows,),
    which the run knows by its name and code (`rollouts.name_of`). An identical run that has finished is returned as it
    is. Raises DataError for prompts that fill the context, before training; TrainingError for a reward of the wrong
    shape or not finite, and where the loss diverges.
    """
    if reward_function is not None:
        config = dataclasses.replace(config, reward=rollouts.name_of(reward_function))
    data_hash = preferences.data_hash(config.data)
    run = runs.open_run("ppo", config, parent=parent, data_hash=data_hash, fresh=config.retrain)
    if run.status == "finished":
        say(f"{run.id} has already run: loaded")
        return run
    models.quiet()
    transformers.set_seed(config.seed)
    pairs, held_out = preferences.pairs(config.data)
    model, tokenizer = training.load(run, config, source)
    room = min(1024, models.context(model)) - config.max_new_tokens
    if room < 1:
        what, most = "max_new_tokens must leave room for a prompt", room + config.max_new_tokens - 1
        raise ConfigError(what, got=config.max_new_tokens, remedy=f"Write max_new_tokens = {most} or less.")
    if config.data != "lab":
        say(data.summary(pairs, held_out))
        preferences.check(concatenate_datasets([pairs, held_out]), tokenizer, room, answered=False)
    reward = reward_function or rewards.load(config.reward)
    score = rollouts.scorer(reward, config.missing_eos_penalty)
    learner = Learner(config, model.to(models.device()), tokenizer, score)
    few = config.model == "smoke"
    asked = "prompt" if reward_function else "messages"  # a reward model reads a conversation turn by turn
    pairs, held_out = (
        rows.add_column("asked", rows[asked]).select_columns(["asked", "messages"]) for rows in (pairs, held_out)
    )
    unseen = held_out[: 16 if few else budget.LOOK]
    questions = data.questions(config.model)[:: 16 if few else 8] if config.data == "lab" else []
    began, first = time.monotonic(), None  # of this process, which may go on with a stopped run

    def at_hand(step: int) -> None:
        """A look at held-out data after `step` steps: logged, told, and shown to whoever watches."""
        nonlocal first
        numbers = look(learner, unseen, questions)
        run.log(step, **numbers, seconds=round(run.elapsed(), 2))
        spent, first = time.monotonic() - began, step if first is None else first
        line = "step {:5}/{} | held-out reward {held_out_reward:.2f} | KL {held_out_kl:.2f} nats | "
        line = line.format(step, config.steps, **numbers) + f"{numbers['held_out_answer_length']:.0f} tokens"
        line += f" | gold {numbers['gold']:.2f} | {spent:.0f} s" if questions else f" | {spent:.0f} s"
        say(line + (f", {spent / (step - first) * (config.steps - step):.0f} s left" if step > first else ""))
        if at_look is not None:
            at_look(run, model, tokenizer)

    prompts = rollouts.batches(pairs, config.steps, config.batch_size, config.seed)
    way = learn if config.algorithm == "ppo" else groups.learn

    def keep() -> None:
        training.save(run, config, model, tokenizer, source)

    if way(learner, run, prompts, at_hand, threading.Event() if stop is None else stop, keep):
        run.info["peaks_mb"] |= {"training": models.peak_mb()}
        keep()
        looks = [row for row in run.history() if "held_out_reward" in row]
        numbers = {name: value for name, value in looks[-1].items() if name.startswith(("held_out", "gold"))}
        in_memory = 1 + sum(x is not None for x in (learner.reference, learner.critic.model)) + (not reward_function)
        numbers |= {"models_in_memory": in_memory, "answers_seen": config.steps * config.batch_size}
        run.finish(**numbers, **models.weights(model))
        shutil.rmtree(run.path / "resume", ignore_errors=True)
    return run
