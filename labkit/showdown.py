"""The showdown's trainings: every method from one parent, on the same pairs, for the same compute.

Compute is counted in token passes: one token forward through one model is 1, its backward pass 2 more (Kaplan et al.
2020, section 2.1). For a pair with prompt x, chosen y_w and rejected y_l, or for a sampled answer y:

    SFT on chosen   3 (x + y_w)                                 the chosen answer as a demonstration
    ORPO            3 (2 x + y_w + y_l)                         both answers
    DPO             (3 + 1) (2 x + y_w + y_l)                   the reference scores a pair once: 3 when it comes again
    reward model    3 (2 x + y_w + y_l)
    PPO, RLOO       (1 + 1 + 1 + 1 + 3 EPOCHS) (x + y)          sample, score by policy, reference, reward; learn

PPO, RLOO and best of n need a reward model first: it gets half of their budget.
"""

import statistics
from statistics import fmean

from labkit import data, pipeline, preferences, runs
from labkit.config import Config, DPOConfig, ORPOConfig, PPOConfig, RewardConfig, SFTConfig, ShowdownConfig, sized
from labkit.errors import ConfigError, DataError

FORWARD, TRAIN = 1, 3
EPOCHS = 2  # passes of PPO and RLOO over their answers
BATCH = {"SFT on chosen": 16, "DPO": 16, "ORPO": 16, "reward model": 16, "PPO": 32, "RLOO": 32}  # rows, pairs, answers
WITH_REWARD = ("PPO", "RLOO")
STAGE = {"SFT on chosen": "sft", "DPO": "dpo", "ORPO": "orpo", "reward model": "reward", "PPO": "ppo", "RLOO": "ppo"}


def lengths(tokenizer, pairs) -> dict[str, float]:
    """Mean tokens of the pairs' prompts (with the chat template), chosen and rejected answers (with their end)."""

    def answer(text: str) -> int:
        return len(tokenizer(text, add_special_tokens=False)["input_ids"]) + 1

    asked = [len(data.templated(tokenizer, said, add_generation_prompt=True)) for said in pairs["messages"]]
    found = {side: fmean(map(answer, pairs[side])) for side in ("chosen", "rejected")}
    return {"prompt": fmean(asked), **found}


def passes(length: dict[str, float], sampled: float | None = None) -> dict[str, float]:
    """Token passes for one row, pair or sampled answer of each method.

    sampled: mean tokens of a sampled answer; before any is sampled, taken to be the mean of chosen and rejected.
    """
    pair = 2 * length["prompt"] + length["chosen"] + length["rejected"]
    sampled = (length["chosen"] + length["rejected"]) / 2 if sampled is None else sampled
    answer = (4 * FORWARD + EPOCHS * TRAIN) * (length["prompt"] + sampled)
    return {
        "SFT on chosen": TRAIN * (length["prompt"] + length["chosen"]),
        "DPO": (TRAIN + FORWARD) * pair,
        "ORPO": TRAIN * pair,
        "reward model": TRAIN * pair,
        "PPO": answer,
        "RLOO": answer,
    }


def plan(budget: int, length: dict[str, float], pairs: int) -> dict[str, int]:
    """Optimizer steps of each method that `budget` token passes pay for, of so many different pairs.

    Raises ConfigError where a method gets none.
    """
    halved = ("reward model", *WITH_REWARD)
    cost = {name: each * BATCH[name] * (2 if name in halved else 1) for name, each in passes(length).items()}
    steps = {name: int(budget / each) for name, each in cost.items()}
    reference = pairs * passes(length)["DPO"] * FORWARD / (TRAIN + FORWARD)  # for all pairs, once
    steps["DPO"] = max(steps["DPO"], int((budget - reference) * (TRAIN + FORWARD) / TRAIN / cost["DPO"]))
    if not all(steps.values()):
        least = round(max(cost.values()) + 1)
        raise ConfigError("budget must pay for a step of every method", got=budget, remedy=f"Write {least} or more.")
    return steps


def spent(method: str, run: runs.Run, length: dict[str, float], pairs: int) -> float:
    """Token passes that a training really took: those of PPO and RLOO depend on how long the sampled answers were."""
    sampled = [row["answer_length"] for row in run.history() if "reward" in row]
    each = passes(length, fmean(sampled) if sampled else None)[method]
    seen = run.config["steps"] * BATCH[method]
    again = max(0, seen - pairs) if method == "DPO" else 0  # pairs that the reference has scored already
    return (seen - again * FORWARD / (TRAIN + FORWARD)) * each


def seconds(run: runs.Run, clock: str = "seconds") -> float:
    """Seconds of a training's steps alone, at their median pace, and of DPO's pass of the reference: no looks.

    Of a run too short for a pace, all of its seconds. clock: "processor_seconds" for what other work does not change.
    """
    paces = run.paces(clock)
    if not paces:
        return run.info[clock]
    pace = statistics.median(paces)
    return pace * run.config["steps"] + run.metrics.get("reference_seconds", 0.0)


def chosen_file(source: str) -> str:
    """The pairs' chosen answers as instructions, a JSONL file in the run store that SFT can train on.

    Raises DataError for conversations of several turns, which SFT's rows cannot hold.
    """
    train, _ = preferences.pairs(source)
    long = [row["row"] for row in train if len(row["messages"]) > 1]
    if long:
        what = f"{len(long)} of {len(train)} pairs have several turns before the answer (first: row {long[0]})"
        raise DataError(what, got=source, remedy="Leave these rows out: SFT on chosen needs one question to an answer.")
    file = runs.runs_dir() / "showdown" / f"chosen-{preferences.data_hash(source)[:8]}.jsonl"
    return str(runs.write_lines(file, ({"prompt": row["prompt"], "answer": row["chosen"]} for row in train)))


def training(config: ShowdownConfig, method: str, steps: int, seed: int, parent: str, reward: str = "") -> Config:
    """The stage's configuration: all alike in parent, seed and peak learning rate, the rest at the stage's defaults.

    The reward model keeps its own stage's learning rate: it is no policy.
    """
    shared = {"model": config.model, "seed": seed, "parent": parent, "steps": steps, "retrain": config.retrain}
    shared |= {"batch_size": BATCH[method], "eval_every": max(1, steps // 4)}
    if method == "reward model":
        return sized(RewardConfig(**shared, data=config.data), keep=shared)
    shared |= {"learning_rate": config.learning_rate}
    if method == "SFT on chosen":
        return SFTConfig(**shared, warmup_steps=10, data=chosen_file(config.data))
    if method in WITH_REWARD:
        shared |= {"minibatch_size": BATCH[method] // 2, "epochs": EPOCHS, "reward": reward}
        return PPOConfig(**shared, algorithm=method.lower(), data=config.data)
    if method == "DPO":
        return DPOConfig(**shared, data=config.data)
    return ORPOConfig(**shared, warmup_steps=10, data=config.data)


def train_all(config: ShowdownConfig, parent: str, steps: dict[str, int], say=print) -> dict[str, list[runs.Run]]:
    """{method: its run of each seed}; the reward model of a seed is that of the seed's PPO, RLOO and best of n."""
    found: dict[str, list[runs.Run]] = {}
    for seed in range(config.seed, config.seed + config.seeds):
        for method in ("reward model", *(name for name in STAGE if name != "reward model")):
            reward = found["reward model"][-1].id if method in WITH_REWARD else ""
            one = training(config, method, steps[method], seed, parent, reward)
            if config.model == "smoke":  # a process takes longer to start than this model to train
                run = pipeline.train_stage(STAGE[method], one, say=lambda line: None)
            else:
                run = pipeline.train_apart(STAGE[method], one)
            found.setdefault(method, []).append(run)
            say(f"seed {seed} | {method:13} | {steps[method]:5} steps | {run.info['seconds']:4.0f} s | {run.id}")
    return found
