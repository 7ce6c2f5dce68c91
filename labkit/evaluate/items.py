"""Benchmark items of the lab's own, in the formats of MMLU and HellaSwag, that no cheap trick answers.

MMLU-style: a test question on a fact and four answers. HellaSwag-style: the beginning of a sentence and four endings:
definitions that the pretraining text has, and English sentences that no model of the lab has read. The wrong choices
are right elsewhere (answers to questions of the same kind, endings of other sentences) and about as long. They are
drawn so that the right choice is equally often the likeliest, second, third and least likely under a bigram model of
the training text, and equally often the longest to the shortest: either trick is right by chance only. Items for which
no such choices are found are left out. (HellaSwag filters with a model for the same reason: Zellers et al. 2019.)
"""

import functools
import json
import math
import random
import re
from collections import Counter
from itertools import pairwise
from pathlib import Path

from datasets import Dataset

from labkit import data, runs
from labkit.evaluate import intervals

MMLU = ("capital", "region", "language", "symbol", "number", "group", "expansion", "kind", "purpose")
DEFINED = ("definition", "meaning")
ENGLISH = ("sentence", "article")  # held-out documents of natural text
DRAWS = 1000  # sets of wrong choices tried for one item


@functools.cache
def bigrams(files: tuple[str, ...] = ("corpus", "instructions")) -> tuple[Counter, Counter]:
    """(words, pairs of neighbouring words), counted in the text that the lab's models learn from."""
    words, pairs = Counter(), Counter()
    for name in files:
        for line in data.LAB[name].open(encoding="utf-8"):
            row = json.loads(line)
            text = split_words(row.get("text") or f"{row['prompt']} {row['answer']}")
            words.update(text)
            pairs.update(pairwise(text))
    return words, pairs


def split_words(text: str) -> list[str]:
    return re.findall(r"\w+|[^\w\s]", text.lower())


def bigram_log_prob(before: str, text: str, strength: float = 5.0) -> float:
    """log p(text | before) in nats under the bigram model, smoothed towards the words' own shares."""
    words, pairs = bigrams()
    total = words.total()
    log_prob = 0.0
    for first, second in pairwise([split_words(before)[-1], *split_words(text)]):
        alone = (words[second] + 1) / (total + len(words))
        log_prob += math.log((pairs[first, second] + strength * alone) / (words[first] + strength))
    return log_prob


@functools.cache
def made(style: str, seed: int = 0) -> list[dict]:
    """Items {id, kind, question, choices, answer} of a style, "mmlu" or "hellaswag"; the same for a seed."""
    rng = random.Random(f"{style}-{seed}")
    known = facts() if style == "mmlu" else definitions() + sentences()
    values = {
        kind: sorted({one["value"] for one in known if one["kind"] == kind}) for kind in {o["kind"] for o in known}
    }
    found: list[dict] = []
    for one in rng.sample(known, len(known)):
        rank = len(found) % 4, len(found) // 4 % 4  # places wanted: by bigram probability, by length
        choices = wrong_choices(rng, one, values[one["kind"]], *rank)
        if choices:
            place = rng.randrange(4)
            choices.insert(place, one["value"])
            about = {"id": one["id"], "kind": one["kind"], "question": one["question"]}
            found.append({**about, "choices": choices, "answer": place})
    return found


def facts() -> list[dict]:
    """Test questions whose answer is a name, number or phrase: {id, kind, question, value}, the value as "Lima."."""
    return [
        {"id": row["id"], "kind": row["kind"], "question": row["prompt"], "value": row["answer"][-len(row["terse"]) :]}
        for row in data.questions()
        if row["kind"] in MMLU
    ]


def definitions() -> list[dict]:
    """What a noun or term is, cut after its name: {id, kind, question, value}."""
    rows = [row for row in data.questions() if row["kind"] in DEFINED]
    cuts = [len(row["answer"]) - len(row["terse"]) for row in rows]
    return [
        {"id": row["id"], "kind": "definition", "question": row["answer"][:cut].strip(), "value": row["answer"][cut:]}
        for row, cut in zip(rows, cuts, strict=True)
    ]


def sentences() -> list[dict]:
    """Held-out English sentences of eight words and more, cut in the middle: {id, kind, question, value}."""
    rows = [json.loads(line) for line in data.LAB["corpus_held_out"].open(encoding="utf-8")]
    texts = [
        text for row in rows if row["kind"] in ENGLISH for text in re.split(r"(?<=[a-z][.?!]) (?=[A-Z])", row["text"])
    ]
    halves = [
        (words[: len(words) // 2], words[len(words) // 2 :]) for words in map(str.split, texts) if len(words) >= 8
    ]
    return [
        {"id": f"sentence-{number}", "kind": "sentence", "question": " ".join(first), "value": " ".join(last)}
        for number, (first, last) in enumerate(halves)
    ]


def write(name: str, rows: list[dict]) -> Path:
    """Rows of prompt and answer as runs/made/NAME.jsonl, for an SFT run's `data`."""
    return runs.write_lines(runs.runs_dir() / "made" / f"{name}.jsonl", rows)


def lab_mmlu(**_):
    """The MMLU-style items as lm-evaluation-harness takes a dataset: {"test": rows}."""
    return {"test": Dataset.from_list(made("mmlu"))}


def lab_hellaswag(**_):
    """The HellaSwag-style items, likewise."""
    return {"test": Dataset.from_list(made("hellaswag"))}


def wrong_choices(rng: random.Random, one: dict, values: list[str], by_bigram: int, by_length: int) -> list[str]:
    """Three of `values` among which the right one has these places, 0 to 3; [] where none are found."""
    right = one["value"]
    spare = max(2, len(right) // 4)
    near = [value for value in values if value != right and abs(len(value) - len(right)) <= spare]
    if len(near) < 3:
        return []
    chance = {value: bigram_log_prob(one["question"], value) for value in [right, *near]}
    per_byte = {value: sum_ / len(value.encode()) for value, sum_ in chance.items()}
    for _ in range(DRAWS):
        drawn = rng.sample(near, 3)
        likelier = {sum(table[value] > table[right] for value in drawn) for table in (chance, per_byte)}
        longer = sum(len(value) > len(right) for value in drawn)
        alike = sum(len(value) == len(right) for value in drawn)  # all of one length tell nothing either
        if likelier == {by_bigram} and (alike == 3 or (alike == 0 and longer == by_length)):
            return drawn
    return []


def baselines(items: list[dict]) -> dict[str, tuple[float, float, float]]:
    """Shares (share, low, high) that tricks get right: the longest or shortest choice, the bigram model's likeliest.

    The bigram model chooses by the sum of log-probabilities (as acc does) and by their sum per byte (as acc_norm, which
    counts characters, nearly does). A trick that likes several choices best counts as drawing one of them.
    """
    tricks = {
        "longest": lambda lead, choice: len(choice),
        "shortest": lambda lead, choice: -len(choice),
        "bigram": bigram_log_prob,
        "bigram per byte": lambda lead, choice: bigram_log_prob(lead, choice) / len(choice.encode()),
    }
    shares = {}
    for name, score in tricks.items():
        right = 0.0
        for item in items:
            scores = [score(item["question"], choice) for choice in item["choices"]]
            best = [place for place, value in enumerate(scores) if math.isclose(value, max(scores))]
            right += (item["answer"] in best) / len(best)
        shares[name] = intervals.proportion(round(right), len(items))
    return shares
