"""Word overlap: how many words an answer shares with a reference, and whether that ranks answers as the checkers do.

    BLEU = brevity * exp( mean over n = 1..4 of log p_n ),   brevity = min(1, exp(1 - words of reference / of answer))
           p_n: share of the answer's n-grams that the reference has too (Papineni et al. 2002)
    ROUGE-n: F1 of shared n-grams; ROUGE-L: F1 of the longest common subsequence of words (Lin 2004)

sacrebleu (Post 2018) and rouge-score compute them. Every score here is a share from 0 to 1.
"""

from functools import cache

import numpy as np
import sacrebleu
from rouge_score import rouge_scorer
from scipy import stats

METRICS = {"bleu": "BLEU", "rouge1": "ROUGE-1", "rouge2": "ROUGE-2", "rougeL": "ROUGE-L"}


@cache
def _rouge():
    return rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeL"])


def sentence(answer: str, reference: str) -> dict[str, float]:
    """{bleu, rouge1, rouge2, rougeL} of one answer.

    BLEU is defined for a corpus. For one sentence sacrebleu smooths n-grams that do not occur (exp, Chen and Cherry
    2014) and counts n only up to the answer's length.
    """
    scores = {"bleu": sacrebleu.sentence_bleu(answer, [reference]).score / 100}
    return scores | {name: score.fmeasure for name, score in _rouge().score(reference, answer).items()}


def corpus(answers: list[str], references: list[str]) -> dict[str, float]:
    """{bleu, rouge1, rouge2, rougeL} of many answers: BLEU of the counts of all together, ROUGE as the mean."""
    rouge = [_rouge().score(reference, answer) for answer, reference in zip(answers, references, strict=True)]
    scores = {"bleu": sacrebleu.corpus_bleu(answers, [references]).score / 100}
    return scores | {name: float(np.mean([one[name].fmeasure for one in rouge])) for name in rouge[0]}


def spearman(values: np.ndarray, gold: np.ndarray) -> float:
    """Rank correlation (Spearman 1904) over all entries; 0 where one side never varies, for it ranks nothing."""
    ranks = [stats.rankdata(side) for side in (values, gold)]
    if min(side.std() for side in ranks) == 0:
        return 0.0
    return float(np.corrcoef(*ranks)[0, 1])


def kendall(values: np.ndarray, gold: np.ndarray) -> float:
    """Rank correlation of systems (Kendall 1938, tau-a) by their means; values, gold: shape (questions, systems).

    1: every two systems in gold's order; -1: every two the other way round.
    """
    one, other = values.mean(axis=0), gold.mean(axis=0)
    above = np.triu_indices(len(one), 1)
    signs = [np.sign(side[:, None] - side[None, :])[above] for side in (one, other)]
    return float((signs[0] * signs[1]).mean())
