"""Direct preference optimization (Rafailov et al. 2023): learn from pairs, without a reward model.

    c = log pi(chosen) - log ref(chosen),  r = log pi(rejected) - log ref(rejected),  m = beta (c - r)   in nats
    e = label_smoothing,  s = sigmoid,  c' and r' are c and r per token of their answers

    sigmoid       -log s(m)                                                         Rafailov et al. 2023, eq 7
    sigmoid_sft   sigmoid - mean log pi(chosen token)                               Pang et al. 2024
    sigmoid_norm  -log s(beta (c' - r'))                                            Lambert et al. 2024 (Tulu 3)
    ipo           (c' - r' - 1 / (2 beta))^2                                        Azar et al. 2023, eq 17
    hinge         max(0, 1 - m)                                                     Zhao et al. 2023; Liu et al. 2023
    robust        [-(1 - e) log s(m) + e log s(-m)] / (1 - 2e)                      Chowdhury et al. 2024
    exo_pair      KL([s(m), s(-m)] || [1 - e, e]); e = 0.001 where it is left at 0  Ji et al. 2024, eq 16
    nca_pair      -log s(beta c) - 0.5 log s(-beta c) - 0.5 log s(-beta r)          Chen et al. 2024
    bco_pair      -log s(beta c) - log s(-beta r)                                   after Jung et al. 2024, no shift
    sppo_hard     (c - 0.5 / beta)^2 + (r + 0.5 / beta)^2                           Wu et al. 2024
    aot           -(1 - e) log s(d) - e log s(-d), d = beta x (log pi(chosen) - log pi(rejected), sorted over the batch,
                  less the same of ref, sorted)                                     Melnyk et al. 2024
    aot_unpaired  the same with d = beta (c sorted - r sorted)                      Melnyk et al. 2024
    apo_zero      1 - s(beta c) + s(beta r)                                         D'Oosterlinck et al. 2024, eq 7
    apo_down      s(beta c) + 1 - s(m)                                              D'Oosterlinck et al. 2024, eq 8
    discopop      (1 - g) (-log s(m)) + g exp(-m), g = s(m / 0.05)                  Lu et al. 2024, eq 5
    mpo           0.8 sigmoid + 0.2 bco_pair - mean log pi(chosen token)            Wang et al. 2024
    sft           -mean log pi(chosen token): no preference at all, to compare with

The reference model's log-probabilities are computed once before training, so that only one model stays in memory. At
a look at held-out data KL needs it again: the model without its adapter, or, where all weights are tuned, loaded anew.
"""

import contextlib
import math
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import torch
import transformers
import trl
from datasets import concatenate_datasets
from torch.nn.functional import logsigmoid

from labkit import adapters, data, looks, models, preferences, runs, training
from labkit.config import DPOConfig
from labkit.errors import Stopped
from labkit.recorder import Recorder, watch_answers

MIXED = {  # the lab's name -> trl's losses and their weights
    "sigmoid_sft": (["sigmoid", "sft"], [1.0, 1.0]),
    "mpo": (["sigmoid", "bco_pair", "sft"], [0.8, 0.2, 1.0]),
}
EXO_SMOOTHING = 0.001  # the paper's; 0 is undefined


def loss_arguments(loss_type: str, beta: float, label_smoothing: float = 0.0) -> dict:
    """The arguments of trl's DPOConfig for one of the lab's losses."""
    names, weights = MIXED.get(loss_type, ([loss_type], [1.0]))
    label_smoothing = label_smoothing or (EXO_SMOOTHING if loss_type == "exo_pair" else 0.0)
    return {"loss_type": names, "loss_weights": weights, "beta": beta, "label_smoothing": label_smoothing}


class LogProbs(NamedTuple):
    """Log-probabilities of the answers of pairs, in nats, each summed over its answer: of shape (pairs,) all.

    With the reference left out, chosen and rejected are log-ratios log pi - log ref, of answers of one token.
    """

    chosen: torch.Tensor
    rejected: torch.Tensor
    ref_chosen: torch.Tensor | float = 0.0
    ref_rejected: torch.Tensor | float = 0.0
    chosen_tokens: torch.Tensor | float = 1.0
    rejected_tokens: torch.Tensor | float = 1.0

    @property
    def c(self) -> torch.Tensor:
        return self.chosen - self.ref_chosen

    @property
    def r(self) -> torch.Tensor:
        return self.rejected - self.ref_rejected

    def margin(self, beta: float) -> torch.Tensor:
        return beta * (self.c - self.r)

    def margin_of_a_token(self) -> torch.Tensor:
        return self.c / self.chosen_tokens - self.r / self.rejected_tokens


# Each loss, (pairs,), of a LogProbs p, beta b and label smoothing e; the papers are named at the head of this module.


def sigmoid(p: LogProbs, b: float, e: float) -> torch.Tensor:
    return -logsigmoid(p.margin(b))


def sigmoid_norm(p: LogProbs, b: float, e: float) -> torch.Tensor:
    return -logsigmoid(b * p.margin_of_a_token())


def ipo(p: LogProbs, b: float, e: float) -> torch.Tensor:
    return (p.margin_of_a_token() - 1 / (2 * b)).square()


def hinge(p: LogProbs, b: float, e: float) -> torch.Tensor:
    return (1 - p.margin(b)).relu()


def robust(p: LogProbs, b: float, e: float) -> torch.Tensor:
    return (-(1 - e) * logsigmoid(p.margin(b)) + e * logsigmoid(-p.margin(b))) / (1 - 2 * e)


def exo_pair(p: LogProbs, b: float, e: float) -> torch.Tensor:
    m, e = p.margin(b), e or EXO_SMOOTHING
    return m.sigmoid() * (logsigmoid(m) - math.log1p(-e)) + (-m).sigmoid() * (logsigmoid(-m) - math.log(e))


def nca_pair(p: LogProbs, b: float, e: float) -> torch.Tensor:
    return -logsigmoid(b * p.c) - 0.5 * logsigmoid(-b * p.c) - 0.5 * logsigmoid(-b * p.r)


def bco_pair(p: LogProbs, b: float, e: float) -> torch.Tensor:
    return -logsigmoid(b * p.c) - logsigmoid(-b * p.r)


def sppo_hard(p: LogProbs, b: float, e: float) -> torch.Tensor:
    return (p.c - 0.5 / b).square() + (p.r + 0.5 / b).square()


def smoothed(d: torch.Tensor, e: float) -> torch.Tensor:
    return -(1 - e) * logsigmoid(d) - e * logsigmoid(-d)


def aot(p: LogProbs, b: float, e: float) -> torch.Tensor:
    sides, ref_sides = p.chosen - p.rejected, p.c * 0 + p.ref_chosen - p.ref_rejected
    return smoothed(b * (sides.sort().values - ref_sides.sort().values), e)


def aot_unpaired(p: LogProbs, b: float, e: float) -> torch.Tensor:
    return smoothed(b * (p.c.sort().values - p.r.sort().values), e)


def apo_zero(p: LogProbs, b: float, e: float) -> torch.Tensor:
    return 1 - (b * p.c).sigmoid() + (b * p.r).sigmoid()


def apo_down(p: LogProbs, b: float, e: float) -> torch.Tensor:
    return (b * p.c).sigmoid() + 1 - p.margin(b).sigmoid()


def discopop(p: LogProbs, b: float, e: float) -> torch.Tensor:
    m = p.margin(b)
    g = (m / 0.05).sigmoid()
    return (1 - g) * -logsigmoid(m) + g * (-m).exp()


def sft(p: LogProbs, b: float, e: float) -> torch.Tensor:
    return (-p.chosen.sum() / (p.chosen * 0 + p.chosen_tokens).sum()).expand(len(p.chosen))  # the mean of all tokens


def sigmoid_sft(p: LogProbs, b: float, e: float) -> torch.Tensor:
    return sigmoid(p, b, e) + sft(p, b, e)


def mpo(p: LogProbs, b: float, e: float) -> torch.Tensor:
    return 0.8 * sigmoid(p, b, e) + 0.2 * bco_pair(p, b, e) + sft(p, b, e)


LOSSES = {
    loss.__name__: loss
    for loss in (
        sigmoid, sigmoid_sft, sigmoid_norm, ipo, hinge, robust, exo_pair, nca_pair, bco_pair, sppo_hard, aot,
        aot_unpaired, apo_zero, apo_down, discopop, mpo, sft,
    )
}  # fmt: skip


def loss_of(p: LogProbs, loss_type: str, beta: float, label_smoothing: float = 0.0) -> torch.Tensor:
    """The mean loss of pairs, shape (): what trl's trainer, which trains with its own code, computes too."""
    return LOSSES[loss_type](p, beta, label_smoothing).mean()


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
    max_length = min(1024, models.context(model))
    if config.data != "lab":
        say(data.summary(pairs, held_out))
        for note in preferences.check(concatenate_datasets([pairs, held_out]), tokenizer, max_length):
            say(note)
    needed = config.steps * config.batch_size
    pairs = pairs.shuffle(seed=config.seed).select(range(min(needed, len(pairs))))  # no reference for pairs never seen
    held_out = held_out.select(range(min(32 if config.model == "smoke" else 256, len(held_out))))

    def reference(tuned):
        if adapters.is_peft(tuned):
            return without_adapter(tuned)
        return contextlib.nullcontext(models.load(source, seed=config.seed)[0].to(tuned.device))

    recorder = Recorder(run, say, stop, beta=config.beta)
    watch_answers(recorder, tokenizer, held_out, models.context(model), reference)
    if at_look is not None:
        recorder.at_look.append(lambda model: at_look(run, model, tokenizer))
    args = trl.DPOConfig(
        **training.arguments(config, run),
        **training.TUNING,
        **loss_arguments(config.loss_type, config.beta, config.label_smoothing),
        max_length=max_length,
        remove_unused_columns=False,
        precompute_ref_log_probs=True,
        precompute_ref_batch_size=config.batch_size,  # more rows at once are more padding
    )

    class Trainer(looks.Looks, trl.DPOTrainer):
        """trl's trainer on pairs that are tokens already; it can be stopped while it asks the reference."""

        reference_seconds = 0.0  # for the pairs that are trained on, once for all

        def _prepare_dataset(self, dataset, *_):
            return dataset

        def _precompute_ref_logps(self, dataset, name, batch_size):
            began = time.monotonic()
            found = super()._precompute_ref_logps(dataset, name, batch_size)
            self.reference_seconds += (name == "train") * (time.monotonic() - began)
            return found

        def compute_ref_log_probs(self, *batch):
            if stop is not None and stop.is_set():
                raise Stopped
            return super().compute_ref_log_probs(*batch)

        def columns(self, batch):
            labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, data.IGNORED)
            inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
            references = {f"ref_{side}": batch[f"ref_{side}_logps"] for side in ("chosen", "rejected")}
            return looks.pairs(self.model, labels, **inputs) | references

        def summary(self, **columns):
            p = LogProbs(**columns)
            return {
                "loss": loss_of(p, config.loss_type, config.beta, config.label_smoothing),
                "rewards/margins": p.margin(config.beta).mean(),
                "rewards/accuracies": (p.c - p.r > 1e-4).double().mean(),  # below it is rounding, before the first step
                "logps/chosen": p.chosen.mean(),
                "logps/rejected": p.rejected.mean(),
            }

    rows = {"train": preferences.tokens(pairs, tokenizer), "held_out": preferences.tokens(held_out, tokenizer)}
    if runs.processes() > 1:
        rows = {name: training.shared(part, run.path / "resume" / name) for name, part in rows.items()}
    # on a CPU trl scores every position, for compilers that we do not use; so it scores the answers' tokens only
    with mock.patch("trl.trainer.utils._use_triton", lambda device: True):
        trainer = Trainer(
            model, None, training.on_one_device(args), processing_class=tokenizer, callbacks=[recorder],
            train_dataset=rows["train"], eval_dataset=rows["held_out"],
        )  # fmt: skip
        trainer.remove_callback(transformers.PrinterCallback)
        places = training.put_in_order(trainer, config, rows["train"]["length"])

        def keep() -> None:
            training.save(run, config, model, tokenizer, source)

        if training.fit(trainer, run, recorder, keep):
            seen = {"pairs_seen": len(places), "reference_seconds": trainer.reference_seconds}
            training.finish(run, model, keep, **seen)
    return run


@contextlib.contextmanager
def without_adapter(model):
    """The model as it is without its adapter."""
    with model.disable_adapter():
        yield model
