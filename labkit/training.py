"""What all stages share: the trainer's arguments, the order of rows, stopping and resuming, saving."""

import contextlib
import json
import shutil
import signal
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import accelerate
import torch
import transformers
from datasets import Dataset, load_from_disk
from transformers import AutoModelForCausalLM

from labkit import adapters, budget, data, models, order, runs
from labkit.config import Config
from labkit.errors import ConfigError, Stopped, TrainingError
from labkit.runs import Run, write_json

TUNING = {"lr_scheduler_type": "linear", "optim": "adamw_torch", "adam_beta2": 0.95, "weight_decay": 0.0}


def arguments(config: Config, run: Run) -> dict:
    """The TrainingArguments that are the same in every stage; a stage adds its own."""
    models.quiet()
    together = runs.processes()
    if config.batch_size % together:
        remedy = f"Write a multiple of {together}, or start fewer processes."
        raise ConfigError(f"batch_size must divide among {together} processes", got=config.batch_size, remedy=remedy)
    return {
        "output_dir": str(run.path / "resume"),
        "max_steps": config.steps,
        "per_device_train_batch_size": config.batch_size // together,  # so a run is the same, however many train it
        "per_device_eval_batch_size": config.batch_size,
        "learning_rate": config.learning_rate,
        "warmup_steps": min(config.warmup_steps, config.steps // 2),
        "max_grad_norm": 1.0,
        "bf16": models.bf16(),
        "use_cpu": models.device() == "cpu",
        "gradient_checkpointing": False,  # saves memory that a small model does not need, and costs a third of the time
        "eval_strategy": "steps",
        "eval_steps": config.eval_every,
        "save_strategy": "steps",
        "save_steps": config.eval_every,
        "save_total_limit": 1,
        "train_sampling_strategy": "sequential",  # put_in_order has put them in theirs
        "logging_steps": 1,  # the recorder puts several into a line
        "logging_nan_inf_filter": False,  # it would log an earlier mean in the place of a loss that is no number
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "seed": config.seed,
        "data_seed": config.seed,
    }


def on_one_device(args: transformers.TrainingArguments) -> transformers.TrainingArguments:
    """The arguments of a trainer that keeps to one GPU, where it would put `batch_size` rows on each that it sees."""
    args._n_gpu = min(args.n_gpu, 1)  # the trainer has no public way to say so
    return args


def write_attention_out(model, longest: int) -> None:
    """On a CPU, train with attention in plain products where no row has more than models.SHORT tokens.

    The backward pass of torch's fused kernel is slower there; the price is the scores in memory.
    """
    if models.device() == "cpu" and longest <= models.SHORT:
        model.set_attn_implementation("eager")


def put_in_order(trainer, config: Config, lengths: Sequence[int]) -> list[int]:
    """Let the trainer learn its rows in the order of `order.order`, which is returned: the places of all rows seen.

    lengths: of each row, in any unit. Skipping what has been learned is then all that a resumed run does.
    """
    places = order.order(lengths, config.batch_size, config.steps, config.seed)
    trainer.train_dataset = trainer.train_dataset.select(places)
    return places


def look_due(step: int, every: int, steps: int) -> bool:
    """Whether held-out data is looked at after `step` steps: at 0, at every `every`th and at the last."""
    return step % every == 0 or step == steps


@contextlib.contextmanager
def interruptible(stop: threading.Event):
    """Within it Ctrl-C, or Jupyter's interrupt, sets `stop`, so that a step is ended and kept; raised is it at the end.

    A second one interrupts at once. In another thread than the main one, which gets no signals, nothing changes.
    """
    before, caught = signal.getsignal(signal.SIGINT), []

    def set_stop(number, frame):
        signal.signal(signal.SIGINT, before)
        caught.append(number)
        stop.set()

    mine = threading.current_thread() is threading.main_thread() and callable(before)
    try:
        if mine:
            signal.signal(signal.SIGINT, set_stop)
        yield
    except Stopped:
        if not caught:
            raise
    finally:
        if mine:
            signal.signal(signal.SIGINT, before)
    if caught:
        stop.clear()
        raise KeyboardInterrupt


def fit(trainer, run: Run, recorder, keep: Callable[[], None], updates: int = 1) -> bool:
    """Train, resuming from the last checkpoint of a stopped or killed run. True if it reached the last step.

    keep: called after a stop, to save the model as it is by then. updates: the trainer's steps that make one of the
    run's. A keyboard interrupt counts as a stop: what was learned is kept and the run can be resumed.
    """
    folder, step, looked = run.path / "resume", 0, -1
    whole = [one.parent for one in folder.glob("checkpoint-*/trainer_state.json")]  # written last: the others are torn
    last = max(whole, key=lambda one: int(one.name.rpartition("-")[2])) if whole else None
    if last:
        state = json.loads((last / "trainer_state.json").read_text(encoding="utf-8"))
        step, looked = state["global_step"], state["stateful_callbacks"]["Recorder"]["attributes"]["looked"]
    again = looked < step and look_due(step, trainer.args.eval_steps, trainer.args.max_steps)  # cut short, or the first
    run.rewind(step // updates if last else -1, look=not again)
    trainer.args.eval_on_start = again and trainer.eval_dataset is not None
    trainer.recorder = recorder
    keep_first_batch(trainer.model, run)
    try:
        with interruptible(recorder.stop):
            trainer.train(resume_from_checkpoint=str(last) if last else None)
            run.info["peaks_mb"] = run.info.get("peaks_mb", {}) | {"training": models.peak_mb()}
            if recorder.interrupted is not None:
                raise recorder.interrupted
            if trainer.state.global_step < trainer.args.max_steps:
                raise Stopped
    except (KeyboardInterrupt, Stopped) as stopped:
        if recorder.whole and trainer.state.global_step:
            keep()
        run.stop()
        if isinstance(stopped, KeyboardInterrupt):
            raise
        return False
    except Exception as error:
        run.fail(error)
        raise
    return True


def load(run: Run, config: Config, source: str | Path, loader: Callable = models.load):
    """(model with its adapter, if it gets one; tokenizer), the peaks of memory before and after kept in the run."""
    peaks = {"before loading": models.peak_mb()}
    frozen = config.tuning == "lora"
    model, tokenizer = loader(source, seed=config.seed, quantization=config.quantization, frozen=frozen)
    if any(hasattr(part, "lora_A") for part in model.modules()):  # a second adapter would take the place of the first
        what = "parent must not be an adapter on quantized weights"
        raise ConfigError(what, got=str(source), remedy='Name a run with quantization = "none": its adapter is merged.')
    if config.tuning == "full" and getattr(model, "is_quantized", False):
        remedy = 'Write tuning = "lora": an adapter on them trains. Or name the model that they were made from.'
        raise ConfigError("model must not be quantized to be tuned in full", got=str(source), remedy=remedy)
    for weight in model.parameters():  # they are mapped from their file and come at the first use: use them
        weight.detach().max()
    run.info["peaks_mb"] = peaks | {"loading": models.peak_mb()}
    return adapters.attach(model, config, tokenizer), tokenizer


def probe(config: Config, knobs: dict, n: int = 3) -> float:
    """Seconds per step of a training with these knobs of `budget.knobs`, from n steps on random tokens; none is kept.

    With the stage's own optimizer and form of attention. The loss is next-token prediction in every stage, of as many
    tokens as are learned of a row where SFT on a CPU scores no others. A pair counts as two rows. Raises ConfigError
    for PPO, most of whose time goes into sampling.
    """
    from labkit.stages import pretrain, sft  # they are built on this module

    if knobs["stage"] == "ppo":
        raise ConfigError(
            "stage cannot be probed", got="ppo", remedy="Train a few steps: the panel then knows the pace."
        )
    rows, length = knobs["batch_size"] * (2 if knobs["stage"] in budget.PAIRED else 1), knobs["seq_length"]
    quantization, lora = knobs.get("quantization", "none"), knobs.get("method") == "lora"
    if knobs["stage"] == "pretrain" and config.model == "nano":
        size = {"hidden_size": config.hidden_size, "layers": config.layers, "heads": config.heads}
        model = AutoModelForCausalLM.from_config(models.nano_config(config.vocab_size, **size))
    else:
        model, tokenizer = models.load(config.model, quantization=quantization, frozen=lora)
        model = adapters.attach(model, config, tokenizer) if lora else model
    model = model.to(models.device()).train()
    if knobs["stage"] in ("sft", "reward"):
        write_attention_out(model, length)
    if knobs["stage"] == "sft" and models.device() == "cpu":
        sft.score_learned_tokens_only(model)
    if knobs.get("optimizer") == "muon":
        optimizer = pretrain.MuonWithAdamW(model, config.learning_rate)
    else:
        optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad])
    ids = torch.randint(model.config.get_text_config().vocab_size, (rows, length), device=model.device)
    labels = ids.clone()
    labels[:, : max(0, length - knobs.get("learned_tokens", length))] = data.IGNORED

    def step() -> float:
        with models.autocast():
            loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()  # waits for the device

    return budget.probe(step, n)


def shared(rows: Dataset, folder: Path) -> Dataset:
    """The rows from a folder that all processes see: there trl's process 0 leaves what it computes for the others."""
    state = accelerate.PartialState(cpu=models.device() == "cpu")
    if state.is_main_process:
        rows.save_to_disk(folder)
    state.wait_for_everyone()
    return load_from_disk(str(folder))


def keep_first_batch(model, run: Run) -> None:
    """Write the first batch, exactly as the model gets it, to first_batch.json: input_ids, labels, attention_mask.

    A resumed run keeps the one that it has.
    """
    if (run.path / "first_batch.json").exists():
        return

    def keep(module, args, kwargs):
        if module.training and not runs.rank():
            hook.remove()
            names = [name for name in ("input_ids", "labels", "attention_mask") if kwargs.get(name) is not None]
            write_json(run.path / "first_batch.json", {name: kwargs[name].tolist() for name in names})

    hook = model.register_forward_pre_hook(keep, with_kwargs=True)


def finish(run: Run, model, keep: Callable[[], None], **metrics) -> Run:
    """Save the model and mark the run as finished, with its last look and these metrics; drop what resuming needed.

    Raises TrainingError, and saves nothing, where the last loss on held-out data is no number.
    """
    if runs.rank():  # process 0 saves
        return run
    last = [row for row in run.history() if "held_out_loss" in row][-1]
    if last["held_out_loss"] is None:
        what = f"the held-out loss is no number at step {last['step']}"
        error = TrainingError(what, got="nan", remedy="Lower learning_rate, or raise warmup_steps.")
        run.fail(error)
        raise error
    keep()
    looked = {name: value for name, value in last.items() if name.startswith(("held_out", "bits"))}
    run.finish(**looked, **metrics, **models.weights(model))
    shutil.rmtree(run.path / "resume", ignore_errors=True)
    return run


def save(run: Run, config: Config, model, tokenizer, source: str | Path = "") -> None:
    """Write the model, or its adapter alone, and the tokenizer to the run's checkpoint folder (safetensors).

    source: what the model was loaded from, for an adapter to find its base.
    """
    if runs.rank():  # process 0 saves
        return
    if adapters.is_peft(model):
        adapters.save(model, run.checkpoint, str(source), run.config["quantization"])
    else:
        model = model.to(torch.bfloat16) if config.model in ("nano", "smoke") else model
        model.save_pretrained(run.checkpoint)
    tokenizer.save_pretrained(run.checkpoint)
