"""Multiple choice by log-likelihood: the answer that the model finds likeliest, per character, is the one it gives.

    answer = argmax_c  log p(c | question) / characters(c)

As in lm-evaluation-harness (`acc_norm`; Gao et al. 2024): nothing is generated, so that a base model can be asked too.
"""

import json

import torch

from labkit import data, models
from labkit.evaluate.perplexity import token_losses


def mmlu_dev() -> list[dict]:
    """281 exemplars of MMLU's dev sets {subject, question, choices, answer}: never to be reported as an MMLU score."""
    return [json.loads(line) for line in (data.ROOT / "mmlu_dev" / "questions.jsonl").open(encoding="utf-8")]


@torch.no_grad()
def choose(model, tokenizer, questions: list[dict], *, batch_size: int = 16) -> list[dict]:
    """Rows {chosen, correct, likelihoods}: the place of the likeliest choice, and nats per character of each.

    The blank before a choice is predicted with it but, as in the harness, is none of its characters.
    """
    model.eval()
    lead = [tokenizer.bos_token_id] if tokenizer.bos_token_id is not None else []
    most, work = min(512, models.positions(model)), []  # (question, choice, ids, where the choice begins)
    for number, one in enumerate(questions):
        asked = lead + data.encode(tokenizer, [f"Question: {one['question']}\nAnswer:"])[0]
        endings = data.encode(tokenizer, [f" {choice}" for choice in one["choices"]])
        for place, ending in enumerate(endings):
            ids = asked + ending
            kept = ids[-most:]
            work.append((number, place, kept, len(kept) - (len(ids) - len(asked))))
    found = [[0.0] * len(one["choices"]) for one in questions]
    work.sort(key=lambda one: len(one[2]))
    for start in range(0, len(work), batch_size):
        batch = work[start : start + batch_size]
        sums, _ = token_losses(model, [ids for _, _, ids, _ in batch], [begin for *_, begin in batch])
        for (number, place, _, _), total in zip(batch, sums, strict=True):
            found[number][place] = -total / len(questions[number]["choices"][place])
    chosen = [max(range(len(row)), key=row.__getitem__) for row in found]
    return [
        {"chosen": place, "correct": place == one["answer"], "likelihoods": row}
        for place, one, row in zip(chosen, questions, found, strict=True)
    ]
