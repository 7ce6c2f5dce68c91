"""Methods of tuning beside each other: several seeds each, all of one parent, on the same questions.

judged[method][seed] are judged answers (`answers.test`), in the order of the parent's. An interval is about other seeds
and other questions (`intervals.crossed`), not about another parent.
"""

from pathlib import Path

import numpy as np
import torch

from labkit import runs
from labkit.evaluate import answers, intervals

Judged = list[list[dict]]  # for each seed, its answers


def decided(judged: Judged, parent: list[dict]) -> tuple[np.ndarray, np.ndarray]:
    """(wins, decided), each (seeds, questions) of 0 and 1: gold above the parent's; gold other than the parent's."""
    gains = np.array([[row["gold"] - old["gold"] for row, old in zip(rows, parent, strict=True)] for rows in judged])
    return (gains > 0).astype(float), (gains != 0).astype(float)


def win_rate(judged: Judged, parent: list[dict]) -> tuple[float, float, float]:
    """(share, low, high) of the decided questions that the method wins from its parent."""
    return intervals.crossed_share(*decided(judged, parent))


def accuracy_change(judged: Judged, parent: list[dict]) -> tuple[float, float, float]:
    """(difference, low, high) of correct answers to safe questions, the method's share minus the parent's."""
    safe = [place for place, row in enumerate(parent) if row["split"] != "unsafe"]
    return intervals.crossed([[rows[at]["correct"] - parent[at]["correct"] for at in safe] for rows in judged])


def words(judged: Judged) -> tuple[float, float, float]:
    """(mean, low, high) of words in an answer."""
    return intervals.crossed([[len(row["text"].split()) for row in rows] for rows in judged])


def difference(one: Judged, other: Judged, parent: list[dict]) -> tuple[float, float, float]:
    """(difference, low, high) of two methods' win rates over the parent, paired by seed and question."""
    both = [decided(judged, parent) for judged in (one, other)]
    if not all(whole.sum() for _, whole in both):
        return 0.0, -1.0, 1.0  # nothing was decided
    first, second = (intervals.linearised(*found) for found in both)
    return intervals.crossed(first - second)


def gold(judged: Judged) -> list[float]:
    """Mean gold of each seed."""
    return [sum(row["gold"] for row in rows) / len(rows) for rows in judged]


def best_answers(rows: list[dict], proxy: np.ndarray, n: int) -> list[dict]:
    """Of n samples to each question, a question's together, the one with the highest proxy (the first of equals)."""
    best = np.asarray(proxy).reshape(-1, n).argmax(1)
    return [rows[place * n + at] for place, at in enumerate(best.tolist())]


def drawn(policy, reference, tokenizer, reward, questions: list[dict], *, seed: int, file: Path) -> list[dict]:
    """One answer to each question, sampled at temperature 1: judged rows with `kl` and `reward`; kept in `file`.

    kl is log pi(y) - log ref(y) in nats: its mean over answers that pi wrote is KL(pi || ref). reward: a
    rewards.RewardModel.
    """
    if rows := answers.kept(file, questions):
        return rows
    prompts = [question["prompt"] for question in questions]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        said = answers.ask(policy, tokenizer, prompts, sample=True)
    texts, ended = ([row[name] for row in said] for name in ("text", "stopped"))
    own, theirs = (answers.log_probs(one, tokenizer, prompts, texts, ended)[0] for one in (policy, reference))
    extra = zip((own - theirs).tolist(), reward(prompts, texts).tolist(), strict=True)
    rows = [
        {**row, "kl": kl, "reward": score}
        for row, (kl, score) in zip(answers.judged(questions, said), extra, strict=True)
    ]
    runs.write_lines(file, rows)
    return rows
