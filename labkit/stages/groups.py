"""RLOO and GRPO, by trl's trainers: PPO without a value model.

Several answers to the same prompt are compared: what one earned beyond the others is the advantage of all its tokens.

    rloo   A_i = whiten(R_i - mean of the others' R), KL in the reward, one ratio for an answer (Ahmadian et al. 2024)
    grpo   A_i = (R_i - mean R) / std R, KL (k3) in the loss, a ratio for each token            (Shao et al. 2024)

Answers sampled, updates and reward are those of PPO; of a step's batch, batch_size / generations prompts are different.
"""

import math
import statistics
import threading
from collections.abc import Callable
from unittest import mock

import torch
import transformers
import trl
from datasets import Dataset
from transformers.trainer_callback import ExportableState

from labkit import data, health, models, runs, training
from labkit.errors import Stopped, TrainingError

NAMES = {  # trl's names for what it logs -> the lab's
    "loss": "loss",
    "reward": "reward",
    "entropy": "entropy",
    "clip_ratio/region_mean": "clip_share",
    "completions/mean_length": "answer_length",
    "grad_norm": "grad_norm",
    "learning_rate": "learning_rate",
}


class Recorder(transformers.TrainerCallback, ExportableState):
    """Writes what trl logs to the run, by the lab's steps (a batch of answers), looks at held-out data; obeys stop."""

    def __init__(self, run: runs.Run, updates: int, every: int, at_hand: Callable, stop: threading.Event):
        self.run, self.updates, self.every, self.at_hand, self.stop = run, updates, every, at_hand, stop
        self.said: list[str] = []  # since the last line of the log
        self.looked, self.whole, self.interrupted = -1, True, None  # as in recorder.Recorder

    def state(self) -> dict:
        return {"args": {}, "attributes": {"looked": self.looked}}

    def look(self, state) -> None:
        step, rest = divmod(state.global_step, self.updates)
        if (
            rest
            or self.looked >= state.global_step
            or not training.look_due(step, self.every, self.run.config["steps"])
        ):
            return
        with torch.random.fork_rng():
            self.at_hand(step)
        self.looked = state.global_step

    def on_train_begin(self, args, state, control, **kwargs):
        if state.global_step:
            self.looked = state.stateful_callbacks["Recorder"]["attributes"]["looked"]
        self.look(state)  # the first, or one that a stop cut short

    def on_log(self, args, state, control, logs=None, **kwargs):
        known = {NAMES[name]: value for name, value in (logs or {}).items() if name in NAMES}
        numbers = {name: math.nan if value is None else float(value) for name, value in known.items()}
        step = state.global_step // self.updates
        if not math.isfinite(numbers.get("loss", 0.0)):
            self.run.log(step, **numbers, seconds=round(self.run.elapsed(), 2))
            what, remedy = f"the loss is no number at step {step}", "Lower learning_rate."
            raise TrainingError(what, got=args.learning_rate, remedy=remedy)
        if {"loss", "reward"} <= numbers.keys():  # not what trl sums up at the end
            if "kl" in logs:  # trl measures none where kl_coef is 0; its is per token
                numbers["kl"] = logs["kl"] * numbers["answer_length"]
            numbers["repetition"] = statistics.mean(map(health.repeated, self.said or [""]))
            self.said.clear()
            worked = round(self.run.processor_seconds(), 2)
            self.run.log(step, **numbers, seconds=round(self.run.elapsed(), 2), processor_seconds=worked)
            try:
                self.look(state)
            except (Stopped, KeyboardInterrupt) as stopped:
                self.interrupted = stopped
                control.should_training_stop = control.should_save = True
        return control

    def on_step_begin(self, args, state, control, **kwargs):
        self.whole = False

    def on_step_end(self, args, state, control, **kwargs):
        rest = state.global_step % self.updates
        self.whole = not rest
        if not rest and self.stop.is_set():  # amid a batch trl would lose count of it
            control.should_training_stop = control.should_save = True
        return control


def learn(
    learner,
    run: runs.Run,
    prompts: list[dict],
    at_hand: Callable,
    stop: threading.Event,
    keep: Callable[[], None],
) -> bool:
    """Train learner.policy by trl; the other arguments, and what is returned, as in stages.ppo.learn."""
    config, policy, tokenizer = learner.config, learner.policy, learner.tokenizer
    updates = config.epochs * config.batch_size // config.minibatch_size  # of each batch of answers
    policy.generation_config.eos_token_id = stops = sorted(models.stops(policy, tokenizer))
    policy.generate = models.autocast()(policy.generate)
    rows = [
        {"prompt": said, "asked": asked}
        for batch in prompts
        for said, asked in zip(batch["messages"], batch["asked"], strict=True)
    ]

    def reward(completions, completion_ids, asked, **_) -> list[float]:
        ended = [ids[-1:] != [] and ids[-1] in stops for ids in completion_ids]
        texts = [data.spoken(said[0]["content"]) for said in completions]
        recorder.said += texts
        return learner.score(asked, texts, ended).tolist()

    def looked(step: int) -> None:
        at_hand(step)
        policy.train()

    arguments = training.arguments(config, run)
    arguments |= {name: arguments[name] * updates for name in ("max_steps", "eval_steps", "save_steps", "warmup_steps")}
    arguments |= {f"per_device_{part}_batch_size": config.minibatch_size for part in ("train", "eval")}
    arguments |= {"eval_strategy": "no", "logging_steps": updates}
    said = dict(data.THINKING)
    if any(data.spells_control(tokenizer, row["prompt"]) for row in rows):
        said["sanitize_control_tokens"] = True  # as in data.templated
    options = {
        **arguments, "beta": config.kl_coef, "epsilon": config.clip, "num_generations": config.generations,
        "max_completion_length": config.max_new_tokens, "chat_template_kwargs": said,
        "steps_per_generation": config.batch_size // config.minibatch_size,
        "num_iterations": config.epochs, "disable_dropout": True, **training.TUNING,
    }  # fmt: skip
    if config.algorithm == "rloo":
        kind, args = trl.RLOOTrainer, trl.RLOOConfig(**options, normalize_advantages=True)
    else:
        kind, args = trl.GRPOTrainer, trl.GRPOConfig(**options, loss_type="grpo", use_bias_correction_kl=False)
    recorder = Recorder(run, updates, config.eval_every, looked, stop)
    module = f"trl.trainer.{config.algorithm}_trainer.create_model_from_path"
    with mock.patch(module, lambda *_, **__: learner.reference):  # trl would read it from disk a second time
        trainer = kind(
            policy, reward, training.on_one_device(args), train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer, callbacks=[recorder],
        )  # fmt: skip
    trainer.remove_callback(transformers.PrinterCallback)
    return training.fit(trainer, run, recorder, keep, updates)
