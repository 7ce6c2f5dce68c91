"""Supervised fine-tuning: a base model learns to answer from pairs of prompt and answer.

loss = -1/|A| sum_{t in A} log p(x_t | x_<t),   A = the tokens of the answer and the token that ends it
"""

import threading
from collections.abc import Callable
from pathlib import Path

import torch
import transformers
import trl

from labkit import adapters, data, models, runs, training
from labkit.config import SFTConfig
from labkit.looks import Looks
from labkit.recorder import Recorder


class Trainer(Looks, trl.SFTTrainer):
    """trl's trainer with the model's own loss: the same number, but trl's also measures the entropy at every token."""

    if models.device() == "cpu":  # ... which on a CPU, without fused kernels, takes as long as all the rest of a step
        compute_loss = transformers.Trainer.compute_loss


def score_learned_tokens_only(model: torch.nn.Module) -> None:
    """Let the output head and the model's own loss skip the tokens that are not learned: the same loss, sooner.

    Where no labels are given, as in generation, every token is scored.
    """
    model = model.get_base_model() if adapters.is_peft(model) else model
    learned: list[torch.Tensor | None] = [None]  # (rows, tokens - 1): whether the token after this one is learned

    def remember(module, args, kwargs):
        labels = kwargs.get("labels")
        learned[0] = None if labels is None else labels[:, 1:] != data.IGNORED

    def select(head, args):
        return args if learned[0] is None else (args[0][:, :-1][learned[0]], *args[1:])

    def loss(logits, labels, vocab_size, num_items_in_batch=None, **_):
        targets = labels[:, 1:][learned[0]]
        total = torch.nn.functional.cross_entropy(logits.float(), targets, reduction="sum")
        return total / (len(targets) if num_items_in_batch is None else num_items_in_batch)

    model.register_forward_pre_hook(remember, with_kwargs=True)
    model.get_output_embeddings().register_forward_pre_hook(select)
    model.loss_function = loss


def train(
    config: SFTConfig,
    source: str | Path,
    parent: str,
    *,
    say: Callable = print,
    stop: threading.Event | None = None,
    at_look: Callable | None = None,
) -> runs.Run:
    """Fine-tune the model at `source` (its name or run id: `parent`) and return the run.

    An identical run that has finished is returned as it is. Raises DataError, before training, for a row that is masked
    from end to end or where the stop token would never be learned; TrainingError where the loss diverges.
    """
    data_hash = data.file_hash(config.data, "instructions")
    run = runs.open_run("sft", config, parent=parent, data_hash=data_hash, fresh=config.retrain)
    if run.status == "finished":
        say(f"{run.id} has already run: loaded")
        return run
    transformers.set_seed(config.seed)
    rows, held_out = data.instructions(config.data)
    if "row" in rows.column_names:  # a file of one's own
        say(data.summary(rows, held_out))
    model, tokenizer = training.load(run, config, source)
    if config.model == "smoke":
        rows, held_out = (few.select(range(min(most, len(few)))) for few, most in ((rows, 200), (held_out, 40)))
    limit = {"loss_on": config.loss_on, "max_length": min(1024, models.context(model))}
    if data.give_template(tokenizer):
        say("the tokenizer has no chat template: it gets a plain one (Question: ... Answer: ...), saved with the model")
    shuffled = rows.shuffle(seed=config.seed) if config.turns > 1 else rows  # neighbours share a term or a relation
    train_rows = data.chat_rows(tokenizer, shuffled, turns=config.turns, say=say, **limit)
    train_rows = data.with_replay(tokenizer, train_rows, config.replay, config.seed)
    held_out_rows = data.chat_rows(tokenizer, held_out, **limit)

    recorder = Recorder(run, say, stop)
    if at_look is not None:
        recorder.at_look.append(lambda model: at_look(run, model, tokenizer))
    args = trl.SFTConfig(
        **training.arguments(config, run),
        **training.TUNING,
        max_length=limit["max_length"],
        pad_to_multiple_of=16 if models.device() == "cpu" else None,  # a CPU compiles kernels for every new length
    )
    trainer = Trainer(
        model, training.on_one_device(args), train_dataset=train_rows, eval_dataset=held_out_rows,
        processing_class=tokenizer, callbacks=[recorder],
    )  # fmt: skip
    trainer.remove_callback(transformers.PrinterCallback)
    if models.device() == "cpu":
        score_learned_tokens_only(model)
    lengths = list(map(len, train_rows["input_ids"]))
    training.write_attention_out(model, max(lengths))
    places = training.put_in_order(trainer, config, lengths)

    def keep() -> None:
        training.save(run, config, model, tokenizer, source)

    if training.fit(trainer, run, recorder, keep):
        seen = {"rows_seen": len(places), "tokens_seen": sum(lengths[place] for place in places)}
        training.finish(run, model, keep, passes=len(places) / len(lengths), **seen)
    return run
