"""On-policy pairs: answers that the model itself gives, the best of them preferred to the worst.

The lab's own pairs are off-policy: somebody else wrote them, and the model may find both unlikely. Here the model is
asked several times at temperature 1, and each answer is scored by how far it agrees with the chosen answer of the pair:

    agreement = 1/2 (share of the reference's new words that the answer has + 2 M / T)

New words are those that the question does not have: the facts. M counts words that stand in both in the same order, T
all words of both (`difflib`). So a wrong answer scores below a rambling one, and both below the reference.
"""

import json
import re
from difflib import SequenceMatcher
from pathlib import Path

import torch

from labkit.errors import DataError
from labkit.evaluate import answers

SAMPLES = 4  # answers to each prompt


def agreement(text: str, reference: str, prompt: str) -> float:
    """How far an answer agrees with the reference, from 0 to 1; letter case and punctuation aside."""
    said, wanted, asked = (re.findall(r"\w+", one.lower()) for one in (text, reference, prompt))
    new = set(wanted) - set(asked)
    found = len(new & set(said)) / len(new) if new else 1.0
    return (found + SequenceMatcher(None, said, wanted, autojunk=False).ratio()) / 2


def write_pairs(model, tokenizer, rows, file: Path, *, seed: int = 0, samples: int = SAMPLES) -> Path:
    """Write a pair of the model's own answers for each prompt of `rows` (as `preferences.pairs` gives them) to `file`.

    JSONL that `preferences.pairs` reads. A prompt whose answers all agree equally teaches nothing and is left out. A
    file that is there is left as it is: nothing is sampled twice. Returns `file`. Raises DataError for too few pairs.
    """
    if file.exists():
        return file
    torch.manual_seed(seed)
    texts = [tokenizer.apply_chat_template(m, tokenize=False, add_generation_prompt=True) for m in rows["messages"]]
    found = [row["text"] for row in answers.generate(model, tokenizer, texts * samples, sample=True)]
    lines = []
    for place, row in enumerate(rows):
        said = [text for text in found[place :: len(rows)] if text.strip() not in ("", row["prompt"].strip())]
        ranked = sorted((agreement(text, row["chosen"], row["prompt"]), text) for text in said)
        if ranked and ranked[0][0] < ranked[-1][0]:
            lines.append({"prompt": row["messages"], "chosen": ranked[-1][1], "rejected": ranked[0][1]})
    if len(lines) < 2:
        remedy = "Ask more prompts: a model that always answers alike has no better and worse answer."
        raise DataError("the model's own answers must differ in worth", got=len(lines), remedy=remedy)
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_suffix(".part")
    temporary.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    temporary.replace(file)
    return file
