"""Log-probabilities of the tokens that are learned, in nats. Only at their places is the output head computed."""

import accelerate.utils
import torch

from labkit import adapters, data


def of_tokens(model: torch.nn.Module, labels: torch.Tensor, **inputs) -> tuple[torch.Tensor, torch.Tensor]:
    """(log p of each learned token, its row), both of shape (learned tokens,), the first in fp32.

    labels: (rows, tokens), data.IGNORED where nothing is learned. inputs: what the model takes beside them.
    """
    learned = labels[:, 1:] != data.IGNORED
    inner = accelerate.utils.extract_model_from_parallel(model)
    inner = inner.get_base_model() if adapters.is_peft(inner) else inner
    select = inner.get_output_embeddings().register_forward_pre_hook(
        lambda head, args: (args[0][:, :-1][learned], *args[1:])
    )
    try:
        logits = model(**inputs, use_cache=False).logits.float()
    finally:
        select.remove()
    log_probs = -torch.nn.functional.cross_entropy(logits, labels[:, 1:][learned], reduction="none")
    return log_probs, learned.nonzero()[:, 0]


def of_rows(model: torch.nn.Module, labels: torch.Tensor, **inputs) -> tuple[torch.Tensor, torch.Tensor]:
    """(log p summed over a row's learned tokens, how many these are), both of shape (rows,)."""
    log_probs, row = of_tokens(model, labels, **inputs)
    sums = log_probs.new_zeros(len(labels)).index_add(0, row, log_probs)
    return sums, torch.bincount(row, minlength=len(labels))
