"""What all stages share: the trainer's arguments, the recorder that writes the run, stopping and resuming."""

import itertools
import math
import shutil
import statistics
import threading
import time
from collections.abc import Callable
from pathlib import Path

import accelerate
import torch
import transformers
from datasets import Dataset, load_from_disk
from transformers import AutoModelForCausalLM, TrainerCallback

from labkit import adapters, budget, data, health, models, runs
from labkit.config import Config
from labkit.errors import ConfigError, Stopped, TrainingError
from labkit.evaluate import answers
from labkit.runs import Run, write_json

NAMES = {  # the trainers' names for what they log -> the lab's
    "loss": "loss",
    "eval_loss": "held_out_loss",
    "learning_rate": "learning_rate",
    "grad_norm": "grad_norm",
    "entropy": "entropy",
    "log_sum/chosen": "log_sum_chosen",
    "log_sum/rejected": "log_sum_rejected",
    "rewards/chosen": "rewards_chosen",
    "rewards/rejected": "rewards_rejected",
    "rewards/margins": "margin",
    "rewards/accuracies": "pair_accuracy",
    "logps/chosen": "log_probs_chosen",
    "logps/rejected": "log_probs_rejected",
    "accuracy": "pair_accuracy",
    "margin": "margin",
    "mean_reward": "mean_reward",
    "eval_accuracy": "held_out_pair_accuracy",
    "eval_margin": "held_out_margin",
    "eval_mean_reward": "held_out_mean_reward",
    "eval_rewards/margins": "held_out_margin",
    "eval_rewards/accuracies": "held_out_pair_accuracy",
    "eval_logps/chosen": "held_out_log_probs_chosen",
    "eval_logps/rejected": "held_out_log_probs_rejected",
    "log_odds_chosen": "log_odds",
    "nll_loss": "chosen_loss",
    "eval_log_odds_chosen": "held_out_log_odds",
    "eval_nll_loss": "held_out_chosen_loss",
}

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
        "eval_on_start": True,
        "save_strategy": "steps",
        "save_steps": config.eval_every,
        "save_total_limit": 1,
        "logging_steps": max(1, min(10, config.steps // 10)),
        "logging_first_step": True,
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


class Recorder(TrainerCallback):
    """Writes what a trainer logs to the run, prints a line at every look at held-out data, and obeys `stop`."""

    def __init__(
        self,
        run: Run,
        say: Callable,
        stop: threading.Event | None = None,
        bytes_per_token: float = 0.0,
        beta: float = 0.0,  # DPO's: its rewards are beta (log pi - log ref)
    ):
        self.run, self.say, self.stop, self.bytes_per_token, self.beta = run, say, stop, bytes_per_token, beta
        self.began, self.first_step, self.loss = time.monotonic(), 0, math.nan
        self.at_look: list[Callable] = []  # called with the model at every look at held-out data

    def on_train_begin(self, args, state, control, **kwargs):
        self.began, self.first_step = time.monotonic(), state.global_step

    def on_log(self, args, state, control, logs=None, **kwargs):
        numbers = {NAMES[name]: float(value) for name, value in (logs or {}).items() if name in NAMES}
        if "held_out_loss" in numbers and self.bytes_per_token:
            numbers["bits_per_byte"] = numbers["held_out_loss"] / math.log(2) / self.bytes_per_token
        if self.beta and "rewards_chosen" in numbers:
            for side in ("chosen", "rejected"):
                numbers[f"log_ratio_{side}"] = numbers[f"rewards_{side}"] / self.beta
        if numbers:
            self.run.log(state.global_step, **numbers, seconds=round(self.run.elapsed(), 2))
        self.loss = numbers.get("loss", self.loss)
        if not math.isfinite(numbers.get("loss", 0.0)):
            raise TrainingError(
                f"the loss is no longer a number at step {state.global_step}",
                got=args.learning_rate,
                remedy="Lower learning_rate, or raise warmup_steps.",
            )
        if "held_out_loss" in numbers:
            self.say(self.line(state, numbers))

    def line(self, state, numbers: dict) -> str:
        """One line of progress: step, losses, seconds spent and left."""
        spent = time.monotonic() - self.began
        done = state.global_step - self.first_step
        left = spent / done * (state.max_steps - state.global_step) if done else math.nan
        parts = [f"step {state.global_step:5}/{state.max_steps}"]
        if math.isfinite(self.loss):
            parts.append(f"loss {self.loss:.3f}")
        parts.append(f"held-out loss {numbers['held_out_loss']:.3f}")
        if "bits_per_byte" in numbers:
            parts.append(f"{numbers['bits_per_byte']:.3f} bits per byte")
        if "held_out_margin" in numbers:
            parts.append(f"margin {numbers['held_out_margin']:.2f}")
        parts.append(f"{spent:.0f} s" + (f", {left:.0f} s left" if math.isfinite(left) else ""))
        return " | ".join(parts)

    def on_evaluate(self, args, state, control, model=None, **kwargs):
        for look in self.at_look:
            look(model)

    def on_prediction_step(self, args, state, control, **kwargs):
        if self.stop is not None and self.stop.is_set():  # a look at held-out data takes many steps' time
            raise Stopped

    def on_step_end(self, args, state, control, **kwargs):
        if self.stop is not None and self.stop.is_set():
            control.should_training_stop = control.should_save = True
        return control


def write_attention_out(model, longest: int) -> None:
    """On a CPU, train with attention in plain products where no row has more than models.SHORT tokens.

    The backward pass of torch's fused kernel is slower there; the price is the scores in memory.
    """
    if models.device() == "cpu" and longest <= models.SHORT:
        model.set_attn_implementation("eager")


def watch_answers(recorder: Recorder, tokenizer, rows, context: int, reference: Callable | None = None) -> None:
    """At every look, log what the model writes to the first 32 of `rows`: `answer_length` (tokens) and `repetition`.

    Rows whose prompt leaves no room for an answer in the model's context, in tokens, are passed by.

    reference(model): the model that it started from, within a `with`. Then also `held_out_kl`, nats per sampled answer,
    with the same random numbers at every look.
    """
    most = 8 if recorder.run.config["model"] == "smoke" else 64  # random weights end no answer
    asked = ((said, data.asked(tokenizer, said)) for said in rows["messages"])
    short = (pair for pair in asked if len(tokenizer(pair[1], add_special_tokens=False)["input_ids"]) + most <= context)
    found = list(itertools.islice(short, 32))
    if not found:
        return
    some, texts = zip(*found, strict=True)

    def look(model) -> None:
        if runs.rank():  # it would write the same
            return
        found = [row["text"] for row in answers.generate(model, tokenizer, texts, max_new_tokens=most)]
        lengths = [len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in found]
        repetition = statistics.mean(map(health.repeated, found))
        numbers = {"answer_length": statistics.mean(lengths), "repetition": repetition}
        if reference is not None:
            with torch.random.fork_rng():
                torch.manual_seed(0)
                said = answers.generate(model, tokenizer, texts, max_new_tokens=most, sample=True)
                asked = (some, [row["text"] for row in said], [row["stopped"] for row in said])
                with reference(model) as start, models.autocast():  # both rounded alike
                    before, _ = answers.log_probs(start, tokenizer, *asked)
            with models.autocast():
                now, _ = answers.log_probs(model, tokenizer, *asked)
            numbers["held_out_kl"] = float((now - before).mean())
        recorder.run.log(recorder.run.history()[-1]["step"], **numbers)

    recorder.at_look.append(look)


def fit(trainer, run: Run, stop: threading.Event | None = None, updates: int = 1) -> bool:
    """Train, resuming from the last checkpoint of a stopped or killed run. True if it reached the last step.

    updates: the trainer's steps that make one of the run's.
    A keyboard interrupt counts as a stop: what was learned is kept and the run can be resumed.
    """
    folder = run.path / "resume"
    whole = [one.parent for one in folder.glob("checkpoint-*/trainer_state.json")]  # written last: the others are torn
    last = str(max(whole, key=lambda one: int(one.name.rpartition("-")[2]))) if whole else None
    if last:
        run.rewind(int(last.rsplit("-", 1)[1]) // updates)
    keep_first_batch(trainer.model, run)
    try:
        trainer.train(resume_from_checkpoint=last)
        run.info["peaks_mb"] = run.info.get("peaks_mb", {}) | {"training": models.peak_mb()}
        looked = any("held_out_loss" in row for row in run.history() if row["step"] == trainer.state.global_step)
        if trainer.eval_dataset is not None and not looked:
            trainer.evaluate()  # resumed after a stop that cut the last look short
    except (KeyboardInterrupt, Stopped) as stopped:
        trainer._save_checkpoint(trainer.model, trial=None)  # the trainer has no public way to save now
        run.stop()
        if isinstance(stopped, KeyboardInterrupt):
            raise
        return False
    except Exception as error:
        run.fail(error)
        raise
    if stop is not None and stop.is_set() and trainer.state.global_step < trainer.args.max_steps:
        run.stop()
        return False
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
    """Write the first batch, exactly as the model gets it, to first_batch.json: input_ids, labels, attention_mask."""

    def keep(module, args, kwargs):
        if module.training and not runs.rank():
            hook.remove()
            names = [name for name in ("input_ids", "labels", "attention_mask") if kwargs.get(name) is not None]
            write_json(run.path / "first_batch.json", {name: kwargs[name].tolist() for name in names})

    hook = model.register_forward_pre_hook(keep, with_kwargs=True)


def finish(run: Run, config: Config, model, tokenizer, source: str | Path, **metrics) -> Run:
    """Save what was tuned; mark the run as finished, with its last look at held-out data and these metrics.

    Raises TrainingError, and saves nothing, where the last loss on held-out data is no number.
    """
    if runs.rank():  # process 0 saves
        return run
    looks = [row for row in run.history() if "held_out_loss" in row]
    if looks[-1]["held_out_loss"] is None:
        what = f"the held-out loss is no number at step {looks[-1]['step']}"
        error = TrainingError(what, got="nan", remedy="Lower learning_rate, or raise warmup_steps.")
        run.fail(error)
        raise error
    save(run, model, tokenizer, source, torch.bfloat16 if config.model in ("nano", "smoke") else None)
    last = {name: value for name, value in looks[-1].items() if name.startswith("held_out")}
    return run.finish(**last, **metrics, **models.weights(model))


def save(run: Run, model, tokenizer, source: str | Path = "", dtype=None) -> None:
    """Write the model, or its adapter alone, and the tokenizer to the run's checkpoint folder (safetensors).

    source: what the model was loaded from, for an adapter to find its base. What resuming needed is dropped.
    """
    if adapters.is_peft(model):
        adapters.save(model, run.checkpoint, str(source), run.config["quantization"])
    else:
        model = model.to(dtype) if dtype is not None else model
        model.save_pretrained(run.checkpoint)
    tokenizer.save_pretrained(run.checkpoint)
    shutil.rmtree(run.path / "resume", ignore_errors=True)
