"""Length: how many words a model takes for an answer where the question sets no end.

Asked are the first turns of MT-Bench (Zheng et al. 2023): 80 open questions of eight categories. Only words are counted
here, and no MT-Bench score is given, which takes GPT-4 as judge. Preference tuning changes length so easily that a win
rate which rewards length must be read beside it (Singhal et al. 2023).
"""

import json

import numpy as np

from labkit import data
from labkit.evaluate import answers, intervals


def open_questions() -> list[dict]:
    """MT-Bench's 80 first turns: rows {category, prompt}."""
    rows = [json.loads(line) for line in (data.ROOT / "mt_bench" / "question.jsonl").open(encoding="utf-8")]
    return [{"category": row["category"], "prompt": row["turns"][0]} for row in rows]


def ask(model, tokenizer, questions: list[dict], max_new_tokens: int = 400) -> list[dict]:
    """Greedy answers to `open_questions`: rows {text, stopped, words}.

    An answer that is cut at max_new_tokens counts as long as it got: a model that rambles on looks shorter than it is.
    """
    said = answers.ask(
        model, tokenizer, [row["prompt"] for row in questions], max_new_tokens=max_new_tokens, batch_size=40
    )
    return [{**row, "words": len(row["text"].split())} for row in said]


def ratio(after: list[dict], before: list[dict]) -> tuple[float, float, float]:
    """(share, low, high): words of all answers after by words of all before, bootstrapped over the questions."""
    counts = [np.array([row["words"] for row in rows], dtype=float) for rows in (after, before)]
    return intervals.bootstrap(lambda new, old: new.sum() / max(old.sum(), 1.0), *counts)
