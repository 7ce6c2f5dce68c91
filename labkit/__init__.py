"""labkit: the thin package behind the notebooks of the Training Pipeline Lab.

Names are imported when they are first used, so that `import labkit` costs milliseconds and never loads torch:

    import labkit
    config = labkit.configure("02_supervised_fine_tuning", globals())
    labkit.record("02_supervised_fine_tuning", config, {"accuracy": 0.97})
"""

import os
from importlib import import_module

# A CPU's kernels are compiled for every new shape and kept, by default a thousand of them: half a gigabyte for a model
# of four million weights. Fewer are also found sooner. Read once, when torch multiplies first.
for cache in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
    os.environ.setdefault(cache, "64")

__version__ = "0.1.0"

_NAMES = {  # public name -> the module that holds it
    "configure": "parameters",
    "StartConfig": "config",
    "PretrainConfig": "config",
    "SFTConfig": "config",
    "LoRAConfig": "config",
    "QLoRAConfig": "config",
    "RewardConfig": "config",
    "DPOConfig": "config",
    "ORPOConfig": "config",
    "PPOConfig": "config",
    "ShowdownConfig": "config",
    "BenchmarksConfig": "config",
    "ArenaConfig": "config",
    "WordMetricsConfig": "config",
    "JudgeConfig": "config",
    "GoodhartConfig": "config",
    "LabError": "errors",
    "Run": "runs",
    "describe_versions": "runs",
    "record": "records",
    "latest_records": "records",
    "Evidence": "verdicts",
    "verdict": "verdicts",
    "verdict_table": "verdicts",
}
_MODULES = (
    *("adapters", "background", "budget", "cards", "config", "data", "errors", "evaluate", "execute", "fetch"),
    *("fields", "gate", "health", "lineage", "models", "on_policy", "parameters", "pipeline", "ppo", "preferences"),
    *("proxies", "rack", "records", "rewards", "rollouts", "runs", "showdown", "stages", "training", "ui", "verdicts"),
)

__all__ = sorted([*_NAMES, *_MODULES, "__version__"])


def __getattr__(name: str):
    """Import a public name at its first use (PEP 562) and keep it."""
    if name in _NAMES:
        value = getattr(import_module(f"labkit.{_NAMES[name]}"), name)
    elif name in _MODULES:
        value = import_module(f"labkit.{name}")
    else:
        raise AttributeError(f"labkit has no name {name!r}; its public names are {', '.join(__all__)}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
