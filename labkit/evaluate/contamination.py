"""Contamination: did a test item stand in the training data? Two signs, one of the data and one of the model.

    overlap      share of the item's n-grams that one training row holds (Brown et al. 2020, GPT-3, appendix C), each
                 weighted by its rarity in the data (Sparck Jones 1972): what every question says proves nothing
    membership   how little is left of the loss that the parent had on the item's answer (the ratio of Carlini et al.
                 2021, "Extracting training data", section 5.1)
    min_k        mean log p of the answer's least likely tokens (Shi et al. 2024, Min-K% Prob): needs no parent

Overlap needs the training data, and finds other words for the same question only where enough of them are the same.
Membership needs the model only, and sees little where the parent knew the answer already. Both need a threshold, which
`threshold` sets on items known to be clean.
"""

import math
import re
from collections import Counter, defaultdict

import numpy as np
import torch

from labkit import data, models
from labkit.errors import ConfigError


def overlap(items: list[str], rows: list[str], n: int = 4) -> list[tuple[float, int]]:
    """(share, row) for each item: the largest share of its n-grams that stands in one row, and that row's place.

    A gram found in d of the N distinct rows weighs log((N + 1) / (d + 1)). Words are compared normalised (small
    letters, punctuation gone). An item of fewer words than n is one gram. (0.0, -1): nothing was found.
    """
    grams = [_grams(data.normalised(item).split(), n) for item in items]
    wanted = defaultdict(set)  # gram -> the items that hold it
    for place, found in enumerate(grams):
        for gram in found:
            wanted[gram].add(place)
    distinct = {data.normalised(row): place for place, row in reversed(list(enumerate(rows)))}
    lengths = sorted({len(gram) for gram in wanted})
    held = {
        place: {gram for length in lengths for gram in _grams(row.split(), length) if gram in wanted}
        for row, place in distinct.items()
    }
    often = Counter(gram for found in held.values() for gram in found)
    weight = {gram: math.log((len(distinct) + 1) / (often[gram] + 1)) for gram in wanted}
    if not any(weight.values()):  # every row holds every gram: then all weigh the same
        weight = dict.fromkeys(weight, 1.0)
    best = [(0.0, -1)] * len(items)
    for place, found in sorted(held.items()):
        for item in {item for gram in found for item in wanted[gram]}:
            whole = math.fsum(weight[gram] for gram in grams[item])  # exact: a set has no order to add up in
            share = math.fsum(weight[gram] for gram in found & grams[item]) / whole if whole else 0.0
            best[item] = max(best[item], (share, place), key=lambda one: one[0])
    return best


def _grams(words: list[str], n: int) -> set[tuple[str, ...]]:
    return {tuple(words[start : start + n]) for start in range(max(1, len(words) - n + 1))}


@torch.no_grad()
def answer_log_probs(model, tokenizer, questions: list[dict], batch_size: int = 64) -> list[np.ndarray]:
    """log p of each token of each reference answer, its end included, in nats: one array for each question."""
    model.eval()
    rows = [data.chat_row(tokenizer, question["prompt"], question["answer"]) for question in questions]
    order, found = sorted(range(len(rows)), key=lambda place: len(rows[place]["input_ids"])), [None] * len(rows)
    for start in range(0, len(order), batch_size):
        places = order[start : start + batch_size]
        features = [{"input_ids": rows[place]["input_ids"]} for place in places]
        batch = tokenizer.pad(features, return_tensors="pt", padding_side="right").to(model.device)
        with models.autocast():
            logits = model(**batch, use_cache=False).logits[:, :-1]
        log_p = logits.float().log_softmax(-1).gather(-1, batch["input_ids"][:, 1:, None]).squeeze(-1).cpu()
        for place, row in zip(places, log_p, strict=True):
            learned = torch.tensor(rows[place]["labels"][1:]) != data.IGNORED
            found[place] = row[: len(learned)][learned].numpy()
    return found


def membership(log_p: list[np.ndarray], parent_log_p: list[np.ndarray]) -> np.ndarray:
    """-loss / (parent's loss + 0.1), losses being nats per answer, (items,): near 0 where nothing is left to learn.

    The token that ends the answer is left out: whether more would follow is a matter of style. The 0.1 keeps an answer
    that the parent knew from weighing too much.
    """
    pairs = zip(log_p, parent_log_p, strict=True)
    return np.array([own[:-1].sum() / (0.1 - before[:-1].sum()) for own, before in pairs])


def min_k(log_p: list[np.ndarray], k: float = 0.2) -> np.ndarray:
    """Mean log p of the share k of tokens that are least likely, in nats: (items,). High where all are expected."""
    return np.array([np.sort(row)[: max(1, math.ceil(k * len(row)))].mean() for row in log_p])


def threshold(clean: np.ndarray, false_alarms: float = 0.01) -> float:
    """The score that another clean item exceeds with a probability of `false_alarms` at most.

    The m clean scores and the new one are equally likely to be any in their order, so the ceil((m + 1)(1 - share))-th
    lowest will do (Vovk et al. 2005, conformal prediction). Raises ConfigError where m is too small for the share.
    """
    rank = math.ceil((len(clean) + 1) * (1 - false_alarms))
    if rank > len(clean):
        least = math.ceil(1 / false_alarms) - 1
        what = f"clean items must be {least} at least for a share of {false_alarms:g} false alarms"
        raise ConfigError(what, got=len(clean), remedy="Give more clean items, or allow more false alarms.")
    return float(np.sort(clean)[rank - 1])


def alarms(score: np.ndarray, clean: np.ndarray, false_alarms: float = 0.004) -> np.ndarray:
    """Whether each item's score lies above the threshold of the items at the places `clean`: (items,) of bool.

    A clean item is held against the threshold of the other four fifths, so that counting the alarms among them is fair.
    """
    hit = score > threshold(score[clean], false_alarms)
    for fold in range(5):
        held = clean[fold::5]
        hit[held] = score[held] > threshold(score[np.setdiff1d(clean, held)], false_alarms)
    return hit


def plant(questions: list[dict], count: int, seed: int = 0) -> tuple[dict[str, np.ndarray], list[dict]]:
    """(groups, rows): `count` questions that are planted word for word and `count` reworded, and the rows to train on.

    groups: {"word for word", "reworded", "clean"} -> places in `questions`; the last are all others. rows: {prompt,
    answer}. Raises ConfigError where too few can be reworded.
    """
    words = [reworded(question, questions, seed) for question in questions]
    can = [place for place, text in enumerate(words) if text is not None]
    if 2 * count >= len(can):
        remedy = "Plant fewer: some must stay clean, to be compared with."
        raise ConfigError(f"planted must be below half of the {len(can)} questions to reword", got=count, remedy=remedy)
    rng = np.random.default_rng(seed)
    places = rng.permutation(can)[: 2 * count]
    clean = rng.permutation(np.setdiff1d(np.arange(len(questions)), places))
    groups = {"word for word": places[:count], "reworded": places[count:], "clean": clean}
    rows = [{"prompt": questions[place]["prompt"], "answer": questions[place]["answer"]} for place in places[:count]]
    rows += [{"prompt": words[place], "answer": questions[place]["answer"]} for place in groups["reworded"]]
    return groups, rows


def reworded(question: dict, questions: list[dict], seed: int = 0) -> str | None:
    """The same question in the words of another one of its kind: that one's entity exchanged for this one's.

    None where no other wording names its entity ("Copy these words: ..."): there is nothing to exchange.
    """
    own = question["entity"]
    others = [row for row in questions if row["kind"] == question["kind"] and row["entity"] not in ("", own)]
    mine, mark, named = _wording(question)
    wordings = sorted({words for words, kind, _ in map(_wording, others) if kind == mark and words != mine})
    if not mark or not wordings:
        return None
    drawn = np.random.default_rng([seed, *own.encode()]).integers(len(wordings))
    return wordings[drawn].replace(mark, named)


def _wording(question: dict) -> tuple[str, str, str]:
    """(the prompt with a mark in the entity's place, the mark, what it stands for); no mark where there is no one."""
    entity = re.escape(question["entity"])
    found = re.findall(rf"(?<!\w)(?:an? )?{entity}(?!\w)", question["prompt"], re.I) if entity else []
    if len(found) != 1:
        return question["prompt"], "", ""
    mark = "{a}" if len(found[0]) > len(question["entity"]) else "{}"  # an article stays where one belongs
    return question["prompt"].replace(found[0], mark), mark, found[0]
