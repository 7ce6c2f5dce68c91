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

from labkit import data, looks, models, preferences, runs, training
from labkit.config import ORPOConfig
from labkit.recorder import Recorder, watch_answers

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")  # its names may change: requirements.lock holds the version
from trl.experimental import orpo

SIDES = ("chosen", "rejected")


def log_odds(log_p: torch.Tensor) -> torch.Tensor:
    """log [P / (1 - P)] of answers whose mean log-probability of a token is log_p: (rows,) -> (rows,)."""
    log_p = log_p.clamp(max=-1e-6)  # a probability rounded to 1 has no odds
    return log_p - (-log_p.expm1()).log()


def odds_ratio_loss(chosen: torch.Tensor, rejected: torch.Tensor) -> torch.Tensor:
    """-log sigmoid(log_odds): mean log-probabilities of a token, each (pairs,) -> (pairs,). Equation 7."""
    return -torch.nn.functional.logsigmoid(log_odds(chosen) - log_odds(rejected))


class Trainer(looks.Looks, orpo.ORPOTrainer):
    """trl's trainer with the loss above, of the answers' tokens alone: on a CPU the other positions take long."""

    def tokenize_row(self, feature, model=None) -> dict:
        """A row of `preferences.tokens`, cut to the context, in trl's columns."""
        asked, row = feature["prompt_ids"], {"prompt_input_ids": feature["prompt_ids"]}
        row["prompt_attention_mask"] = [1] * len(asked)
        for side in SIDES:
            ids = [*asked, *feature[f"{side}_ids"]][: self.max_length]
            labels = ([data.IGNORED] * len(asked) + ids[len(asked) :])[: self.max_length]
            row |= {f"{side}_input_ids": ids, f"{side}_attention_mask": [1] * len(ids), f"{side}_labels": labels}
        return row

    def columns(self, batch: dict, model=None) -> dict:
        both = self.concatenated_inputs(batch, padding_value=self.padding_value, device=self.accelerator.device)
        inputs = {name: both[f"concatenated_{name}"] for name in ("input_ids", "attention_mask")}
        return looks.pairs(self.model if model is None else model, both["concatenated_labels"], **inputs)

    def summary(self, chosen, rejected, chosen_tokens, rejected_tokens) -> dict[str, torch.Tensor]:
        nll = -chosen.sum() / chosen_tokens.sum()
        good, bad = chosen / chosen_tokens, rejected / rejected_tokens
        return {
            "loss": nll + self.beta * odds_ratio_loss(good, bad).mean(),
            "nll_loss": nll,
            "log_odds_chosen": (log_odds(good) - log_odds(bad)).mean(),
            "rewards/margins": self.beta * (good - bad).mean(),
            "rewards/accuracies": (good > bad).float().mean(),
            "logps/chosen": good.mean(),
            "logps/rejected": bad.mean(),
            "log_sum/chosen": chosen.mean(),  # of whole answers, which the alarms read
            "log_sum/rejected": rejected.mean(),
        }

    def compute_loss(self, model, inputs: dict, return_outputs: bool = False, num_items_in_batch=None):
        numbers = self.summary(**self.columns(inputs, model))
        loss = numbers.pop("loss")
        self.store_metrics({name: self.accelerator.reduce(n.detach(), "mean").item() for name, n in numbers.items()})
        return (loss, {}) if return_outputs else loss


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
        say(data.summary(pairs, held_out))
        for note in preferences.check(concatenate_datasets([pairs, held_out]), tokenizer, max_length):
            say(note)
    needed = config.steps * config.batch_size
    pairs = pairs.shuffle(seed=config.seed).select(range(min(needed, len(pairs))))
    held_out = held_out.select(range(min(32 if config.model == "smoke" else 256, len(held_out))))

    recorder = Recorder(run, say, stop)
    watch_answers(recorder, tokenizer, held_out, models.context(model))
    if at_look is not None:
        recorder.at_look.append(lambda model: at_look(run, model, tokenizer))
    args = orpo.ORPOConfig(
        **training.arguments(config, run),
        **training.TUNING,
        beta=config.beta,
        max_length=max_length,
        remove_unused_columns=False,
    )
    trainer = Trainer(
        model, training.on_one_device(args), processing_class=tokenizer, callbacks=[recorder],
        train_dataset=preferences.tokens(pairs, tokenizer), eval_dataset=preferences.tokens(held_out, tokenizer),
    )  # fmt: skip
    trainer.remove_callback(transformers.PrinterCallback)
    learned = trainer.train_dataset
    lengths = [len(a) + len(b) for a, b in zip(learned["chosen_input_ids"], learned["rejected_input_ids"], strict=True)]
    places = training.put_in_order(trainer, config, lengths)

    def keep() -> None:
        training.save(run, config, model, tokenizer, source)

    if training.fit(trainer, run, recorder, keep):
        seen = {"pairs_seen": len(places), "tokens_seen": sum(lengths[place] for place in places)}
        training.finish(run, model, keep, passes=len(places) / len(lengths), **seen)
    return run
