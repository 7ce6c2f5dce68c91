"""What a training logs: the run's lines and, at every look, a line of progress; all that a resume needs of them."""

import itertools
import math
import statistics
import threading
import time
from collections.abc import Callable

import torch
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from labkit import data, health, models, runs
from labkit.errors import Stopped, TrainingError
from labkit.evaluate import answers
from labkit.runs import Run

NAMES = {  # the trainers' names for what they log -> the lab's
    "loss": "loss",
    "eval_loss": "held_out_loss",
    "preference_loss": "preference_loss",
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


class Recorder(TrainerCallback, ExportableState):
    """Writes what a trainer logs to the run, prints a line at every look at held-out data, and obeys `stop`.

    The trainer logs every step; a line of the run holds the means of up to `every` steps. What a line not yet written
    has seen, and which look was completed last, is kept with every checkpoint.
    """

    def __init__(
        self,
        run: Run,
        say: Callable,
        stop: threading.Event | None = None,
        bytes_per_token: float = 0.0,
        beta: float = 0.0,  # DPO's: its rewards are beta (log pi - log ref)
    ):
        self.run, self.say, self.bytes_per_token, self.beta = run, say, bytes_per_token, beta
        self.stop = threading.Event() if stop is None else stop
        self.every = max(1, min(10, run.config["steps"] // 10))
        self.began, self.first_step, self.loss = time.monotonic(), 0, math.nan
        self.seen: list[dict[str, float]] = []  # what was logged since the last line
        self.looked = -1  # the step of the last look that was completed
        self.at_look: list[Callable] = []  # called with the model at every look at held-out data
        self.whole = True  # between two steps: no weight is half updated
        self.interrupted: BaseException | None = None  # what cut a look short

    def state(self) -> dict:
        return {"args": {}, "attributes": {"seen": self.seen, "looked": self.looked}}

    def on_train_begin(self, args, state, control, **kwargs):
        self.began, self.first_step = time.monotonic(), state.global_step
        if state.global_step:
            kept = state.stateful_callbacks["Recorder"]["attributes"]
            self.seen, self.looked = kept["seen"], kept["looked"]

    def on_log(self, args, state, control, logs=None, **kwargs):
        numbers = {NAMES[name]: float(value) for name, value in (logs or {}).items() if name in NAMES}
        if self.beta and "rewards_chosen" in numbers:
            for side in ("chosen", "rejected"):
                numbers[f"log_ratio_{side}"] = numbers[f"rewards_{side}"] / self.beta
        if "held_out_loss" in numbers:
            if self.bytes_per_token:
                numbers["bits_per_byte"] = numbers["held_out_loss"] / math.log(2) / self.bytes_per_token
            self.write(state.global_step, numbers)
            self.say(self.line(state, numbers))
        elif "loss" in numbers:
            self.seen.append(numbers)
            diverged = not math.isfinite(numbers["loss"])
            step = state.global_step
            if diverged or step == 1 or step % self.every == 0 or step == state.max_steps:
                means = {name: statistics.mean(row[name] for row in self.seen) for name in numbers}
                means["learning_rate"] = numbers.get("learning_rate", math.nan)
                self.loss, self.seen = means["loss"], []
                self.write(step, means)
            if diverged:
                raise TrainingError(
                    f"the loss is no longer a number at step {step}",
                    got=args.learning_rate,
                    remedy="Lower learning_rate, or raise warmup_steps.",
                )

    def write(self, step: int, numbers: dict[str, float]) -> None:
        worked = round(self.run.processor_seconds(), 2)
        self.run.log(step, **numbers, seconds=round(self.run.elapsed(), 2), processor_seconds=worked)

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
        self.looked = state.global_step

    def on_prediction_step(self, args, state, control, **kwargs):
        if self.stop.is_set():  # a look at held-out data takes many steps' time
            raise Stopped

    def on_epoch_begin(self, args, state, control, **kwargs):
        if self.stop.is_set():
            raise Stopped

    def on_step_begin(self, args, state, control, **kwargs):
        self.whole = False

    def on_step_end(self, args, state, control, **kwargs):
        self.whole = True
        if self.stop.is_set():
            control.should_training_stop = control.should_save = True
        return control


def watch_answers(recorder: Recorder, tokenizer, rows, context: int, reference: Callable | None = None) -> None:
    """At every look, log what the model writes to the first 32 of `rows`: `answer_length` (tokens) and `repetition`.

    Rows whose prompt leaves no room for an answer in the model's context, in tokens, are passed by.

    reference(model): the model that it started from, within a `with`. Then also `held_out_kl`, nats per sampled answer,
    with the same random numbers at every look.
    """
    most = 8 if recorder.run.config["model"] == "smoke" else 64  # random weights end no answer
    asked = ((said, data.asked_ids(tokenizer, said)) for said in rows["messages"])
    short = (pair for pair in asked if len(pair[1]) + most <= context)
    found = list(itertools.islice(short, 32))
    if not found:
        return
    some, texts = zip(*found, strict=True)

    def look(model) -> None:
        if runs.rank():  # it would write the same
            return
        found = [row["text"] for row in answers.generate(model, tokenizer, texts, max_new_tokens=most)]
        lengths = [len(ids) for ids in data.encode(tokenizer, found)]
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
