"""Configurations: one frozen dataclass per stage or study, and which notebook has which.

What a field may hold stands beside it (`option`); a value of wrong type or range is a ConfigError.
"""

from labkit.config.base import SMOKE, Config, sized
from labkit.config.preference import DPOConfig, ORPOConfig, PPOConfig, RewardConfig
from labkit.config.studies import (
    ArenaConfig,
    BenchmarksConfig,
    GoodhartConfig,
    JudgeConfig,
    ShowdownConfig,
    StartConfig,
    WordMetricsConfig,
)
from labkit.config.tuning import (
    AdapterConfig,
    LoRAConfig,
    OwnConfig,
    PretrainConfig,
    QLoRAConfig,
    SFTConfig,
    TuningConfig,
)

STAGES: dict[str, type[Config]] = {
    "pretrain": PretrainConfig,
    "sft": SFTConfig,
    "reward": RewardConfig,
    "ppo": PPOConfig,
    "dpo": DPOConfig,
    "orpo": ORPOConfig,
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
    "08_orpo": ORPOConfig,
    "09_alignment_showdown": ShowdownConfig,
    "10_word_level_metrics": WordMetricsConfig,
    "11_benchmarks": BenchmarksConfig,
    "12_llm_as_judge": JudgeConfig,
    "13_arena": ArenaConfig,
    "14_goodhart": GoodhartConfig,
    "15_your_own": OwnConfig,
}


def stage_of(notebook: str) -> str:
    """The stage that a notebook trains ("sft" for 03_lora), or "" where it trains none."""
    return next((stage for stage, kind in STAGES.items() if issubclass(NOTEBOOKS[notebook], kind)), "")


__all__ = ["NOTEBOOKS", "SMOKE", "STAGES", "AdapterConfig", "Config", "TuningConfig", "sized", "stage_of"]
__all__ += sorted(kind.__name__ for kind in {*NOTEBOOKS.values(), *STAGES.values()})
