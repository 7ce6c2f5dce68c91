"""The stages in order: who starts from whom, and training a missing parent."""

from pathlib import Path

from labkit import config as configs
from labkit import data, runs
from labkit.config import Config, DPOConfig, PretrainConfig, SFTConfig


def source_of(config: Config, say=print) -> tuple[str | Path, str]:
    """(what to load, its name) for the model that a stage starts from.

    A `parent` run wins. Otherwise SFT starts from the shipped base, and DPO from the SFT run of the same model and
    seed, which is trained if the store has none.
    """
    if getattr(config, "parent", ""):
        run = runs.get(config.parent)
        return run.checkpoint, run.id
    if isinstance(config, DPOConfig):
        run = sft_run(config.model, config.seed, say)
        return run.checkpoint, run.id
    if config.model == "nano":
        return data.BASE, "shipped-base-" + data.file_hash(str(data.BASE / "model.safetensors"), "")[:8]
    return config.model, config.model


def sft_run(model: str, seed: int, say=print, **options) -> runs.Run:
    """The SFT run at its defaults: from the store, or trained now."""
    small = configs.SMOKE if model == "smoke" else {}
    return train_stage("sft", SFTConfig(model=model, seed=seed, **small, **options), say=say)


def dpo_run(model: str, seed: int, say=print, **options) -> runs.Run:
    """The DPO run at its defaults: from the store, or trained now."""
    small = configs.SMOKE if model == "smoke" else {}
    return train_stage("dpo", DPOConfig(model=model, seed=seed, **small, **options), say=say)


def three_stages(model: str, seed: int, *, retrain: bool = False, say=print) -> dict[str, str | Path]:
    """What to load for the base, the instruction and the aligned model; the last two are trained where missing."""
    base, _ = source_of(SFTConfig(model=model, seed=seed))
    instruction = sft_run(model, seed, say, retrain=retrain)
    aligned = dpo_run(model, seed, say, retrain=retrain)
    return {"base": base, "instruction": instruction.checkpoint, "aligned": aligned.checkpoint}


def answer_folder(source: str | Path) -> Path | None:
    """Where a model's answers to the test questions are kept: its run's folder, or the shipped base's."""
    source = Path(source)
    if source.name == "checkpoint":
        return source.parent
    if source == data.BASE:
        folder = runs.runs_dir() / "shipped-base" / data.file_hash(str(data.BASE / "model.safetensors"), "")
        folder.mkdir(parents=True, exist_ok=True)
        return folder
    return None


def train_stage(stage: str, config: Config, *, say=print, **watch) -> runs.Run:
    """Train one stage (or load its identical run) after its parent. `watch`: stop and at_look, as stages take them."""
    if isinstance(config, PretrainConfig):
        from labkit.stages import pretrain

        return pretrain.train(config, say=say, **watch)
    source, parent = source_of(config, say)
    if stage == "sft":
        from labkit.stages import sft

        return sft.train(config, source, parent, say=say, **watch)
    from labkit.stages import dpo

    return dpo.train(config, source, parent, say=say, **watch)
