"""What every configuration is: a frozen dataclass whose fields say what they may hold; options that stages share."""

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from labkit.errors import ConfigError
from labkit.fields import check_names, checked, option, why_disabled

# what model = "smoke" makes of values left at their defaults; what "smol" does, a Config's SMOL says
SMOKE = {
    "steps": 4, "eval_every": 2, "adapter_steps": 2, "ranks": "1,4", "seeds": 1, "limit": 8, "votes": 40, "repeats": 2,
    "sampled_questions": 4, "samples": 8, "pair_counts": "8,16", "proxy_steps": 2, "kl_coefs": "0.1", "ppo_steps": 2,
    "planted": 20, "passes": 1, "budget": 40_000, "tokenizer_steps": 2, "judged_pairs": 12, "judge": "smoke",
}  # fmt: skip


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
                needed = field.metadata["needs"]
                remedy = f"Write {needed[0]} = {needed[1][0]!r}, or leave" if needed else "Leave"
                remedy += f" {field.name} = {field.default!r}."
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


def sized(config: Config, keep: Iterable[str] = ()) -> Config:
    """The config with what suits its model, "smoke" or "smol", in place of values left at their defaults but `keep`."""
    sizes = {"smoke": SMOKE, "smol": config.SMOL}.get(config.model, {})
    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    left = {name for name in sizes if name in defaults and getattr(config, name) == defaults[name]} - set(keep)
    return dataclasses.replace(config, **{name: sizes[name] for name in left})


def retrain_option():
    return option(False, "Train again even where the same configuration has already run.", identity=False)


def steps_option(default):
    return option(default, "Optimizer steps to train for.", low=1, high=1_000_000, unit="steps")


def batch_size_option(default):
    return option(default, "Rows in each optimizer step; more is steadier and slower.", low=1, high=4096, unit="rows")


def learning_rate_option(default):
    return option(default, "Peak learning rate; too high diverges, too low learns nothing.", low=1e-8, high=1.0)


def warmup_steps_option(default):
    return option(default, "Steps over which the learning rate rises to its peak.", low=0, high=100_000, unit="steps")


def eval_every_option(default):
    help = "Steps between two looks at held-out data."
    return option(default, help, low=1, high=1_000_000, unit="steps", identity=False)


def parent_option():
    help = "Id of the run to start from. Empty: the parent stage's own run, or the shipped base. model's own value: it."
    return option("", help, identity=False)  # runs.open_run() puts the parent that was really used into the identity
