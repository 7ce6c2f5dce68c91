"""Notebooks that train no stage of their own: they compare, measure and vote."""

import re
from dataclasses import dataclass
from typing import ClassVar
from urllib.parse import urlsplit

from labkit.config.base import (
    Config,
    learning_rate_option,
    retrain_option,
    steps_option,
)
from labkit.errors import ConfigError
from labkit.fields import option


@dataclass(frozen=True, kw_only=True)
class StartConfig(Config):
    """Notebook 00: the question put to every stage."""

    retrain: bool = retrain_option()


@dataclass(frozen=True, kw_only=True)
class ShowdownConfig(Config):
    """Notebook 09: every way of preference tuning from one parent, on the same pairs, for the same compute."""

    SMOL: ClassVar[dict] = {"seeds": 1, "budget": 150_000, "samples": 4}

    seeds: int = option(3, "Trainings of each method, all from the same parent.", low=1, high=20, unit="seeds")
    budget: int = option(
        600_000, "Compute of each method: a token forward is 1, backward 2 more.", low=1, high=10**12, unit="passes"
    )
    learning_rate: float = learning_rate_option(1e-4)
    samples: int = option(8, "Answers that best-of-n chooses from.", low=2, high=256, unit="answers")
    data: str = option("lab", 'The preference pairs: "lab", a JSONL or parquet file, a dataset\'s folder or Hub id.')
    retrain: bool = retrain_option()


@dataclass(frozen=True, kw_only=True)
class WordMetricsConfig(Config):
    """Notebook 10: perplexity, BLEU, ROUGE, and what they miss."""

    window: int = option(128, "Tokens that the model reads at once.", low=8, high=32_768, unit="tokens")
    stride: int = option(32, "Tokens that the window moves on by; small is exact and slow.", low=1, high=32_767)
    vocab_size: int = option(
        512, "Vocabulary of the second tokenizer; the first has 4096.", low=300, high=262_144, unit="tokens"
    )
    tokenizer_steps: int = option(
        100, "Pretraining steps of the model of each tokenizer.", low=1, high=1_000_000, unit="steps"
    )
    timed_answers: int = option(64, "Answers generated and scored against the clock.", low=2, high=100_000)

    def __post_init__(self):
        super().__post_init__()
        if self.stride >= self.window:
            remedy = f"Write for example stride = {self.window // 4}."
            raise ConfigError("stride must be less than window", got=self.stride, remedy=remedy)


@dataclass(frozen=True, kw_only=True)
class BenchmarksConfig(Config):
    """Notebook 11: the stages on benchmarks, and one model that has seen the test."""

    SMOL: ClassVar[dict] = {"limit": 60, "steps": 20, "learning_rate": 2e-4, "samples": 5}

    limit: int = option(
        0, "Items of each benchmark that are asked; 0 means all.", low=0, high=100_000, unit="items", usual=1000
    )
    steps: int = steps_option(80)
    learning_rate: float = learning_rate_option(2e-3)
    samples: int = option(10, "Programs drawn for each small function.", low=5, high=1000, unit="programs")
    retrain: bool = retrain_option()


@dataclass(frozen=True, kw_only=True)
class JudgeConfig(Config):
    """Notebook 12: an LLM as judge, and an audit of the judge."""

    SMOL: ClassVar[dict] = {"judged_pairs": 30}

    judge: str = option("smol", "The judge: a model as in `model`, or the name of a model at base_url.")
    base_url: str = option("", 'An OpenAI-compatible API such as "http://localhost:8000/v1"; empty: a model here.')
    key_variable: str = option("OPENAI_API_KEY", "The environment variable that holds the API's key; never the key.")
    price_in: float = option(0.0, "Price of a million tokens sent; 0: not known.", low=0.0, high=1e6, usual=20.0)
    price_out: float = option(0.0, "Price of a million tokens received; 0: not known.", low=0.0, high=1e6, usual=20.0)
    timeout: float = option(60.0, "Seconds for one whole request.", low=0.1, high=3600.0, unit="seconds")
    max_tokens: int = option(
        256, "Tokens that a judge at base_url may write; one that thinks first needs thousands.", low=1, high=1_000_000,
        unit="tokens",
    )  # fmt: skip
    judged_pairs: int = option(
        60, "Pairs of answers in the audit; each is judged twice.", low=4, high=100_000, unit="pairs"
    )
    wording: str = option("plain", "The judge's prompt that is audited.", choices=("plain", "rubric", "reference"))
    min_kappa: float = option(0.4, "Agreement that a judge must show: its interval above this.", low=0.0, high=1.0)
    min_consistency: float = option(0.6, "Share of pairs judged alike with sides swapped, likewise.", low=0.0, high=1.0)
    max_bias: float = option(0.25, "Size that the interval of a bias must stay below.", low=0.0, high=1.0)

    def __post_init__(self):
        super().__post_init__()
        check_key_variable(self.key_variable)
        if self.base_url:
            check_base_url(self.base_url)


def check_key_variable(name: str) -> None:
    """Raise ConfigError, without the text, unless it is an environment variable's name: the key itself may be there."""
    if name and not re.fullmatch("[A-Z_][A-Z0-9_]*", name):
        what = "key_variable must be the name of an environment variable, in capital letters, digits and _"
        remedy = 'Put the key into a variable, and write its name, such as key_variable = "OPENAI_API_KEY".'
        raise ConfigError(what, got="a text that is not shown, for it may be a key", remedy=remedy)


def check_base_url(url: str) -> None:
    """Raise ConfigError unless it is an API's address without name, password or query: records keep it."""
    remedy = 'Write for example base_url = "http://localhost:8000/v1".'
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018  read here, where a bad one raises
    except ValueError:  # its text may repeat a password
        what = "base_url must be the address of an API"
        raise ConfigError(what, got="an address whose host or port cannot be read", remedy=remedy) from None
    if parts.username or parts.password or parts.query or parts.fragment:
        where = "Put the key into an environment variable and name that in key_variable."
        raise ConfigError("base_url must hold no name, password or query: records keep it", remedy=where)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError("base_url must be the address of an API", got=url, remedy=remedy)


@dataclass(frozen=True, kw_only=True)
class ArenaConfig(Config):
    """Notebook 13: blind votes turned into ratings."""

    votes: int = option(300, "Votes that the scripted voter casts.", low=1, high=10_000, unit="votes")
    noise: float = option(0.1, "Share of its votes that a coin decides.", low=0.0, high=1.0)
    repeats: int = option(8, "Series of votes in which ways to choose pairs are compared.", low=2, high=200)
    goal: int = option(50, "Votes of your own to aim at.", low=1, high=10_000, unit="votes")
    retrain: bool = retrain_option()


@dataclass(frozen=True, kw_only=True)
class GoodhartConfig(Config):
    """Notebook 14: what becomes of a measure, a reward or a benchmark, that selection or training aims at."""

    SMOL: ClassVar[dict] = {
        "seeds": 1, "sampled_questions": 10, "samples": 32, "pair_counts": "32,240", "proxy_steps": 20, "ppo_steps": 5,
        "planted": 20, "passes": 2,
    }  # fmt: skip

    seeds: int = option(3, "Repetitions, each with its own model, pairs and samples.", low=1, high=20, unit="seeds")
    sampled_questions: int = option(40, "Test questions to sample answers to.", low=2, high=500, unit="questions")
    samples: int = option(256, "Answers sampled to each question; the largest n.", low=2, high=4096, unit="answers")
    confound: str = option(
        "shorter", "Which answer is the chosen one in nearly every pair.", choices=("none", "shorter", "longer")
    )
    noise: float = option(0.0, "Chance that the labels of a pair are exchanged.", low=0.0, high=0.5)
    pair_counts: str = option(
        "64,480", "Numbers of pairs for the reward models, a tenth of few held out; parted by commas."
    )
    proxy_steps: int = option(60, "Steps of 8 pairs that a reward model trains for.", low=1, high=100_000, unit="steps")
    kl_coefs: str = option("0.3,0.0", "Prices of a nat, falling, that PPO pays in turn, parted by commas.")
    ppo_steps: int = option(25, "Steps of each PPO run.", low=1, high=100_000, unit="steps")
    planted: int = option(100, "Test questions put into training, and as many reworded ones.", low=2, high=200)
    passes: int = option(4, "Times that each planted question is trained on.", low=1, high=1000)
    retrain: bool = retrain_option()

    def __post_init__(self):
        super().__post_init__()
        for name, number, kind in (("pair_counts", r"[1-9]\d*", "whole"), ("kl_coefs", r"\d+(\.\d+)?", "decimal")):
            if not all(re.fullmatch(number, part.strip()) for part in getattr(self, name).split(",")):
                remedy = f'Write for example {name} = "{type(self).__dataclass_fields__[name].default}".'
                raise ConfigError(
                    f"{name} must be {kind} numbers parted by commas", got=getattr(self, name), remedy=remedy
                )
