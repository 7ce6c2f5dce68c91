"""On-policy pairs: answers that the model itself gives, the best of them preferred to the worst.

The lab's own pairs are off-policy: somebody else wrote them, and the model may find both unlikely. Here the model is
asked several times at temperature 1, and each answer is scored by how far it agrees with the chosen answer of the pair:

    agreement = 1/2 (share of the reference's new words that the answer has + 2 M / T)

New words are those that the question does not have: the facts. M counts words that stand in both in the same order, T
all words of both (`difflib`). So a wrong answer scores below a rambling one, and both below the reference.
"""

import hashlib
import json
import re
from difflib import SequenceMatcher
from pathlib import Path

import torch

from labkit import data, runs
from labkit.errors import DataError
from labkit.evaluate import answers

SAMPLES = 4  # answers to each prompt


def agreement(text: str, reference: str, prompt: str) -> float:
    """How far an answer agrees with the reference, from 0 to 1; letter case and punctuation aside."""
    said, wanted, asked = (re.findall(r"\w+", one.lower()) for one in (text, reference, prompt))
    new = set(wanted) - set(asked)
    found = len(new & set(said)) / len(new) if new else 1.0
    return (found + SequenceMatcher(None, said, wanted, autojunk=False).ratio()) / 2


def key(parent: str, rows, seed: int) -> str:
    """A folder's name for what `write_pairs` makes of these rows and the parent of this name."""
    asked = json.dumps([parent, seed, SAMPLES, *(list(rows[name]) for name in ("prompt", "chosen", "rejected"))])
    return hashlib.sha256(asked.encode()).hexdigest()[:12]


def write_pairs(model, tokenizer, rows, folder: Path, *, seed: int = 0, samples: int = SAMPLES) -> tuple[Path, Path]:
    """Write own.jsonl, a pair of the model's own answers for each prompt of `rows`, and others.jsonl, the rows' pairs.

    rows: as `preferences.pairs` gives them, and reads both files. A prompt whose answers all agree equally teaches
    nothing and is left out of both: they have the same prompts. Files that are there are left as they are: nothing is
    sampled twice. Returns the two. Raises DataError for too few pairs.
    """
    files = folder / "own.jsonl", folder / "others.jsonl"
    if all(file.exists() for file in files):
        return files
    torch.manual_seed(seed)
    texts = [data.asked_ids(tokenizer, said) for said in rows["messages"]]
    found = [row["text"] for row in answers.generate(model, tokenizer, texts * samples, sample=True)]
    own, others = [], []
    for place, row in enumerate(rows):
        said = [text for text in found[place :: len(rows)] if text.strip() not in ("", row["prompt"].strip())]
        ranked = sorted((agreement(text, row["chosen"], row["prompt"]), text) for text in said)
        if ranked and ranked[0][0] < ranked[-1][0]:
            own.append({"prompt": row["messages"], "chosen": ranked[-1][1], "rejected": ranked[0][1]})
            others.append({"prompt": row["messages"], "chosen": row["chosen"], "rejected": row["rejected"]})
    if len(own) < 2:
        remedy = "Ask more prompts: a model that always answers alike has no better and worse answer."
        raise DataError("the model's own answers must differ in worth", got=len(own), remedy=remedy)
    return tuple(runs.write_lines(file, lines) for file, lines in zip(files, (own, others), strict=True))
