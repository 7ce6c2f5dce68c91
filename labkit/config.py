"""Parameters: one frozen dataclass per stage, and the check of every value that reaches a notebook.

A field's metadata (help, range, choices, unit) is the single source for the check of papermill's parameters, for the
widgets' labels, ranges and tooltips, and for the docs. A notebook's first cell after its parameters cell says

    config = labkit.configure("02_supervised_fine_tuning", globals())

Every problem is a ConfigError that names the parameter, the value got and the values allowed.
"""

import ast
import dataclasses
import math
import time
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import ClassVar

from labkit.errors import MISSING, ConfigError

# what model = "smoke" makes of values left at their defaults; what "smol" does, a Config's SMOL says
SMOKE = {"steps": 4, "eval_every": 2, "adapter_steps": 2, "ranks": "1,4", "seeds": 1}
_started: float | None = None  # time.monotonic() at the last configure(); records.record() measures from here


def option(default, help, *, low=None, high=None, choices=None, unit="", identity=True, needs=None):
    """A field of a Config: its default, one sentence of help and the values it may take.

    low, high: smallest and largest number allowed, both included. choices: the only texts allowed. unit: what the
    number counts. identity=False: the value does not change the result, so it stays out of a run's identity.
    needs: (another field, the values it must have) for this one to leave its default.
    """
    about = {"help": help, "low": low, "high": high, "choices": choices, "unit": unit, "identity": identity}
    about["needs"] = needs
    return dataclasses.field(default=default, metadata=about)


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
        _check_names(cls, values)
        return cls(**values)

    def as_dict(self) -> dict:
        """Every field, as plain JSON values."""
        return dataclasses.asdict(self)

    def identity(self) -> dict:
        """The fields that change the result: two runs with the same identity (and parent and data) are the same run."""
        return {
            field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.metadata["identity"]
        }


def why_disabled(field: dataclasses.Field, values: dict) -> str:
    """Why a field has no effect beside these values ("needs loss_type = 'robust'"), or "" where it has."""
    other, wanted = field.metadata["needs"] or ("", ())
    if not other or values[other] in wanted:
        return ""
    return f"needs {other} = {' or '.join(map(repr, wanted))}"


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


STAGES: dict[str, type[Config]] = {"pretrain": PretrainConfig, "sft": SFTConfig, "dpo": DPOConfig}
NOTEBOOKS: dict[str, type[Config]] = {  # a subclass of a stage's config is that stage with more parameters
    "00_start_here": StartConfig,
    "01_pretraining": PretrainConfig,
    "02_supervised_fine_tuning": SFTConfig,
    "03_lora": LoRAConfig,
    "04_qlora": QLoRAConfig,
    "07_dpo": DPOConfig,
}


def stage_of(notebook: str) -> str:
    """The stage that a notebook trains ("sft" for 03_lora), or "" where it trains none."""
    return next((stage for stage, kind in STAGES.items() if issubclass(NOTEBOOKS[notebook], kind)), "")


def allowed(field: dataclasses.Field) -> str:
    """The values that a field may take, in words ("a whole number from 1 to 4096 rows")."""
    about = field.metadata
    if about["choices"]:
        return "one of " + ", ".join(about["choices"])
    if field.type in (int, float):
        kind = "a whole number" if field.type is int else "a number"
        low, high = about["low"], about["high"]
        limits = f" from {low} to {high}" if None not in (low, high) else f" >= {low}" if low is not None else ""
        limits = limits or (f" <= {high}" if high is not None else "")
        return f"{kind}{limits} {about['unit']}".rstrip()
    return "True or False" if field.type is bool else "text"


def _check_names(kind: type[Config], values: dict) -> None:
    """Raise ConfigError for the first name that `kind` does not have, with the near miss and all names allowed."""
    known = {field.name: field for field in dataclasses.fields(kind)}
    for name in values:
        if name not in known:
            near = get_close_matches(str(name), known, n=1, cutoff=0.5)
            hint = f"Did you mean {near[0]}? " if near else ""
            listing = "; ".join(f"{field.name} ({allowed(field)})" for field in known.values())
            raise ConfigError(f"{name} is not a parameter here", got=values[name], remedy=f"{hint}Allowed: {listing}.")


def checked(field: dataclasses.Field, value):
    """The value, an int turned into a float where the field is one. Raises ConfigError where it is not allowed."""
    about, kind, wrong = field.metadata, field.type, False
    if kind is float and type(value) is int and abs(value) < 1e300:
        value = float(value)
    if type(value) is not kind:
        wrong = True
    elif kind in (int, float):
        too_low = about["low"] is not None and value < about["low"]
        wrong = not _finite(value) or too_low or (about["high"] is not None and value > about["high"])
    elif kind is str:
        wrong = (about["choices"] and value not in about["choices"]) or (field.default != "" and not value.strip())
    if not wrong:
        return value
    raise ConfigError(f"{field.name} must be {allowed(field)}", got=value, remedy=_suggest(field, value))


def _finite(value: int | float) -> bool:
    return type(value) is int or math.isfinite(value)  # isfinite() itself overflows on a very long int


def _suggest(field: dataclasses.Field, value) -> str:
    """What to write instead: the nearest allowed value where one is near, else the default."""
    best = field.default
    if field.type is int and type(value) is float and value.is_integer():
        best = int(value)
    elif field.type is bool and str(value).lower() in ("true", "false", "1", "0", "yes", "no"):
        best = str(value).lower() in ("true", "1", "yes")
    elif field.type in (int, float) and type(value) in (int, float) and _finite(value):
        low, high = field.metadata["low"], field.metadata["high"]
        best = low if low is not None and value < low else high if high is not None and value > high else best
    elif field.metadata["choices"] and isinstance(value, str):
        near = get_close_matches(value.lower(), field.metadata["choices"], n=1, cutoff=0.5)
        if near:
            return f"Did you mean {field.name} = {near[0]!r}?"
    return f"Write for example {field.name} = {best!r}. {field.metadata['help']}"


def check_parameters(notebook: str, parameters: dict) -> Config:
    """The notebook's Config with these parameters. Raises ConfigError for an unknown notebook, name or value."""
    if notebook not in NOTEBOOKS:
        near = get_close_matches(str(notebook), NOTEBOOKS, n=1, cutoff=0.4)
        hint = f"Did you mean {near[0]}? " if near else ""
        raise ConfigError("notebook is not known", got=notebook, remedy=f"{hint}Known: {', '.join(NOTEBOOKS)}.")
    return NOTEBOOKS[notebook].from_dict(parameters)


def configure(notebook: str, namespace: dict) -> Config:
    """The Config of a notebook from its own variables; called as `configure("07_dpo", globals())`.

    Checks that the parameters cell set every field, and that a cell which papermill injected sets no unknown name
    (papermill itself only warns). Prints one line where the model has sizes of its own. Starts the clock that
    `record` reads. Raises ConfigError.
    """
    global _started
    _started = time.monotonic()
    check_parameters(notebook, {})  # is the notebook known?
    fields = dataclasses.fields(NOTEBOOKS[notebook])
    names = [field.name for field in fields]
    injected = {name: namespace.get(name, MISSING) for name in _injected(namespace, names)}
    _check_names(NOTEBOOKS[notebook], injected)
    for field in fields:
        if field.name not in namespace:
            remedy = (
                f"Add the line {field.name} = {field.default!r} to the parameters cell ({allowed(field)}) and run it."
            )
            raise ConfigError(f"{field.name} must be set in the parameters cell of {notebook}", remedy=remedy)
    config = check_parameters(notebook, {name: namespace[name] for name in names})
    before, fitting = config.as_dict(), sized(config, keep=injected)
    changes = [
        f"{name} {before[name]} -> {value}" for name, value in fitting.as_dict().items() if value != before[name]
    ]
    if changes:
        why = "tests the plumbing only" if config.model == "smoke" else "has sizes of its own"
        print(f"model = {config.model} {why}: {', '.join(changes)}. Set other values to keep them.")
    return fitting


def seconds_since_configure() -> float | None:
    """Seconds since the last `configure` in this process, or None where there was none."""
    return None if _started is None else time.monotonic() - _started


def sized(config: Config, keep: Iterable[str] = ()) -> Config:
    """The config with what suits its model, "smoke" or "smol", in place of values left at their defaults but `keep`."""
    sizes = {"smoke": SMOKE, "smol": config.SMOL}.get(config.model, {})
    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    left = {name for name in sizes if name in defaults and getattr(config, name) == defaults[name]} - set(keep)
    return dataclasses.replace(config, **{name: sizes[name] for name in left})


def _injected(namespace: dict, fields: list[str]) -> list[str]:
    """The names assigned by the cell that papermill injected, from IPython's history (`In`); [] without one.

    Only the newest such cell counts, and only where it ran after the parameters cell: so in a long-lived kernel, an
    injected cell that has since been corrected, or removed and the notebook run again, raises no alarm.
    """
    history = namespace.get("In")
    for source in reversed(history if isinstance(history, list) else []):
        names = _assigned(source)
        if source.partition("\n")[0].strip() == "# Parameters":
            return [name for name in names if not name.startswith("PAPERMILL_")]  # papermill's own --inject-paths
        if set(fields) <= set(names):
            return []  # the parameters cell, and nothing was injected after it
    return []


def _assigned(source: str) -> list[str]:
    """The names that the top level of a cell assigns; [] where it is not plain Python."""
    try:
        nodes = ast.parse(source).body
    except SyntaxError:
        return []
    assignments = [node for node in nodes if isinstance(node, (ast.Assign, ast.AnnAssign))]
    targets = [target for node in assignments for target in getattr(node, "targets", None) or [node.target]]
    return [target.id for target in targets if isinstance(target, ast.Name)]
