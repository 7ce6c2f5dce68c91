"""The stages in order: who starts from whom, and training a missing parent."""

from pathlib import Path

from labkit import config as configs
from labkit import data, runs
from labkit.config import Config, DPOConfig, PretrainConfig, SFTConfig


def source_of(config: Config, say=print) -> tuple[str | Path, str]:
    """(what to load, its name) for the model that a stage starts from.

    A `parent` run wins. Otherwise SFT starts from the shipped base, and DPO from the SFT run of the same model and seed,
    which is trained if the store has none.
    """
    if getattr(config, "parent", ""):
        run = runs.get(config.parent)
        return run.checkpoint, run.id
    if isinstance(config, DPOConfig):
        run = sft_run(config.model, config.seed, say)
        return run.checkpoint, run.id
    return (data.BASE, "shipped-base") if config.model == "nano" else (config.model, config.model)


def sft_run(model: str, seed: int, say=print) -> runs.Run:
    """The SFT run at its defaults: from the store, or trained now."""
    config = SFTConfig(model=model, seed=seed)
    if model == "smoke":
        config = SFTConfig(model=model, seed=seed, **configs.SMOKE)
    return train_stage("sft", config, say=say)


def dpo_run(model: str, seed: int, say=print) -> runs.Run:
    """The DPO run at its defaults: from the store, or trained now."""
    config = DPOConfig(model=model, seed=seed, **(configs.SMOKE if model == "smoke" else {}))
    return train_stage("dpo", config, say=say)


def train_stage(stage: str, config: Config, *, say=print, **watch) -> runs.Run:
    """Train one stage (or load its identical run) after its parent. `watch`: stop and at_look, as the stages take them."""
    if isinstance(config, PretrainConfig):
        from labkit.stages import pretrain

        return pretrain.train(config, say=say, **watch)
    source, parent = source_of(config, say)
    if stage == "sft":
        from labkit.stages import sft

        return sft.train(config, source, parent, say=say, **watch)
    from labkit.stages import dpo

    return dpo.train(config, source, parent, say=say, **watch)
