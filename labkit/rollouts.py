"""Rollouts: answers that a policy samples, what a reward gives for them, and what a batch of them says.

Shapes as in labkit/ppo.py: B answers of up to T tokens, after prompts padded on the left to P tokens.
"""

import hashlib
import inspect
from collections.abc import Callable

import torch
from datasets import Dataset

from labkit import data, models, ppo
from labkit.errors import TrainingError

Reward = Callable[[list[str], list[str]], torch.Tensor]  # (prompts, answers) -> one number for each answer, (rows,)


def batches(rows: Dataset, steps: int, size: int, seed: int) -> list[dict[str, list]]:
    """The rows of each step: all of them in a random order, then in another one, as often as it takes."""
    order = torch.Generator().manual_seed(seed)
    passes = -(-steps * size // len(rows))
    shuffled = torch.cat([torch.randperm(len(rows), generator=order) for _ in range(passes)])
    return [rows[places.tolist()] for places in shuffled.split(size)[:steps]]


@torch.no_grad()
def sample(model, tokenizer, messages: list[list[dict]], max_new_tokens: int) -> tuple[dict, list[str]]:
    """({ids, attention (B, P + T), tokens, mask (B, T), ended (B,)}, texts): one answer each, temperature 1."""
    prompts = models.padded(tokenizer, [data.asked_ids(tokenizer, said) for said in messages]).to(model.device)
    stops = sorted(models.stops(model, tokenizer))
    with models.autocast():
        ids = model.generate(
            input_ids=prompts["input_ids"], attention_mask=prompts["attention_mask"], max_new_tokens=max_new_tokens,
            do_sample=True, temperature=1.0, top_k=0, top_p=1.0, eos_token_id=stops,
            pad_token_id=tokenizer.pad_token_id,
        )  # fmt: skip
    tokens = ids[:, prompts["input_ids"].shape[1] :]
    ends = torch.isin(tokens, torch.tensor(stops, device=ids.device)).long()
    mask = (ends.cumsum(1) - ends == 0).long()  # up to the first end and with it: the padding may be the same token
    attention = torch.cat([prompts["attention_mask"], mask], dim=1)
    ended = ends.any(1)
    kept = (row[: int(n)] for row, n in zip(tokens.tolist(), (mask * (1 - ends)).sum(1), strict=True))
    texts = [data.spoken(text) for text in tokenizer.batch_decode(list(kept), skip_special_tokens=True)]
    return {"ids": ids, "attention": attention, "tokens": tokens, "mask": mask, "ended": ended}, texts


def forward(model, batch: dict) -> tuple[torch.Tensor, torch.Tensor]:
    """(logits (B, T, V), hidden states (B, T, H)) at the places that predict the answer's T tokens."""
    width = batch["mask"].shape[1]
    positions = (batch["attention"].cumsum(1) - 1).clamp(min=0)  # the padding on the left has none
    with models.autocast():
        out = model(
            input_ids=batch["ids"], attention_mask=batch["attention"], position_ids=positions, use_cache=False,
            output_hidden_states=True, logits_to_keep=width + 1,
        )  # fmt: skip
    return out.logits[:, :-1], out.hidden_states[-1][:, -width - 1 : -1].float()


def name_of(reward: Reward) -> str:
    """What a run calls a reward function: its name and a hash of its code, defaults and the names outside that it uses.

    So another body is another run, and so is another number or text outside. What it calls is not looked into:
    retrain=True after a change there. An object is known by its address alone.
    """

    def plain(value) -> str:
        if inspect.iscode(value):  # also of what is defined inside, a comprehension say
            return f"{value.co_code.hex()} {value.co_names} {list(map(plain, value.co_consts))}"
        return str(sorted(map(repr, value))) if isinstance(value, frozenset) else repr(value)

    if not inspect.isfunction(reward):
        about, name = repr(reward), type(reward).__qualname__
    else:
        used, name = inspect.getclosurevars(reward), reward.__qualname__
        outside = {key: value for key, value in used.globals.items() if isinstance(value, (bool, int, float, str))}
        held = [sorted(used.nonlocals.items()), sorted(outside.items()), reward.__defaults__, reward.__kwdefaults__]
        about = f"{plain(reward.__code__)} {held}"
    return f"function {name} {hashlib.sha256(about.encode()).hexdigest()[:8]}"


def scorer(reward: Reward, penalty: float) -> Callable[[list[str], list[str], list[bool]], torch.Tensor]:
    """score(prompts, answers, ended) -> (rows,) in fp32: the reward, less `penalty` for an answer that was cut.

    Raises TrainingError where the reward gives another shape than one number a row, or what is no number.
    """

    def score(prompts: list[str], texts: list[str], ended: list[bool]) -> torch.Tensor:
        found = torch.as_tensor(reward(prompts, texts)).detach().float()
        if found.shape != (len(texts),):
            what = f"the reward must give one number for each of {len(texts)} answers, shape ({len(texts)},)"
            raise TrainingError(what, got=tuple(found.shape), remedy="Return a tensor of one dimension.")
        for row in (~found.isfinite()).nonzero().flatten().tolist():
            what = f"the reward of an answer is no number ({found[row].item()})"
            remedy = "Make the reward finite for every text, the empty one and very long ones included."
            raise TrainingError(what, got=texts[row], remedy=remedy)
        return found - penalty * (~torch.tensor(ended, device=found.device)).float()

    return score


def averages(batch: dict) -> dict[str, float]:
    """What a batch of answers says: reward and KL per answer, entropy per token, length in tokens, and the shares of
    answers that ended and of repetition in them.
    """
    mask = batch["mask"]
    kl = (ppo.kl_k1(batch["log_probs"] - batch["ref_log_probs"]) * mask).sum(1).mean()
    return {
        "reward": batch["scores"].mean().item(),
        "kl": kl.item(),
        "entropy": ppo.masked_mean(batch["entropy"], mask).item(),
        "explained_variance": ppo.explained_variance(batch["values"], batch["returns"], mask).item(),
        "answer_length": mask.sum(1).float().mean().item(),
        "ended": batch["ended"].float().mean().item(),
        "repetition": batch["repeated"].mean().item(),
    }
