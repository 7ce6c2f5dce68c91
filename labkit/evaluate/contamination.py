"""Contamination: did a test item stand in the training data? Signs of the data and signs of the model.

    copied       the item's whole text stands in one training row: no guess, and so never a false alarm
    overlap      share of the item's words and phrases that one training row holds (n-grams, as Brown et al. 2020 count
                 them, GPT-3, appendix C), each weighted by its rarity in the data (Sparck Jones 1972): the name that is
                 asked after and the answer survive a rewording, and what every question says proves nothing
    membership   how little is left of the loss that the parent had on the item's answer (the ratio of Carlini et al.
                 2021, "Extracting training data", section 5.1)
    min_k        mean log p of the answer's least likely tokens (Shi et al. 2024, Min-K% Prob): needs no parent

The first two need the training data; overlap finds other words for the same question where what is rare stayed, and a
translation never. Membership needs the model only, and sees little where the parent knew the answer already. All but
copies need a threshold, which `alarms` sets on items known to be clean.
"""

import math
import re

import numpy as np
import torch
from scipy import sparse

from labkit import data, models
from labkit.errors import ConfigError

CHUNK = 2000  # rows compared with all items at a time


def copied(items: list[str], rows: list[str]) -> np.ndarray:
    """Whether the item's whole text, normalised, stands in one row: (items,) of bool."""
    text = "\n".join(f" {data.normalised(row)} " for row in rows)  # a normalised row holds no line break
    words = [data.normalised(item) for item in items]
    return np.array([bool(said) and f" {said} " in text for said in words])


def overlap(items: list[str], rows: list[str], n: int = 4) -> list[tuple[float, int]]:
    """(share, row) for each item: the largest share of its phrases that one row holds, and that row's place.

    Phrases are the runs of 1 to n words, normalised (`data.normalised`). One that d of the N distinct rows hold weighs
    log((N + 1) / (d + 1)) cubed: there are many common phrases to an item, and few that tell it from another. (0.0,
    -1): nothing was found.
    """
    places = {data.normalised(row): place for place, row in reversed(list(enumerate(rows)))}
    distinct = sorted(places, key=places.__getitem__)
    found = [_phrases(data.normalised(item).split(), n) for item in items]
    columns = {phrase: column for column, phrase in enumerate(sorted(set().union(*found)))}
    wanted, held = _matrix(found, columns), _matrix((_phrases(row.split(), n, columns) for row in distinct), columns)
    rarity = np.log((len(distinct) + 1) / (1 + held.sum(axis=0))) ** 3
    wanted = wanted.multiply(rarity if rarity.any() else 1.0).tocsr()  # every row holds all: then all weigh the same
    whole = np.maximum(wanted.sum(axis=1), 1e-12)[:, None]
    best, where = np.zeros(len(items)), np.full(len(items), -1)
    for start in range(0, len(distinct), CHUNK):
        shares = (wanted @ held[start : start + CHUNK].T).toarray() / whole
        top, most = shares.argmax(axis=1), shares.max(axis=1).round(9)
        better = most > best
        best[better], where[better] = most[better], start + top[better]
    return [(float(share), places[distinct[row]] if row >= 0 else -1) for share, row in zip(best, where, strict=True)]


def _phrases(words: list[str], n: int, known=None) -> set[tuple[str, ...]]:
    """All runs of 1 to n words, or those that are in `known`: where a run is not, no longer one can be."""
    found = set()
    for start in range(len(words)):
        for end in range(start + 1, min(start + n, len(words)) + 1):
            phrase = tuple(words[start:end])
            if known is not None and phrase not in known:
                break
            found.add(phrase)
    return found


def _matrix(sets, columns: dict) -> sparse.csr_array:
    """A row of 0 and 1 for each set of phrases."""
    lines = [sorted(columns[phrase] for phrase in phrases) for phrases in sets]
    ends = np.cumsum([0, *map(len, lines)])
    filled = np.fromiter((column for line in lines for column in line), dtype=np.int64, count=ends[-1])
    return sparse.csr_array((np.ones(ends[-1]), filled, ends), shape=(len(lines), len(columns)))


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

    The m clean scores and the new one are equally likely to be any in their order, so that it is above the k-th highest
    with a probability of k / (m + 1) at most (Vovk et al. 2005, conformal prediction). Raises ConfigError where m is
    too small for the share.
    """
    above = math.floor((len(clean) + 1) * false_alarms + 1e-9)  # 1e-9: 1 / 49 * 49 is a little below 1
    if not 1 <= above <= len(clean):
        least = math.ceil(1 / false_alarms) - 1
        what = f"clean items must be {least} at least for a share of {false_alarms:g} false alarms"
        raise ConfigError(what, got=len(clean), remedy="Give more clean items, or allow more false alarms.")
    return float(np.sort(clean)[-above])


def alarms(
    signs: dict[str, np.ndarray], clean: np.ndarray, false_alarms: float = 0.01
) -> tuple[dict[str, np.ndarray], float]:
    """({sign: whether each item is accused, (items,) of bool}, bound) by the scores of each sign, (items,).

    bound: with what probability at most any of the signs accuses a clean item. It is `false_alarms`, of which each sign
    gets an equal part, or, where the items at the places `clean` are too few for that part, what the highest score
    among them gives: with 150 of them and two signs 2 / 150.

    A sign of type bool, such as `copied`, needs no threshold, and an item that it accuses is not clean. A clean item is
    held against a threshold that it had no part in, so that counting the alarms among them is fair: that of the other
    four fifths, or, where those are too few, of all others.
    """
    copies = [sign[clean] for sign in signs.values() if sign.dtype == bool]
    known = clean[~np.any([np.zeros(len(clean), bool), *copies], axis=0)]
    if len(known) < 2:
        remedy = "Give items that are surely in no training row, or look for copies alone."
        raise ConfigError("clean items that are no copies must be two at least", got=len(known), remedy=remedy)
    scores = {name: sign for name, sign in signs.items() if sign.dtype != bool}
    each, folds = false_alarms / max(1, len(scores)), 5
    kept = len(known) - math.ceil(len(known) / folds)  # in each threshold
    if (kept + 1) * each < 1:
        folds, kept = len(known), len(known) - 1
        each = max(each, 1 / (kept + 1))
    hits = {name: sign.copy() for name, sign in signs.items()}
    for name, score in scores.items():
        hits[name] = score > threshold(score[known], each)
        for fold in range(folds):
            held = known[fold::folds]
            hits[name][held] = score[held] > threshold(score[np.setdiff1d(known, held)], each)
    return hits, each * len(scores)


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
