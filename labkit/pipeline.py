"""The stages in order: who starts from whom, and training a missing parent."""

import contextlib
import dataclasses
import os
import subprocess
import sys
import threading
from importlib import import_module
from pathlib import Path

from labkit import data, preferences, runs
from labkit.config import STAGES, Config, PPOConfig, RewardConfig, SFTConfig, sized
from labkit.errors import ConfigError, LabError, Stopped, TrainingError

_training = threading.RLock()  # one training at a time in a process: two at once would both crawl
_now: list[str] = []  # what holds it, for the message to whoever comes second

# what a stage starts from unless `parent` names a run
STARTS = {"pretrain": "nothing", "sft": "base", "reward": "sft", "ppo": "sft", "dpo": "sft", "orpo": "base"}
INSTRUCTION = "instruction"  # as `parent`: the instruction model, where a stage would start from another
FILES = {"pretrain": ("corpus", "corpus"), "sft": ("data", "instructions")}  # the others learn from `data`, pairs


def source_of(config: Config, say=print, stop: threading.Event | None = None) -> tuple[str | Path, str]:
    """(what to load, its name) for the model that a stage starts from.

    A `parent` run wins; `parent` the same as `model` means that model as it is, "instruction" the SFT run of the lab's
    own models and any other model as it is. Otherwise SFT starts from the shipped
    base, and preference tuning from the SFT run of the same model and seed, which is trained if the store has none.
    Raises TrainingError where `stop` ends that training.
    """
    parent = getattr(config, "parent", "")
    if parent and parent not in (config.model, INSTRUCTION):
        run = runs.get(parent)
        return run.checkpoint, run.id
    if _from_instruction(_stage(config), config):
        run = default_run("sft", config.model, config.seed, say, stop)
        if run.status != "finished":
            raise TrainingError("the parent's training was stopped", got=run.id, remedy="Train again to go on with it.")
        return run.checkpoint, run.id
    if config.model == "nano":
        return data.BASE, "shipped-base-" + data.file_hash(str(data.BASE / "model.safetensors"), "")[:8]
    return config.model, config.model


def _from_instruction(stage: str, config: Config) -> bool:
    """Whether it starts from the SFT run of the same model and seed, which is trained where it is missing."""
    parent = getattr(config, "parent", "")
    if parent == INSTRUCTION:
        return config.model in ("nano", "smoke")  # another model is taken for an instruction model
    return STARTS[stage] == "sft" and not parent


def existing(stage: str, config: Config) -> runs.Run | None:
    """The run that this configuration has in the store, whatever its status, or None. Trains nothing."""
    path = runs.runs_dir() / stage / _id(stage, config)
    return runs.get(path.name) if (path / "run.json").exists() else None


def _id(stage: str, config: Config) -> str:
    """The id that a run of this configuration has or will have."""
    if stage == "ppo" and not config.reward:
        config = dataclasses.replace(config, reward=_id("reward", _reward_config(config)))
    field, name = FILES.get(stage, ("data", "pairs"))
    if STARTS[stage] == "nothing":
        parent = ""
    elif _from_instruction(stage, config):
        parent = _id("sft", _default(SFTConfig, config.model, config.seed))
    else:
        parent = source_of(config)[1]
    source = getattr(config, field)
    found = preferences.data_hash(source) if name == "pairs" else data.file_hash(source, name)
    return runs.run_id(stage, config, parent, found)


def seconds_per_step(stage: str, config: Config) -> float | None:
    """Seconds that a step took in the newest finished run of this stage, model and tuning here, scaled by the batch.

    None where nothing of the kind has run: the first steps will tell.
    """
    alike = ("model", "tuning", "quantization", "hidden_size", "layers")
    for run in reversed(runs.all_runs(stage)):
        same = all(run.config.get(name) == getattr(config, name, None) for name in alike)
        rows = [row for row in run.history() if "seconds" in row]
        if same and run.status == "finished" and len(rows) > 1 and rows[-1]["step"] > rows[0]["step"]:
            pace = (rows[-1]["seconds"] - rows[0]["seconds"]) / (rows[-1]["step"] - rows[0]["step"])
            tokens = [c["batch_size"] * c.get("block_size", 1) for c in (config.as_dict(), run.config)]
            return pace * tokens[0] / tokens[1]
    return None


def _stage(config: Config) -> str:
    """The stage whose configuration this is; a notebook's, which has more parameters, included."""
    return next(stage for stage, kind in STAGES.items() if isinstance(config, kind))


def _default(kind: type[Config], model: str, seed: int) -> Config:
    return sized(kind(model=model, seed=seed))


def default_run(
    stage: str, model: str, seed: int, say=print, stop: threading.Event | None = None, retrain: bool = False
) -> runs.Run:
    """The run of a stage at its defaults: from the store, or trained now."""
    config = dataclasses.replace(_default(STAGES[stage], model, seed), retrain=retrain)
    return train_stage(stage, config, say=say, stop=stop)


def reward_of(config: PPOConfig, say=print, stop: threading.Event | None = None) -> str:
    """The reward that PPO learns from: `config.reward`, or the reward model's run of its model, seed and data.

    That run is trained if the store has none. Raises TrainingError where `stop` ends that training.
    """
    if config.reward:
        return config.reward
    run = train_stage("reward", _reward_config(config), say=say, stop=stop)
    if run.status != "finished":
        raise TrainingError("the reward model's training was stopped", got=run.id, remedy="Train again to go on.")
    return run.id


def _reward_config(config: PPOConfig) -> RewardConfig:
    return dataclasses.replace(_default(RewardConfig, config.model, config.seed), data=config.data)


def three_stages(model: str, seed: int, *, retrain: bool = False, say=print) -> dict[str, str | Path]:
    """What to load for the base, the instruction and the aligned model; the last two are trained where missing."""
    base, _ = source_of(SFTConfig(model=model, seed=seed))
    instruction = default_run("sft", model, seed, say, retrain=retrain)
    aligned = default_run("dpo", model, seed, say, retrain=retrain)
    return {"base": base, "instruction": instruction.checkpoint, "aligned": aligned.checkpoint}


def answer_folder(source: str | Path) -> Path | None:
    """Where a model's answers to the test questions are kept: its run's folder, the shipped base's, or smol's."""
    source = Path(source)
    if source.name == "checkpoint" and (source.parent / "run.json").is_file():
        return source.parent
    if source == data.BASE:
        folder = runs.runs_dir() / "shipped-base" / data.file_hash(str(data.BASE / "model.safetensors"), "")
        folder.mkdir(parents=True, exist_ok=True)
        return folder
    if str(source) == "smol":
        folder = runs.runs_dir() / "smol"
        folder.mkdir(parents=True, exist_ok=True)
        return folder
    return None


def train_apart(stage: str, config: Config) -> runs.Run:
    """The run of a configuration, from the store or trained now in a process of its own, whose peak is its alone.

    Parameters that only a notebook has are left out. Raises TrainingError where that process fails.
    """
    names = [field.name for field in dataclasses.fields(STAGES[stage])]
    config = STAGES[stage](**{name: getattr(config, name) for name in names})
    found = None if config.retrain else existing(stage, config)
    if found is None or found.status != "finished":
        file = runs.runs_dir() / "apart" / f"{stage}-{os.getpid()}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        runs.write_json(file, {"stage": stage, **config.as_dict()})
        done = subprocess.run([sys.executable, "-m", "labkit", "train", str(file)], capture_output=True, text=True)
        found = existing(stage, config)
        if done.returncode or found is None or found.status != "finished":
            remedy = f"Run `python -m labkit train {file}` to see it fail."
            raise TrainingError(f"{stage} did not finish", got=done.stderr.strip()[-500:], remedy=remedy)
    return found


def _when_saved(run: runs.Run) -> runs.Run:
    """The run as process 0 left it, once it has, where several processes train together."""
    if runs.processes() == 1:
        return run
    import accelerate

    accelerate.PartialState().wait_for_everyone()
    return run.reload()


def train_stage(
    stage: str, config: Config, *, say=print, stop: threading.Event | None = None, at_look=None
) -> runs.Run:
    """Train one stage (or load its identical run) after its parent.

    Raises TrainingError where this process is training already: two trainings at once would both crawl. A run that was
    opened and ended before its first step (rows that cannot be used, a stop in DPO's reference pass) is marked so.
    """
    import torch  # here, so that whoever only looks at runs does not wait for it

    from labkit import models

    if stage == "ppo" and runs.processes() > 1:
        remedy = "Start it without accelerate: `python -m labkit train CONFIG.json`."
        raise ConfigError("ppo must be trained by one process", got=runs.processes(), remedy=remedy)
    say = (lambda line: None) if runs.rank() else say
    if not _training.acquire(blocking=False):
        raise TrainingError(
            "a training is running in this kernel already",
            got=_now[-1] if _now else "another thread",
            remedy="Stop it or wait for its end; nothing of either is lost.",
        )
    _now.append(f"{stage} of {config.model}")
    try:
        start = () if STARTS[stage] == "nothing" else source_of(config, say, stop)
        if stage == "ppo":
            config = dataclasses.replace(config, reward=reward_of(config, say, stop))
        # Adam's moments of rows that get no gradient fade into denormal numbers, which a CPU computes many times
        # slower. Set after a parent's training, which ends by switching it off; for this thread and what it starts.
        torch.set_flush_denormal(True)
        run = import_module(f"labkit.stages.{stage}").train(config, *start, say=say, stop=stop, at_look=at_look)
        return _when_saved(run)
    except (Exception, KeyboardInterrupt) as error:
        with contextlib.suppress(LabError):
            left = existing(stage, config)
            if left is not None and left.info["status"] == "running" and left.info.get("pid") == os.getpid():
                left.stop() if isinstance(error, (Stopped, KeyboardInterrupt)) else left.fail(error)
                if isinstance(error, Stopped):
                    return left
        raise
    finally:
        torch.set_flush_denormal(False)  # Python's own numbers obey it too: nothing after a training may
        models.give_back()
        _now.pop()
        _training.release()
