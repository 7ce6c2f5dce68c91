"""From text to a model that answers: pretraining, supervised fine-tuning, low-rank adapters."""

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

from labkit.config.base import (
    Config,
    batch_size_option,
    eval_every_option,
    learning_rate_option,
    parent_option,
    retrain_option,
    steps_option,
    warmup_steps_option,
)
from labkit.errors import ConfigError
from labkit.fields import option


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(Config):
    """Notebook 01: from raw text to a base model."""

    steps: int = steps_option(800)
    batch_size: int = batch_size_option(16)
    block_size: int = option(128, "Length of a training row.", low=16, high=32_768, unit="tokens")
    learning_rate: float = learning_rate_option(4e-3)
    optimizer: str = option("muon", "Optimizer of the weight matrices; the rest is AdamW's.", choices=("muon", "adamw"))
    warmup_steps: int = warmup_steps_option(50)
    vocab_size: int = option(4096, "Tokens in the vocabulary.", low=300, high=262_144, unit="tokens")
    hidden_size: int = option(256, "Width of the model; a multiple of heads.", low=8, high=16_384, unit="numbers")
    layers: int = option(4, "Transformer layers.", low=1, high=256, unit="layers")
    heads: int = option(8, "Attention heads in each layer.", low=1, high=256, unit="heads")
    corpus: str = option("lab", 'The text to learn: "lab" or the path of a text or JSONL file.')
    eval_every: int = eval_every_option(200)
    retrain: bool = retrain_option()

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

    steps: int = steps_option(1700)
    batch_size: int = batch_size_option(8)
    learning_rate: float = learning_rate_option(4.5e-4)
    warmup_steps: int = warmup_steps_option(50)
    loss_on: str = option("assistant", "Which tokens are learned from.", choices=("assistant", "all"))
    data: str = option("lab", 'The instruction pairs: "lab", "glossary" or the path of a JSONL file.')
    turns: int = option(1, "Questions in one conversation; more share the template's system prompt.", low=1, high=64)
    replay: float = option(
        0.0, "Share of rows that are plain English, so that little of it is forgotten.", low=0.0, high=0.9
    )
    parent: str = parent_option()
    eval_every: int = eval_every_option(340)
    retrain: bool = retrain_option()


@dataclass(frozen=True, kw_only=True)
class OwnConfig(SFTConfig):
    """Notebook 15: SFT on a task of the reader's own, from an instruction model."""

    SMOL: ClassVar[dict] = {
        "tuning": "lora", "steps": 100, "batch_size": 4, "learning_rate": 1e-3, "warmup_steps": 10, "eval_every": 50,
    }  # fmt: skip

    steps: int = steps_option(400)
    warmup_steps: int = warmup_steps_option(20)
    data: str = option("tickets", 'Your rows: a JSONL file with prompt and answer; or "tickets", an example.')
    parent: str = option(
        "instruction",
        'Id of the run to start from; "instruction": the SFT run of nano, or another model as it is.',
        identity=False,
    )
    eval_every: int = eval_every_option(100)
    questions: str = option("", "Your test, a file like `data`; empty: the rows held out of `data`.", identity=False)


@dataclass(frozen=True, kw_only=True)
class AdapterConfig(SFTConfig):
    """What notebooks 03 and 04 share: SFT by a low-rank adapter, beside full fine-tuning of the same model."""

    SMOL: ClassVar[dict] = {  # five minutes or so on two cores
        "data": "glossary", "steps": 240, "batch_size": 2, "turns": 6, "replay": 0.08, "learning_rate": 2.75e-3,
        "lora_rank": 32, "target_modules": "v_proj,o_proj,gate_proj,up_proj,down_proj", "warmup_steps": 10,
        "eval_every": 240, "ranks": "4,32", "adapter_steps": 30, "full_learning_rate": 2e-4, "seeds": 1,
    }  # fmt: skip

    tuning: str = option("lora", "Which weights train; here an adapter's.", choices=("lora",))
    steps: int = steps_option(400)
    learning_rate: float = learning_rate_option(3e-3)
    warmup_steps: int = warmup_steps_option(20)
    eval_every: int = eval_every_option(200)
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
            if self.alpha_at(int(rank)) > 4096:  # what lora_alpha may be; told now and not when the sweep comes to it
                what = f"ranks must keep lora_alpha <= 4096: rank {int(rank)} would need {self.alpha_at(int(rank))}"
                raise ConfigError(what, got=self.ranks, remedy="Lower lora_alpha, or leave out the highest ranks.")

    def alpha_at(self, rank: int) -> int:
        """The lora_alpha that keeps the update's scale at another rank: alpha / rank, of rslora alpha / sqrt(rank)."""
        grows = rank / self.lora_rank
        return max(1, round(self.lora_alpha * (grows**0.5 if self.lora_variant == "rslora" else grows)))


@dataclass(frozen=True, kw_only=True)
class QLoRAConfig(AdapterConfig):
    """Notebook 04: the adapter on weights of four bits, beside eight, sixteen, and full fine-tuning."""

    quantization: str = option(
        "4bit",
        "Bits of the frozen weights: 4bit is NF4 with double quantization (Dettmers et al. 2023).",
        choices=("none", "8bit", "4bit"),
    )
    seeds: int = option(2, "Trainings of each kind that are compared.", low=1, high=20, unit="seeds", identity=False)
