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
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import torch
import transformers
import trl
from datasets import concatenate_datasets

from labkit import adapters, models, preferences, runs, training
from labkit.config import DPOConfig
from labkit.errors import Stopped

MIXED = {  # the lab's name -> trl's losses and their weights
    "sigmoid_sft": (["sigmoid", "sft"], [1.0, 1.0]),
    "mpo": (["sigmoid", "bco_pair", "sft"], [0.8, 0.2, 1.0]),
}


def loss_arguments(loss_type: str, beta: float, label_smoothing: float = 0.0) -> dict:
    """The arguments of trl's DPOConfig for one of the lab's losses."""
    names, weights = MIXED.get(loss_type, ([loss_type], [1.0]))
    label_smoothing = label_smoothing or (0.001 if loss_type == "exo_pair" else 0.0)  # the paper's; 0 is undefined
    return {"loss_type": names, "loss_weights": weights, "beta": beta, "label_smoothing": label_smoothing}


def loss_of(
    chosen: torch.Tensor, rejected: torch.Tensor, loss_type: str, beta: float, label_smoothing: float = 0.0
) -> torch.Tensor:
    """The mean loss that trl's trainer gives to log-ratios log pi - log ref of answers, each of shape (pairs,).

    Its own code runs, on answers of a single token whose reference has log-probability 0.
    """
    said = loss_arguments(loss_type, beta, label_smoothing)
    ratios, number = torch.cat([chosen, rejected])[:, None], len(chosen)
    nothing = torch.zeros_like(ratios)
    model = lambda **inputs: SimpleNamespace(  # noqa: E731
        log_probs=ratios, entropy=nothing, mean_logits=nothing, is_top1=nothing.bool()
    )
    ids = torch.zeros(2 * number, 2, dtype=torch.long)
    inputs = {"input_ids": ids, "attention_mask": ids + 1, "completion_mask": torch.tensor([0, 1]).expand_as(ids)}
    inputs |= {"ref_chosen_logps": torch.zeros(number), "ref_rejected_logps": torch.zeros(number)}
    stand_in = mock.MagicMock(
        model=SimpleNamespace(training=True), aux_loss_enabled=False, ld_alpha=None, precompute_ref_logps=True,
        f_divergence_type="reverse_kl", use_weighting=False, loss_types=said["loss_type"], **said,
        args=SimpleNamespace(discopop_tau=trl.DPOConfig.discopop_tau), _total_train_tokens=0, _tp_size=1,
    )  # fmt: skip
    stand_in.accelerator.device = ratios.device
    stand_in.accelerator.gather.side_effect = stand_in.accelerator.gather_for_metrics.side_effect = lambda found: found
    return trl.DPOTrainer._compute_loss(stand_in, model, inputs, return_outputs=False)


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
        for note in preferences.check(concatenate_datasets([pairs, held_out]), tokenizer, max_length):
            say(note)
    needed = config.steps * config.batch_size
    pairs = pairs.shuffle(seed=config.seed).select(range(min(needed, len(pairs))))  # no reference for pairs never seen
    held_out = held_out.select(range(min(32 if config.model == "smoke" else 256, len(held_out))))

    def reference(tuned):
        if adapters.is_peft(tuned):
            return without_adapter(tuned)
        return contextlib.nullcontext(models.load(source, seed=config.seed)[0].to(tuned.device))

    recorder = training.Recorder(run, say, stop, beta=config.beta)
    training.watch_answers(recorder, tokenizer, held_out, models.context(model), reference)
    if at_look is not None:
        recorder.at_look.append(lambda model: at_look(run, model, tokenizer))
    args = trl.DPOConfig(
        **training.arguments(config, run),
        **training.TUNING,
        **loss_arguments(config.loss_type, config.beta, config.label_smoothing),
        max_length=max_length,
        train_sampling_strategy="group_by_length",  # rows of like length together: less padding
        length_column_name="length",
        remove_unused_columns=False,
        precompute_ref_log_probs=True,
        precompute_ref_batch_size=config.batch_size,  # more rows at once are more padding
    )

    class Trainer(trl.DPOTrainer):
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
        reached = training.fit(trainer, run, stop)
    if reached:
        seen = {"pairs_seen": needed, "reference_seconds": trainer.reference_seconds}
        training.finish(run, config, model, tokenizer, source, **seen)
    return run


@contextlib.contextmanager
def without_adapter(model):
    """The model as it is without its adapter."""
    with model.disable_adapter():
        yield model
