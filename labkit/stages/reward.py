"""Reward model: one number for an answer, learned from which of two answers is preferred.

P(chosen over rejected) = sigmoid(r(chosen) - r(rejected))        Bradley and Terry 1952
loss = -log sigmoid(r(chosen) - r(rejected))                      Christiano et al. 2017; Ouyang et al. 2022, eq. 1
       + center_rewards_coefficient (r(chosen) + r(rejected))^2   Eisenstein et al. 2023: fixes the zero point
       - sft_coef mean log pi(chosen's tokens | prompt)           Yang et al. 2024: keeps what the parent knew
"""

import random
import threading
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import torch
import transformers
import trl
from datasets import Dataset, concatenate_datasets
from trl.trainer.reward_trainer import DataCollatorForPreference

from labkit import data, looks, models, preferences, rewards, runs, training
from labkit.config import RewardConfig
from labkit.recorder import Recorder


class Collator(DataCollatorForPreference):
    """trl's batches of pairs, and where each chosen answer begins: answer_starts, (pairs,)."""

    def torch_call(self, examples: list[dict]) -> dict:
        starts = torch.tensor([row["answer_start"] for row in examples])
        return super().torch_call(examples) | {"answer_starts": starts}


class Trainer(looks.Looks, trl.RewardTrainer):
    """trl's, with the chosen answers' next-token loss beside the preference's while it trains.

    Taught by preferences alone, a small model learns the form of answers and tells few facts apart. So it goes on
    predicting words too, by the parent's output head (Yang et al. 2024, arXiv 2406.10216, the SFT regularizer;
    Cobbe et al. 2021 trained verifiers so).
    """

    sft_coef = 0.0
    preference_loss = 0.0  # of the last step: what a look at held-out data measures too

    def compute_loss(self, model, inputs: dict, return_outputs: bool = False, num_items_in_batch=None):
        starts, tokens = inputs.pop("answer_starts"), inputs["input_ids"]
        if not (self.sft_coef and self.model.training):
            found = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
            self.preference_loss = (found[0] if return_outputs else found).item()
            return found
        inputs["output_hidden_states"] = True
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        self.preference_loss = loss.item()
        n = len(starts)  # the batch holds the chosen rows, then the rejected ones
        places = torch.arange(1, tokens.shape[1], device=tokens.device)
        learned = inputs["attention_mask"][:n, 1:].bool() & (places >= starts[:, None])
        with models.autocast():
            logits = self.model.output_head[0](outputs.hidden_states[-1][:n, :-1][learned])  # (learned tokens, words)
        logits = as_its_model(logits, self.model.config.get_text_config())
        loss = loss + self.sft_coef * torch.nn.functional.cross_entropy(logits, tokens[:n, 1:][learned])
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict, *args, **kwargs) -> None:
        super().log(logs | ({"preference_loss": self.preference_loss} if "loss" in logs else {}), *args, **kwargs)

    def columns(self, batch: dict) -> dict:
        scores = self.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False)
        chosen, rejected = scores.logits[:, 0].chunk(2)
        return {"chosen": chosen, "rejected": rejected}

    def summary(self, chosen: torch.Tensor, rejected: torch.Tensor) -> dict:
        return {
            "loss": loss_of(chosen, rejected, self.args.center_rewards_coefficient or 0.0),
            "accuracy": (chosen > rejected).double().mean(),
            "margin": (chosen - rejected).mean(),
            "mean_reward": (chosen + rejected).mean() / 2,
        }


def loss_of(chosen: torch.Tensor, rejected: torch.Tensor, center_rewards_coefficient: float = 0.0) -> torch.Tensor:
    """-log sigmoid(r(chosen) - r(rejected)), and the term that fixes the zero point: (pairs,), (pairs,) -> ()."""
    loss = -torch.nn.functional.logsigmoid(chosen - rejected).mean()
    return loss + center_rewards_coefficient * (chosen + rejected).square().mean()


def as_its_model(logits: torch.Tensor, config) -> torch.Tensor:
    """What the language model would make of its output head's numbers: Cohere's, Granite's scale, Gemma 2's cap."""
    logits = (
        logits.float() * (getattr(config, "logit_scale", None) or 1) / (getattr(config, "logits_scaling", None) or 1)
    )
    cap = getattr(config, "final_logit_softcapping", None)
    return cap * torch.tanh(logits / cap) if cap else logits


def train(
    config: RewardConfig,
    source: str | Path,
    parent: str,
    *,
    say: Callable = print,
    stop: threading.Event | None = None,
    at_look: Callable | None = None,
) -> runs.Run:
    """Make a reward model of the model at `source` (its name or run id: `parent`) and return the run.

    An identical run that has finished is returned as it is. Raises DataError for pairs that prefer nothing, before
    training; TrainingError where the loss diverges.
    """
    data_hash = preferences.data_hash(config.data)
    run = runs.open_run("reward", config, parent=parent, data_hash=data_hash, fresh=config.retrain)
    if run.status == "finished":
        say(f"{run.id} has already run: loaded")
        return run
    transformers.set_seed(config.seed)
    pairs, held_out = preferences.pairs(config.data)
    model, tokenizer = training.load(run, config, source, rewards.from_language_model)
    max_length = rewards.context(model)
    if config.data != "lab":
        say(data.summary(pairs, held_out))
        for note in preferences.check(concatenate_datasets([pairs, held_out]), tokenizer, max_length):
            say(note)
    pairs = pairs.shuffle(seed=config.seed)
    pairs = pairs.select(range(min(config.pairs or len(pairs), 200 if config.model == "smoke" else len(pairs))))
    held_out = held_out.select(range(min({"smoke": 32, "smol": 64}.get(config.model, 128), len(held_out))))

    recorder = Recorder(run, say, stop)
    if at_look is not None:
        recorder.at_look.append(lambda model: at_look(run, model, tokenizer))
    args = trl.RewardConfig(
        **training.arguments(config, run),
        **training.TUNING | {"optim": "adamw_torch_fused"},  # one pass over the weights: 10 of a step's 67 ms
        max_length=None,  # trl would drop longer pairs; here they are cut, as preferences.check says
        center_rewards_coefficient=config.center_rewards_coefficient,
        disable_dropout=False,  # lora_dropout is a knob
        remove_unused_columns=False,
        pad_to_multiple_of=4 if models.device() == "cpu" else None,  # a CPU compiles kernels for every new length
    )
    learned = concatenate_datasets([pairs, off_topic(pairs, config.seed)]) if config.off_topic else pairs
    learned = tokens(tokenizer, learned, max_length)
    trainer = Trainer(
        model, training.on_one_device(args), processing_class=tokenizer, callbacks=[recorder],
        data_collator=Collator(tokenizer.pad_token_id, args.pad_to_multiple_of),
        train_dataset=learned, eval_dataset=tokens(tokenizer, held_out, max_length),
    )  # fmt: skip
    trainer.sft_coef = config.sft_coef
    training.write_attention_out(model, max(learned["length"]))
    trainer.remove_callback(transformers.PrinterCallback)
    places = training.put_in_order(trainer, config, learned["length"])

    def keep() -> None:
        training.save(run, config, model, tokenizer, source)

    if training.fit(trainer, run, recorder, keep):
        counts = {"pairs": len(pairs), "held_out_pairs": len(held_out), "pairs_seen": len(places)}
        training.finish(run, model, keep, **counts)
    return run


def off_topic(pairs: Dataset, seed: int) -> Dataset:
    """Pairs of the same prompts and chosen answers, whose rejected answer was chosen for another prompt.

    As in robust reward models (Liu et al. 2024, arXiv 2409.13156): a pair's two answers may differ in form alone, and
    then nothing teaches the model to read the prompt. Of 32 other answers the one with the most words in common is
    taken, for it is the hardest to tell apart.
    """
    draw, chosen = random.Random(seed), list(zip(pairs["prompt"], pairs["chosen"], strict=True))
    good = defaultdict(set)  # a prompt may have many pairs
    for prompt, text in chosen:
        good[prompt].add(text)

    def other(pair: dict) -> dict:
        words = set(pair["chosen"].split())
        found = [text for _, text in draw.choices(chosen, k=32) if text not in good[pair["prompt"]]]
        return {"rejected": max(found, key=lambda text: len(words & set(text.split())), default=pair["rejected"])}

    return pairs.map(other)


def tokens(tokenizer, pairs: Dataset, max_length: int) -> Dataset:
    """Pairs as tokens, encoded as for scoring: trl's columns chosen_ids and rejected_ids, and answer_start, the
    place of the chosen answer's first token.
    """
    sides = [rewards.encode(tokenizer, pairs["messages"], pairs[side], max_length) for side in ("chosen", "rejected")]
    lengths = [max(map(len, rows)) for rows in zip(*sides, strict=True)]
    asked = data.templated(tokenizer, list(pairs["messages"]), add_generation_prompt=True)
    starts = [data.common_prefix(*rows) for rows in zip(asked, sides[0], strict=True)]
    return Dataset.from_dict(
        {"chosen_ids": sides[0], "rejected_ids": sides[1], "length": lengths, "answer_start": starts}
    )
