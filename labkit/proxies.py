"""Proxies: reward models that learned from pairs with a fault, few of them, and so measure something near the aim.

few        too few pairs to tell what they have in common from what they were meant to show
noisy      a share of the labels is wrong: chosen and rejected exchanged
confounded the better answer is the shorter one (or the longer one) in nearly every pair, so that length
           explains the labels as well as quality does (Singhal et al. 2023, "A long way to go")
"""

import numpy as np

from labkit import pipeline, preferences, runs
from labkit.config import GoodhartConfig, RewardConfig
from labkit.errors import DataError

CONFOUNDED = 0.95  # share of pairs in which the confounded side is the better one


def pairs(confound: str, count: int, *, noise: float = 0.0, seed: int = 0) -> list[dict]:
    """`count` of the lab's pairs, rows {prompt, chosen, rejected}, drawn by `seed`.

    confound: "none", or which answer is the chosen one in 95% of the pairs: "shorter" or "longer". noise: with what
    probability each pair is turned round. More pairs contain the fewer of the same seed, turned alike. Raises DataError
    where there are not enough.
    """
    rng = np.random.default_rng(seed)
    lab = preferences.pairs("lab")[0].select_columns(["prompt", "chosen", "rejected"]).to_list()
    drawn = [lab[place] for place in rng.permutation(len(lab))]
    if confound != "none":
        gaps = [(len(row["chosen"]) - len(row["rejected"])) * (1 if confound == "longer" else -1) for row in drawn]
        fits = iter([row for row, gap in zip(drawn, gaps, strict=True) if gap > 0])
        others = iter([row for row, gap in zip(drawn, gaps, strict=True) if gap < 0])
        sides = rng.random(count) < CONFOUNDED
        drawn = [row for side in sides if (row := next(fits if side else others, None))]
    if len(drawn) < count:
        raise DataError(f"pairs must be at most {len(drawn)} here", got=count, remedy="Write fewer.")
    wrong = np.random.default_rng([seed, 1]).random(count) < noise  # of its own: a pair's turn depends on no other
    turned = {"chosen": "rejected", "rejected": "chosen", "prompt": "prompt"}
    return [
        {turned[name] if flip else name: text for name, text in row.items()}
        for row, flip in zip(drawn, wrong, strict=False)
    ]


def train(config: GoodhartConfig, count: int, seed: int, say=print) -> runs.Run:
    """The reward model of `count` pairs, made of the SFT run of `seed`: from the store, or trained now."""
    rows = pairs(config.confound, count, noise=config.noise, seed=seed)
    file = runs.runs_dir() / "goodhart" / f"{config.confound}-{config.noise:g}-{count}-{seed}.jsonl"
    runs.write_lines(file, rows)
    steps = {"steps": config.proxy_steps, "eval_every": config.proxy_steps, "batch_size": 8}
    steps |= {"learning_rate": 3e-4, "warmup_steps": 5, "center_rewards_coefficient": 0.01}
    steps |= {"sft_coef": 0.0}  # of preferences alone, as reward models mostly are
    reward = RewardConfig(model=config.model, seed=seed, data=str(file), retrain=config.retrain, **steps)
    return pipeline.train_stage("reward", reward, say=say)
