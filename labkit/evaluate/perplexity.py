"""Perplexity: how surprised a model is by text it did not learn from.

    perplexity = exp( -1/T sum_t log p(x_t | x_<t) )

It compares models of one tokenizer only; bits per byte compares any, for it does not count tokens.
"""

import json
import math

import numpy as np
import torch

from labkit import data, models
from labkit.errors import DataError


@torch.no_grad()
def perplexity(model, tokenizer, texts: list[str], *, max_length: int = 512, batch_size: int = 8) -> dict[str, float]:
    """{perplexity, low, high, nats_per_token, bits_per_byte, tokens} over the texts, each read from its beginning.

    low, high: 95% interval from 1,000 bootstrap draws of the texts. A text is cut after max_length tokens.
    Raises DataError where there is nothing to predict.
    """
    model.eval()
    lead = [tokenizer.bos_token_id] if tokenizer.bos_token_id is not None else []
    encoded = [(lead + ids)[:max_length] for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]
    encoded = sorted((ids for ids in encoded if len(ids) > 1), key=len)
    if not encoded:
        raise DataError("texts must hold two tokens at least", got=texts, remedy="Give longer texts.")
    sums, counts, size = [], [], 0
    for start in range(0, len(encoded), batch_size):
        batch = encoded[start : start + batch_size]
        for total, count in zip(*token_losses(model, batch, [1] * len(batch)), strict=True):
            sums.append(total)
            counts.append(count)
        size += sum(len(tokenizer.decode(ids[1:]).encode()) for ids in batch)  # the first token is not predicted
    sums, counts = np.array(sums), np.array(counts)
    draws = np.random.default_rng(0).integers(len(sums), size=(1000, len(sums)))
    low, high = np.quantile(sums[draws].sum(1) / counts[draws].sum(1), [0.025, 0.975])
    nats = sums.sum() / counts.sum()
    return {
        "perplexity": math.exp(nats), "low": math.exp(low), "high": math.exp(high), "nats_per_token": float(nats),
        "bits_per_byte": float(sums.sum() / math.log(2) / size), "tokens": int(counts.sum()),
    }  # fmt: skip


def token_losses(model, rows: list[list[int]], starts: list[int]) -> tuple[list[float], list[int]]:
    """(-sum of log p, in nats, and number) of each row's tokens from its place in `starts` (>= 1) on."""
    longest = max(map(len, rows))
    ids = torch.tensor([row + [row[0]] * (longest - len(row)) for row in rows], device=model.device)
    labels = ids.clone()
    for place, (row, start) in enumerate(zip(rows, starts, strict=True)):
        labels[place, :start] = labels[place, len(row) :] = data.IGNORED
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows], device=model.device)
    with models.autocast():
        logits = model(ids, attention_mask=mask, use_cache=False).logits[:, :-1]
    losses = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1).float(), labels[:, 1:].flatten(), ignore_index=data.IGNORED, reduction="none"
    ).view(len(rows), -1)
    return losses.sum(1).tolist(), (labels[:, 1:] != data.IGNORED).sum(1).tolist()


def held_out_texts() -> list[str]:
    """Article leads and example sentences that no training document holds: plain English, not the lab's own facts."""
    rows = map(json.loads, data.LAB["corpus_held_out"].open(encoding="utf-8"))
    return [row["text"] for row in rows if row["kind"] in ("article", "sentence")]
