"""Direct preference optimization (Rafailov et al. 2023): learn from pairs, without a reward model.

    margin = beta [(log pi(chosen) - log ref(chosen)) - (log pi(rejected) - log ref(rejected))]
    loss   = -log sigmoid(margin)                                         loss_type="sigmoid"
             sigmoid's - mean log pi(chosen token)                        loss_type="sigmoid_sft" (Pang et al. 2024)
             (mean-per-token margin / beta - 1 / (2 beta))^2              loss_type="ipo"   (Azar et al. 2023)
             max(0, 1 - margin)                                           loss_type="hinge" (Zhao et al. 2023)
             sigmoid's, unbiased by a known share of wrong labels         loss_type="robust" (Chowdhury et al. 2024)

The reference model's log-probabilities are computed once before training, so that only one model stays in memory.
"""

import threading
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import torch
import transformers
import trl
from datasets import concatenate_datasets

from labkit import models, preferences, runs, training
from labkit.config import DPOConfig
from labkit.errors import Stopped


def train(
    config: DPOConfig,
    source: str | Path,
    parent: str,
    *,
    say: Callable = print,
    stop: threading.Event | None = None,
    at_look: Callable | None = None,
) -> runs.Run:
    """Tune the model at `source` (its name or run id: `parent`) on preference pairs and return the run.

    An identical run that has finished is returned as it is. Raises DataError for pairs that prefer nothing, before
    training; TrainingError where the loss diverges.
    """
    data_hash = preferences.data_hash(config.data)
    run = runs.open_run("dpo", config, parent=parent, data_hash=data_hash, fresh=config.retrain)
    if run.status == "finished":
        say(f"{run.id} has already run: loaded")
        return run
    transformers.set_seed(config.seed)
    pairs, held_out = preferences.pairs(config.data)
    model, tokenizer = training.load(run, config, source)  # with an adapter, the reference is the model without it
    max_length = min(1024, model.config.max_position_embeddings)
    if config.data != "lab":
        for note in preferences.check(concatenate_datasets([pairs, held_out]), tokenizer, max_length):
            say(note)
    needed = config.steps * config.batch_size
    pairs = pairs.shuffle(seed=config.seed).select(range(min(needed, len(pairs))))  # no reference for pairs never seen
    held_out = held_out.select(range(min(32 if config.model == "smoke" else 256, len(held_out))))

    recorder = training.Recorder(run, say, stop)
    if at_look is not None:
        recorder.at_look.append(lambda model: at_look(run, model, tokenizer))
    args = trl.DPOConfig(
        **training.arguments(config, run),
        beta=config.beta,
        loss_type=["sigmoid", "sft"] if config.loss_type == "sigmoid_sft" else [config.loss_type],
        label_smoothing=config.label_smoothing,
        max_length=max_length,
        precompute_ref_log_probs=True,
        precompute_ref_batch_size=64,
        lr_scheduler_type="linear",
        optim="adamw_torch",
        adam_beta2=0.95,
        weight_decay=0.0,
    )

    class Trainer(trl.DPOTrainer):
        """trl's trainer, which can be stopped while it computes the reference's log-probabilities."""

        def compute_ref_log_probs(self, *batch):
            if stop is not None and stop.is_set():
                raise Stopped
            return super().compute_ref_log_probs(*batch)

    trainer = Trainer(
        model, None, args, processing_class=tokenizer, callbacks=[recorder],
        train_dataset=preferences.conversations(pairs), eval_dataset=preferences.conversations(held_out),
    )  # fmt: skip
    trainer.remove_callback(transformers.PrinterCallback)
    with mock.patch("trl.trainer.utils._use_triton", lambda device: True):  # score the answers' tokens only: on a CPU
        reached = training.fit(trainer, run, stop)  # trl scores every position, for compilers that we do not use
    if reached:
        training.save(run, model, tokenizer, source, torch.bfloat16 if config.model in ("nano", "smoke") else None)
        looks = [row for row in run.history() if "held_out_loss" in row]
        last = {name: looks[-1][name] for name in looks[-1] if name.startswith("held_out")}
        run.finish(**last, pairs_seen=needed, **models.weights(model))
    return run
