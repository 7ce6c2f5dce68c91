"""From a model that answers to one that answers as preferred: reward model, PPO, DPO, ORPO."""

from dataclasses import dataclass
from typing import ClassVar

from labkit.config.base import (
    batch_size_option,
    eval_every_option,
    learning_rate_option,
    parent_option,
    retrain_option,
    steps_option,
    warmup_steps_option,
)
from labkit.config.tuning import TuningConfig
from labkit.errors import ConfigError
from labkit.fields import option


@dataclass(frozen=True, kw_only=True)
class RewardConfig(TuningConfig):
    """Notebook 05: from preference pairs to a model that scores answers."""

    SMOL: ClassVar[dict] = {"steps": 60, "batch_size": 4, "learning_rate": 5e-5, "eval_every": 60}

    steps: int = steps_option(950)
    batch_size: int = batch_size_option(8)
    learning_rate: float = learning_rate_option(1.5e-3)
    warmup_steps: int = warmup_steps_option(50)
    center_rewards_coefficient: float = option(
        0.005, "Pull of a pair's two rewards to a sum of 0, which the preferences alone leave open.", low=0.0, high=10.0
    )
    sft_coef: float = option(
        1.0,
        "Weight of the chosen answer's next-token loss, which keeps what the parent knew; 0: none.",
        low=0.0,
        high=100.0,
    )
    pairs: int = option(
        0, "Pairs to learn from, drawn by the seed; 0: all.", low=0, high=100_000_000, unit="pairs", usual=4000
    )
    off_topic: bool = option(
        True, "Add to each pair one whose rejected answer is another prompt's chosen one (Liu et al. 2024)."
    )
    data: str = option("lab", 'The preference pairs: "lab", a JSONL or parquet file, a dataset\'s folder or Hub id.')
    parent: str = parent_option()
    eval_every: int = eval_every_option(475)
    retrain: bool = retrain_option()


@dataclass(frozen=True, kw_only=True)
class PPOConfig(TuningConfig):
    """Notebook 06: from an instruction model to one that earns a high reward, held near where it started."""

    SMOL: ClassVar[dict] = {
        "tuning": "lora", "steps": 20, "batch_size": 16, "minibatch_size": 4, "learning_rate": 1e-4, "eval_every": 10,
    }  # fmt: skip

    lora_dropout: float = option(0.0, "Off: pi / pi_old needs the same forward pass twice.", low=0.0, high=0.0)
    algorithm: str = option(
        "ppo",
        "ppo learns a value for every token; rloo and grpo compare several answers to the same prompt instead.",
        choices=("ppo", "rloo", "grpo"),
    )
    reward: str = option(
        "", "The reward model: a run or a folder; empty means that of the same model and seed, trained if missing."
    )
    steps: int = option(30, "Batches of answers to sample and learn from.", low=1, high=1_000_000, unit="steps")
    batch_size: int = option(64, "Answers sampled in each step.", low=2, high=4096, unit="answers")
    minibatch_size: int = option(32, "Answers in each update; divides batch_size.", low=1, high=4096, unit="answers")
    epochs: int = option(2, "Times that each answer is learned from.", low=1, high=64, unit="passes")
    learning_rate: float = learning_rate_option(3e-5)
    warmup_steps: int = warmup_steps_option(5)
    kl_coef: float = option(
        0.05, "Price of a nat away from the reference, in units of reward; low lets it drift.", low=0.0, high=100.0
    )
    kl_target: float = option(
        0.0, "KL per answer that kl_coef is adapted to; 0 leaves it fixed.", low=0.0, high=1000.0, unit="nats",
        needs=("algorithm", ("ppo",)), usual=20.0,
    )  # fmt: skip
    clip: float = option(
        0.2, "A token's probability may move by this share in one batch.", low=0.01, high=10.0, usual=20.0
    )
    value_model: str = option(
        "shared",
        "shared: a head on the policy's hidden states; separate: a second model, steadier and dearer.",
        choices=("shared", "separate"),
        needs=("algorithm", ("ppo",)),
    )
    value_learning_rate: float = option(
        1e-3, "Peak learning rate of the value head, which starts from 0.", low=1e-8, high=1.0,
        needs=("algorithm", ("ppo",)),
    )  # fmt: skip
    value_coef: float = option(0.1, "Weight of the value loss.", low=0.0, high=100.0, needs=("algorithm", ("ppo",)))
    value_clip: float = option(
        1.0, "A value may move by this much in one batch.", low=0.001, high=1e6, needs=("algorithm", ("ppo",))
    )
    gamma: float = option(1.0, "Discount per token.", low=0.0, high=1.0, needs=("algorithm", ("ppo",)))
    lam: float = option(
        0.95, "Of the advantages: 0 trusts the values, 1 the rewards.", low=0.0, high=1.0, needs=("algorithm", ("ppo",))
    )
    missing_eos_penalty: float = option(
        1.0, "Taken from the reward of an answer cut at max_new_tokens.", low=0.0, high=1e6
    )
    max_new_tokens: int = option(64, "Longest answer.", low=1, high=8192, unit="tokens")
    generations: int = option(
        4, "Answers to the same prompt that are compared; divides minibatch_size.", low=2, high=256, unit="answers",
        needs=("algorithm", ("rloo", "grpo")),
    )  # fmt: skip
    data: str = option("lab", 'Where the prompts come from: the preference pairs "lab", a file, a folder or a Hub id.')
    parent: str = parent_option()
    eval_every: int = eval_every_option(10)
    retrain: bool = retrain_option()

    def __post_init__(self):
        super().__post_init__()
        if self.batch_size % self.minibatch_size:
            what = "minibatch_size must divide batch_size"
            raise ConfigError(what, got=self.minibatch_size, remedy=f"Write minibatch_size = {self.batch_size}.")
        if self.kl_target and not self.kl_coef:
            what = "kl_coef must be above 0 to be adapted to kl_target: it is multiplied"
            raise ConfigError(what, got=self.kl_coef, remedy="Write kl_coef = 0.05 to start from, or kl_target = 0.0.")
        if self.algorithm != "ppo" and self.minibatch_size % self.generations:
            what = "generations must divide minibatch_size"
            raise ConfigError(what, got=self.generations, remedy=f"Write generations = {self.minibatch_size}.")


@dataclass(frozen=True, kw_only=True)
class DPOConfig(TuningConfig):
    """Notebook 07: from an instruction model to one that answers as the pairs prefer."""

    SMOL: ClassVar[dict] = {  # from the model itself, which is an instruction model
        "tuning": "lora", "parent": "smol", "data": "brief", "steps": 60, "batch_size": 4, "learning_rate": 2e-4,
        "warmup_steps": 5, "eval_every": 30,
    }  # fmt: skip

    steps: int = steps_option(160)
    batch_size: int = batch_size_option(16)
    learning_rate: float = learning_rate_option(6e-5)
    warmup_steps: int = warmup_steps_option(10)
    beta: float = option(0.1, "Pull back to the reference model; low lets the model drift.", low=0.001, high=10.0)
    loss_type: str = option(
        "sigmoid_sft",
        "Loss on the margin of a pair; _sft adds the chosen answer's own. Notebook 07 draws each.",
        choices=(
            *("sigmoid_sft", "sigmoid", "ipo", "hinge", "robust", "sigmoid_norm", "exo_pair", "nca_pair", "bco_pair"),
            *("sppo_hard", "aot", "aot_unpaired", "apo_zero", "apo_down", "discopop", "mpo", "sft"),
        ),
    )
    label_smoothing: float = option(  # trl's other losses would ignore it without a word
        0.0,
        "Assumed share of wrong labels.",
        low=0.0,
        high=0.49,
        needs=("loss_type", ("robust", "exo_pair", "aot", "aot_unpaired")),
    )
    data: str = option(
        "lab", 'The preference pairs: "lab", "brief", a JSONL or parquet file, a dataset\'s folder or Hub id.'
    )
    parent: str = parent_option()
    eval_every: int = eval_every_option(80)
    retrain: bool = retrain_option()


@dataclass(frozen=True, kw_only=True)
class ORPOConfig(TuningConfig):
    """Notebook 08: from a base model to one that answers as the pairs prefer, in one stage."""

    SMOL: ClassVar[dict] = {
        "tuning": "lora", "steps": 100, "batch_size": 4, "learning_rate": 2e-4, "warmup_steps": 10, "eval_every": 50,
    }  # fmt: skip

    steps: int = steps_option(1200)
    batch_size: int = batch_size_option(8)
    learning_rate: float = learning_rate_option(4.5e-4)
    warmup_steps: int = warmup_steps_option(50)
    beta: float = option(
        0.1, "Weight of the odds ratio beside the chosen answer's loss (the paper's lambda).", low=0.0, high=10.0
    )
    data: str = option(
        "all",
        'The pairs: "all" (the lab\'s, and pairs made of its instructions), "lab", a JSONL or parquet file, a '
        "dataset's folder or Hub id.",
    )
    parent: str = parent_option()
    eval_every: int = eval_every_option(240)
    retrain: bool = retrain_option()
