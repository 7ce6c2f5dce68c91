"""Configurations: one frozen dataclass per stage, and which notebook has which.

What a field may hold stands beside it (`option`); a value of wrong type or range is a ConfigError.
"""

import dataclasses
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from labkit.errors import ConfigError
from labkit.fields import check_names, checked, option, why_disabled

# what model = "smoke" makes of values left at their defaults; what "smol" does, a Config's SMOL says
SMOKE = {"steps": 4, "eval_every": 2, "adapter_steps": 2, "ranks": "1,4", "seeds": 1}
SMOKE |= {"sampled_questions": 4, "samples": 8, "pair_counts": "8,16", "proxy_steps": 2, "kl_coefs": "0.1"}
SMOKE |= {"ppo_steps": 2, "planted": 20, "passes": 1}


def _retrain():
    return option(False, "Train again even where the same configuration has already run.", identity=False)


def _steps(default):
    return option(default, "Optimizer steps to train for.", low=1, high=1_000_000, unit="steps")


def _batch_size(default):
    return option(default, "Rows in each optimizer step; more is steadier and slower.", low=1, high=4096, unit="rows")


def _learning_rate(default):
    return option(default, "Peak learning rate; too high diverges, too low learns nothing.", low=1e-8, high=1.0)


def _warmup_steps(default):
    return option(default, "Steps over which the learning rate rises to its peak.", low=0, high=100_000, unit="steps")


def _eval_every(default):
    help = "Steps between two looks at held-out data."
    return option(default, help, low=1, high=1_000_000, unit="steps", identity=False)


def _parent():
    help = "Id of the run to start from; empty means the parent stage's own run or the shipped base."
    return option("", help, identity=False)  # runs.open_run() puts the parent that was really used into the identity


@dataclass(frozen=True, kw_only=True)
class Config:
    """What every notebook has: the model and the seed. Raises ConfigError for a value of wrong type or range."""

    SMOL: ClassVar[dict] = {}  # what suits the model "smol"
    model: str = option("nano", 'The model: "nano", "smol", "smoke" (seconds, for tests), a folder or a Hub id.')
    seed: int = option(0, "Seed of every random choice.", low=0, high=2**31 - 1)

    def __post_init__(self):
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, checked(field, getattr(self, field.name)))
        for field in dataclasses.fields(self):
            value, reason = getattr(self, field.name), why_disabled(field, self.as_dict())
            if reason and value != field.default:
                other, values = field.metadata["needs"]
                remedy = f"Write {other} = {values[0]!r}, or leave {field.name} = {field.default!r}."
                raise ConfigError(f"{field.name} {reason}", got=value, remedy=remedy)

    @classmethod
    def from_dict(cls, values: dict) -> "Config":
        """A Config from a plain dict, defaults for the rest. Raises ConfigError for an unknown name or a bad value."""
        check_names(cls, values)
        return cls(**values)

    def as_dict(self) -> dict:
        """Every field, as plain JSON values."""
        return dataclasses.asdict(self)

    def identity(self) -> dict:
        """The fields that change the result: two runs with the same identity (and parent and data) are the same run."""
        return {
            field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.metadata["identity"]
        }


@dataclass(frozen=True, kw_only=True)
class StartConfig(Config):
    """Notebook 00: the question put to every stage."""

    retrain: bool = _retrain()


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(Config):
    """Notebook 01: from raw text to a base model."""

    steps: int = _steps(800)
    batch_size: int = _batch_size(16)
    block_size: int = option(128, "Length of a training row.", low=16, high=32_768, unit="tokens")
    learning_rate: float = _learning_rate(4e-3)
    optimizer: str = option("muon", "Optimizer of the weight matrices; the rest is AdamW's.", choices=("muon", "adamw"))
    warmup_steps: int = _warmup_steps(50)
    vocab_size: int = option(4096, "Tokens in the vocabulary.", low=300, high=262_144, unit="tokens")
    hidden_size: int = option(256, "Width of the model; a multiple of heads.", low=8, high=16_384, unit="numbers")
    layers: int = option(4, "Transformer layers.", low=1, high=256, unit="layers")
    heads: int = option(8, "Attention heads in each layer.", low=1, high=256, unit="heads")
    corpus: str = option("lab", 'The text to learn: "lab" or the path of a text or JSONL file.')
    eval_every: int = _eval_every(200)
    retrain: bool = _retrain()

    def __post_init__(self):
        super().__post_init__()
        if self.hidden_size % (2 * self.heads):  # rotary positions turn pairs of numbers within a head
            what = f"hidden_size must be a multiple of 2 x heads = {2 * self.heads}"
            near = max(1, round(self.hidden_size / (2 * self.heads))) * 2 * self.heads
            raise ConfigError(what, got=self.hidden_size, remedy=f"Write hidden_size = {near}, or change heads.")


@dataclass(frozen=True, kw_only=True)
class TuningConfig(Config):
    """What fine-tuning stages share: which weights train, all of them or a low-rank adapter (Hu et al. 2021)."""

    tuning: str = option(
        "full", "Which weights train: all, or a low-rank adapter beside them.", choices=("full", "lora")
    )
    lora_rank: int = option(
        16, "Rank of the update; more can learn more and weighs more.", low=1, high=1024, needs=("tuning", ("lora",))
    )
    lora_alpha: int = option(32, "The update is scaled by alpha / rank.", low=1, high=4096, needs=("tuning", ("lora",)))
    target_modules: str = option(
        "all-linear",
        'Layers that get an adapter: "all-linear", or names parted by commas such as "q_proj,v_proj".',
        needs=("tuning", ("lora",)),
    )
    lora_dropout: float = option(
        0.0, "Share of the adapter's inputs set to zero in training.", low=0.0, high=0.9, needs=("tuning", ("lora",))
    )
    lora_variant: str = option(
        "lora",
        "rslora scales by alpha / sqrt(rank) (Kalajdzievski 2023); dora trains length and direction apart (Liu 2024).",
        choices=("lora", "rslora", "dora"),
        needs=("tuning", ("lora",)),
    )
    quantization: str = option(
        "none",
        "Bits of the frozen weights: 4bit is NF4 with double quantization (Dettmers et al. 2023).",
        choices=("none", "8bit", "4bit"),
        needs=("tuning", ("lora",)),
    )


@dataclass(frozen=True, kw_only=True)
class SFTConfig(TuningConfig):
    """Notebook 02: from a base model to one that answers."""

    SMOL: ClassVar[dict] = {
        "data": "glossary", "steps": 100, "batch_size": 2, "turns": 6, "replay": 0.1, "learning_rate": 2e-4,
        "warmup_steps": 10, "eval_every": 100,
    }  # fmt: skip

    steps: int = _steps(1700)
    batch_size: int = _batch_size(8)
    learning_rate: float = _learning_rate(4.5e-4)
    warmup_steps: int = _warmup_steps(50)
    loss_on: str = option("assistant", "Which tokens are learned from.", choices=("assistant", "all"))
    data: str = option("lab", 'The instruction pairs: "lab", "glossary" or the path of a JSONL file.')
    turns: int = option(1, "Questions in one conversation; more share the template's system prompt.", low=1, high=64)
    replay: float = option(
        0.0, "Share of rows that are plain English, so that little of it is forgotten.", low=0.0, high=0.9
    )
    parent: str = _parent()
    eval_every: int = _eval_every(340)
    retrain: bool = _retrain()


@dataclass(frozen=True, kw_only=True)
class AdapterConfig(SFTConfig):
    """What notebooks 03 and 04 share: SFT by a low-rank adapter, beside full fine-tuning of the same model."""

    SMOL: ClassVar[dict] = {  # seven minutes or so on two cores
        "data": "glossary", "steps": 270, "batch_size": 2, "turns": 6, "replay": 0.15, "learning_rate": 2e-3,
        "warmup_steps": 10, "eval_every": 270, "ranks": "4,16", "adapter_steps": 30, "full_learning_rate": 2e-4,
        "seeds": 1,
    }  # fmt: skip

    tuning: str = option("lora", "Which weights train; here an adapter's.", choices=("lora",))
    steps: int = _steps(400)
    learning_rate: float = _learning_rate(3e-3)
    warmup_steps: int = _warmup_steps(20)
    eval_every: int = _eval_every(200)
    full_learning_rate: float = option(
        4.5e-4, "Peak learning rate of the full fine-tuning compared with.", low=1e-8, high=1.0, identity=False
    )

    def full(self) -> SFTConfig:
        """The same training with every weight, at full_learning_rate."""
        low_rank = {field.name for field in dataclasses.fields(TuningConfig)} - {"model", "seed"}
        shared = {field.name for field in dataclasses.fields(SFTConfig)} - low_rank
        values = {name: value for name, value in self.as_dict().items() if name in shared}
        return SFTConfig(**{**values, "learning_rate": self.full_learning_rate})


@dataclass(frozen=True, kw_only=True)
class LoRAConfig(AdapterConfig):
    """Notebook 03: several ranks beside full fine-tuning, several adapters on one base."""

    quantization: str = option("none", "Bits of the frozen weights; notebook 04 has the others.", choices=("none",))
    ranks: str = option("1,4,16,64", "Ranks to compare, parted by commas.", identity=False)
    adapter_steps: int = option(
        120, "Steps for each adapter of the rack.", low=1, high=1_000_000, unit="steps", identity=False
    )

    def __post_init__(self):
        super().__post_init__()
        for rank in self.ranks.split(","):
            if not rank.strip().isdecimal() or not 1 <= int(rank) <= 1024:
                what = "ranks must be whole numbers from 1 to 1024 parted by commas"
                raise ConfigError(what, got=self.ranks, remedy='Write for example ranks = "4,16".')


@dataclass(frozen=True, kw_only=True)
class QLoRAConfig(AdapterConfig):
    """Notebook 04: the adapter on weights of four bits, beside eight, sixteen, and full fine-tuning."""

    quantization: str = option(
        "4bit",
        "Bits of the frozen weights: 4bit is NF4 with double quantization (Dettmers et al. 2023).",
        choices=("none", "8bit", "4bit"),
    )
    seeds: int = option(2, "Trainings of each kind that are compared.", low=1, high=20, unit="seeds", identity=False)


@dataclass(frozen=True, kw_only=True)
class DPOConfig(TuningConfig):
    """Notebook 07: from an instruction model to one that answers as people prefer."""

    steps: int = _steps(160)
    batch_size: int = _batch_size(16)
    learning_rate: float = _learning_rate(1e-4)
    warmup_steps: int = _warmup_steps(10)
    beta: float = option(0.1, "Pull back to the reference model; low lets the model drift.", low=0.001, high=10.0)
    loss_type: str = option(
        "sigmoid_sft",
        "Loss on the margin of a pair; _sft adds the chosen answer's own.",
        choices=("sigmoid_sft", "sigmoid", "ipo", "hinge", "robust"),
    )
    label_smoothing: float = option(  # trl's other losses would ignore it without a word
        0.0, "Assumed share of wrong labels.", low=0.0, high=0.49, needs=("loss_type", ("robust",))
    )
    data: str = option("lab", 'The preference pairs: "lab", a JSONL or parquet file, a dataset\'s folder or Hub id.')
    parent: str = _parent()
    eval_every: int = _eval_every(80)
    retrain: bool = _retrain()


@dataclass(frozen=True, kw_only=True)
class PPOConfig(TuningConfig):
    """Notebook 06: from an instruction model to one that earns a high reward, held near where it started."""

    SMOL: ClassVar[dict] = {
        "tuning": "lora", "steps": 20, "batch_size": 16, "minibatch_size": 4, "eval_every": 10,
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
    steps: int = option(60, "Batches of answers to sample and learn from.", low=1, high=1_000_000, unit="steps")
    batch_size: int = option(64, "Answers sampled in each step.", low=2, high=4096, unit="answers")
    minibatch_size: int = option(32, "Answers in each update; divides batch_size.", low=1, high=4096, unit="answers")
    epochs: int = option(2, "Times that each answer is learned from.", low=1, high=64, unit="passes")
    learning_rate: float = _learning_rate(1e-4)
    warmup_steps: int = _warmup_steps(5)
    kl_coef: float = option(
        0.05, "Price of a nat away from the reference, in units of reward; low lets it drift.", low=0.0, high=100.0
    )
    kl_target: float = option(
        0.0, "KL per answer that kl_coef is adapted to; 0 leaves it fixed.", low=0.0, high=1000.0, unit="nats",
        needs=("algorithm", ("ppo",)),
    )  # fmt: skip
    clip: float = option(0.2, "A token's probability may move by this share in one batch.", low=0.01, high=10.0)
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
    parent: str = _parent()
    eval_every: int = _eval_every(20)
    retrain: bool = _retrain()

    def __post_init__(self):
        super().__post_init__()
        if self.batch_size % self.minibatch_size:
            what = "minibatch_size must divide batch_size"
            raise ConfigError(what, got=self.minibatch_size, remedy=f"Write minibatch_size = {self.batch_size}.")
        if self.algorithm != "ppo" and self.minibatch_size % self.generations:
            what = "generations must divide minibatch_size"
            raise ConfigError(what, got=self.generations, remedy=f"Write generations = {self.minibatch_size}.")


@dataclass(frozen=True, kw_only=True)
class RewardConfig(TuningConfig):
    """Notebook 05: from preference pairs to a model that scores answers."""

    steps: int = _steps(200)
    batch_size: int = _batch_size(16)
    learning_rate: float = _learning_rate(1e-4)
    warmup_steps: int = _warmup_steps(10)
    center_rewards_coefficient: float = option(
        0.01, "Pull of a pair's two rewards to a sum of 0, which the preferences alone leave open.", low=0.0, high=10.0
    )
    pairs: int = option(0, "Pairs to learn from, drawn by the seed; 0: all.", low=0, high=100_000_000, unit="pairs")
    data: str = option("lab", 'The preference pairs: "lab", a JSONL or parquet file, a dataset\'s folder or Hub id.')
    parent: str = _parent()
    eval_every: int = _eval_every(100)
    retrain: bool = _retrain()


@dataclass(frozen=True, kw_only=True)
class GoodhartConfig(Config):
    """Notebook 14: what becomes of a measure, a reward or a benchmark, that selection or training aims at."""

    seeds: int = option(3, "Repetitions, each with its own model, pairs and samples.", low=1, high=20, unit="seeds")
    sampled_questions: int = option(20, "Test questions to sample answers to.", low=2, high=500, unit="questions")
    samples: int = option(256, "Answers sampled to each question; the largest n.", low=2, high=4096, unit="answers")
    confound: str = option(
        "shorter", "Which answer is the chosen one in nearly every pair.", choices=("none", "shorter", "longer")
    )
    noise: float = option(0.0, "Share of the pairs whose labels are exchanged.", low=0.0, high=0.5)
    pair_counts: str = option("32,480", "Numbers of pairs that reward models learn from, parted by commas.")
    proxy_steps: int = option(60, "Steps of 8 pairs that a reward model trains for.", low=1, high=100_000, unit="steps")
    kl_coefs: str = option("0.3,0.0", "Prices of a nat, falling, that PPO pays in turn, parted by commas.")
    ppo_steps: int = option(25, "Steps of each PPO run.", low=1, high=100_000, unit="steps")
    planted: int = option(100, "Test questions put into training, and as many reworded ones.", low=2, high=200)
    passes: int = option(4, "Times that each planted question is trained on.", low=1, high=1000)
    retrain: bool = _retrain()

    def __post_init__(self):
        super().__post_init__()
        for name, number, kind in (("pair_counts", r"[1-9]\d*", "whole"), ("kl_coefs", r"\d+(\.\d+)?", "decimal")):
            if not all(re.fullmatch(number, part.strip()) for part in getattr(self, name).split(",")):
                remedy = f'Write for example {name} = "{type(self).__dataclass_fields__[name].default}".'
                raise ConfigError(
                    f"{name} must be {kind} numbers parted by commas", got=getattr(self, name), remedy=remedy
                )


STAGES: dict[str, type[Config]] = {
    "pretrain": PretrainConfig,
    "sft": SFTConfig,
    "reward": RewardConfig,
    "ppo": PPOConfig,
    "dpo": DPOConfig,
}
NOTEBOOKS: dict[str, type[Config]] = {  # a subclass of a stage's config is that stage with more parameters
    "00_start_here": StartConfig,
    "01_pretraining": PretrainConfig,
    "02_supervised_fine_tuning": SFTConfig,
    "03_lora": LoRAConfig,
    "04_qlora": QLoRAConfig,
    "05_reward_model": RewardConfig,
    "06_ppo": PPOConfig,
    "07_dpo": DPOConfig,
    "14_goodhart": GoodhartConfig,
}


def stage_of(notebook: str) -> str:
    """The stage that a notebook trains ("sft" for 03_lora), or "" where it trains none."""
    return next((stage for stage, kind in STAGES.items() if issubclass(NOTEBOOKS[notebook], kind)), "")


def sized(config: Config, keep: Iterable[str] = ()) -> Config:
    """The config with what suits its model, "smoke" or "smol", in place of values left at their defaults but `keep`."""
    sizes = {"smoke": SMOKE, "smol": config.SMOL}.get(config.model, {})
    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    left = {name for name in sizes if name in defaults and getattr(config, name) == defaults[name]} - set(keep)
    return dataclasses.replace(config, **{name: sizes[name] for name in left})
