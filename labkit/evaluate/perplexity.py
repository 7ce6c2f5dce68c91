"""Perplexity: how surprised a model is by text it did not learn from.

    perplexity = exp( -1/T sum_t log p(x_t | x_<t) )

It compares models of one tokenizer only; bits per byte compares any, for it does not count tokens. A text longer than
the context is read through a window that moves on by a stride: small strides are exact and slow.
"""

import json
import math

import numpy as np
import torch

from labkit import data, models
from labkit.errors import DataError
from labkit.evaluate import intervals


def perplexity(
    model, tokenizer, texts: list[str], *, max_length: int = 512, stride: int | None = None, batch_size: int = 8
) -> dict[str, float]:
    """{perplexity, low, high, nats_per_token, bits_per_byte, tokens} over the texts, each read from its beginning.

    low, high: 95% interval from 1,000 bootstrap draws of the texts. Without a stride a text is cut after max_length
    tokens; with one it is read to its end, see `windows`. Raises DataError where there is nothing to predict.
    """
    sums, counts, sizes = text_losses(
        model, tokenizer, texts, max_length=max_length, stride=stride, batch_size=batch_size
    )
    if not counts.sum():
        raise DataError("texts must hold two tokens at least", got=texts, remedy="Give longer texts.")
    sums, counts, sizes = sums[counts > 0], counts[counts > 0], sizes[counts > 0]
    nats, low, high = intervals.bootstrap(lambda sums, counts: sums.sum() / counts.sum(), sums, counts)
    return {
        "perplexity": math.exp(nats), "low": math.exp(low), "high": math.exp(high), "nats_per_token": nats,
        "bits_per_byte": float(sums.sum() / math.log(2) / sizes.sum()), "tokens": int(counts.sum()),
    }  # fmt: skip


@torch.no_grad()
def text_losses(
    model,
    tokenizer,
    texts: list[str | list[str]],
    *,
    max_length: int = 512,
    stride: int | None = None,
    batch_size: int = 8,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(nats, tokens, bytes), each of shape (texts,): -log p of each text, and how much of it was predicted.

    A text that is a list of documents is those in turn, parted by the token that begins one, which is predicted too but
    is no byte of the text. The token that begins a text is not predicted; where the tokenizer has none, that is the
    text's own first token.
    """
    model.eval()
    max_length = min(max_length, models.positions(model))
    lead = [tokenizer.bos_token_id] if tokenizer.bos_token_id is not None else []
    parts = [[text] if isinstance(text, str) else text for text in texts]
    encoded = [[token for ids in data.encode(tokenizer, part) for token in (*lead, *ids)] for part in parts]
    if stride is None:
        encoded = [ids[:max_length] for ids in encoded]
    sums, counts = np.zeros(len(texts)), np.zeros(len(texts), dtype=int)
    sizes = np.array([len(tokenizer.decode(ids[1:], skip_special_tokens=True).encode()) for ids in encoded])
    work = [
        (place, *window) for place, ids in enumerate(encoded) for window in windows(ids, max_length, stride) if ids[1:]
    ]
    work.sort(key=lambda one: len(one[1]))
    for first in range(0, len(work), batch_size):
        places, rows, starts = zip(*work[first : first + batch_size], strict=True)
        for place, total, count in zip(places, *token_losses(model, rows, starts), strict=True):
            sums[place] += total
            counts[place] += count
    return sums, counts, sizes


def windows(ids: list[int], max_length: int, stride: int | None) -> list[tuple[list[int], int]]:
    """(tokens, place of the first that is scored): every token but the first of all is scored once.

    A window of max_length tokens moves on by `stride`, so that what is scored has max_length - stride tokens before it
    at least, but for the first window's. Raises DataError for a stride that would leave tokens out or stand still.
    """
    stride = max_length - 1 if stride is None else stride
    if not 1 <= stride < max_length:
        remedy = "Write for example stride = max_length // 2."
        raise DataError(f"stride must be from 1 to max_length - 1 = {max_length - 1}", got=stride, remedy=remedy)
    found, end = [(ids[:max_length], 1)], max_length
    while end < len(ids):
        scored, end = end, min(end + stride, len(ids))
        found.append((ids[end - max_length : end], scored - (end - max_length)))
    return found


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
