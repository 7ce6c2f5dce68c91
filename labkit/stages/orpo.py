"""Odds ratio preference optimization (Hong, Lee and Thorne 2024): answering and preferring learned in one stage.

    log P(y|x) = 1/|y| sum_t log p(y_t | x, y_<t)                                     equation 3
    odds(y|x)  = P / (1 - P)                                                          equation 4
    log_odds   = log [odds(chosen|x) / odds(rejected|x)]                              equation 5
    loss       = - mean log p(chosen token) - beta log sigmoid(log_odds)              equations 6 and 7, beta is lambda

No reference model and no stage before it: the first term is SFT's loss on the chosen answers. With beta = 0 it is all
that is left. As in the lab's SFT only answers are learned; the authors' code, and trl's, count the prompt's tokens too.
"""

import os
import threading
from collections.abc import Callable
from pathlib import Path

import torch
import transformers
from datasets import concatenate_datasets

from labkit import adapters, data, models, preferences, runs, training
from labkit.config import ORPOConfig

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")  # its names may change: requirements.lock holds the version
from trl.experimental import orpo

SIDES = ("chosen", "rejected")


class Trainer(orpo.ORPOTrainer):
    """trl's trainer, which scores the answers' tokens alone: on a CPU the other positions take long."""

    def tokenize_row(self, feature, model=None) -> dict:
        """A row of `preferences.tokens`, cut to the context, in trl's columns."""
        asked, row = feature["prompt_ids"], {"prompt_input_ids": feature["prompt_ids"]}
        row["prompt_attention_mask"] = [1] * len(asked)
        for side in SIDES:
            ids = [*asked, *feature[f"{side}_ids"]][: self.max_length]
            labels = ([data.IGNORED] * len(asked) + ids[len(asked) :])[: self.max_length]
            row |= {f"{side}_input_ids": ids, f"{side}_attention_mask": [1] * len(ids), f"{side}_labels": labels}
        return row

    def concatenated_forward(self, model, batch: dict) -> tuple[torch.Tensor, ...]:
        """(mean log-probs of chosen, of rejected, shape (pairs,); logits of both, (tokens, vocab); chosen's loss)."""
        both = self.concatenated_inputs(batch, padding_value=self.padding_value, device=self.accelerator.device)
        labels = both["concatenated_labels"][:, 1:]
        learned = labels != data.IGNORED
        inner = self.accelerator.unwrap_model(model)
        inner = inner.get_base_model() if adapters.is_peft(inner) else inner
        hook = inner.get_output_embeddings().register_forward_pre_hook(
            lambda head, args: (args[0][:, :-1][learned], *args[1:])
        )
        try:
            ids, mask = both["concatenated_input_ids"], both["concatenated_attention_mask"]
            logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits.float()
        finally:
            hook.remove()
        log_probs = logits.log_softmax(-1).gather(1, labels[learned][:, None])[:, 0]
        row = learned.nonzero()[:, 0]  # of each token
        sums = log_probs.new_zeros(len(labels)).index_add(0, row, log_probs)
        means = (sums / learned.sum(1)).clamp(max=-1e-6)  # a probability rounded to 1 has no odds
        first = row < len(labels) // 2
        self.sums = sums.detach().chunk(2)
        chosen, rejected = means.chunk(2)
        return chosen, rejected, logits[first], logits[~first], -log_probs[first].mean()

    def get_batch_loss_metrics(self, model, batch: dict, train_eval: str = "train") -> tuple[torch.Tensor, dict]:
        """As trl's, and what the alarms read: log-probabilities of whole answers."""
        loss, metrics = super().get_batch_loss_metrics(model, batch, train_eval)
        if train_eval == "train":
            metrics |= {f"log_sum/{side}": part.mean().item() for side, part in zip(SIDES, self.sums, strict=True)}
        return loss, metrics


def train(
    config: ORPOConfig,
    source: str | Path,
    parent: str,
    *,
    say: Callable = print,
    stop: threading.Event | None = None,
    at_look: Callable | None = None,
) -> runs.Run:
    """Tune the model at `source` (its name or run id: `parent`), a base model as a rule, and return the run.

    An identical run that has finished is returned as it is. Raises DataError for pairs that prefer nothing, before
    training; TrainingError where the loss diverges.
    """
    data_hash = preferences.data_hash(config.data)
    run = runs.open_run("orpo", config, parent=parent, data_hash=data_hash, fresh=config.retrain)
    if run.status == "finished":
        say(f"{run.id} has already run: loaded")
        return run
    transformers.set_seed(config.seed)
    pairs, held_out = preferences.pairs(config.data)
    model, tokenizer = training.load(run, config, source)
    data.give_template(tokenizer)  # a base may have none
    max_length = min(1024, models.context(model))
    if config.data not in ("lab", "all"):
        for note in preferences.check(concatenate_datasets([pairs, held_out]), tokenizer, max_length):
            say(note)
    needed = config.steps * config.batch_size
    pairs = pairs.shuffle(seed=config.seed).select(range(min(needed, len(pairs))))
    held_out = held_out.select(range(min(32 if config.model == "smoke" else 256, len(held_out))))

    recorder = training.Recorder(run, say, stop)
    training.watch_answers(recorder, tokenizer, held_out, models.context(model))
    if at_look is not None:
        recorder.at_look.append(lambda model: at_look(run, model, tokenizer))
    args = orpo.ORPOConfig(
        **training.arguments(config, run),
        **training.TUNING,
        beta=config.beta,
        max_length=max_length,
        train_sampling_strategy="group_by_length",  # pairs of like length together: less padding
        remove_unused_columns=False,
    )
    trainer = Trainer(
        model, training.on_one_device(args), processing_class=tokenizer, callbacks=[recorder],
        train_dataset=preferences.tokens(pairs, tokenizer), eval_dataset=preferences.tokens(held_out, tokenizer),
    )  # fmt: skip
    trainer.remove_callback(transformers.PrinterCallback)
    if training.fit(trainer, run, stop):
        learned = trainer.train_dataset
        tokens = sum(len(row[f"{side}_input_ids"]) for row in learned for side in SIDES)
        seen = {"passes": needed / len(learned), "tokens_seen": round(needed * tokens / len(learned))}
        training.finish(run, config, model, tokenizer, source, pairs_seen=needed, **seen)
    return run
