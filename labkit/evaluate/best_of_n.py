"""Best of n: sample n answers, keep the one that a proxy scores highest, and ask what the gold measure says of it.

    E[gold of the best of n] = sum_i  C(i - 1, n - 1) / C(N, n)  gold_(i),   answers in ascending order of their proxy

is the mean over all subsets of n out of N samples (Nakano et al. 2021, WebGPT, appendix I; Gao et al. 2023, "Scaling
laws for reward model overoptimization", section 2): unbiased for every n <= N, from one set of samples.

    KL(best of n || model) = log n - (n - 1) / n   nats

holds where no two answers score alike. A model that repeats its answers moves less: there it is an upper bound
(Beirami et al. 2024, "Theoretical guarantees on the best-of-n alignment policy").
"""

from pathlib import Path

import numpy as np
import torch

from labkit import runs
from labkit.errors import ConfigError
from labkit.evaluate import answers

DRAWS = 2000  # of the bootstrap


def samples(model, tokenizer, questions: list[dict], n: int, *, seed: int, file: Path | None = None) -> list[dict]:
    """n answers to each question at temperature 1, judged: rows {id, text, gold, ...}, a question's rows together.

    Kept in `file`, and read back from it where it holds n answers to each of these questions (`answers.kept`).
    """
    asked = [question for question in questions for _ in range(n)]
    if rows := answers.kept(file, asked):
        return rows
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        said = answers.ask(model, tokenizer, [row["prompt"] for row in asked], sample=True, batch_size=256)
    rows = answers.judged(asked, said)
    if file:
        runs.write_lines(file, rows)
    return rows


def scores(proxy, rows: list[dict]) -> np.ndarray:
    """proxy(prompts, answers) of every row, (rows,). Rows with the same text are scored once."""
    distinct = list(dict.fromkeys((row["prompt"], row["text"]) for row in rows))
    found = dict(zip(distinct, proxy(*map(list, zip(*distinct, strict=True))).tolist(), strict=True))
    return np.array([found[row["prompt"], row["text"]] for row in rows])


def kl(n):
    """log n - (n - 1) / n, in nats: how far best of n lies from the model, at most."""
    n = np.asarray(n, dtype=float)
    return np.log(n) - (n - 1) / n


def powers(most: int) -> list[int]:
    """1, 2, 4, ..., and `most` itself."""
    return [2**k for k in range(most.bit_length()) if 2**k < most] + [most]


def expected(proxy: np.ndarray, values: np.ndarray, sizes: list[int]) -> np.ndarray:
    """E[value of the best of n by proxy] for each prompt and each n of `sizes`: (P, N), (P, N) -> (P, sizes).

    Ties are broken by chance. Raises ConfigError for an n that N samples cannot give.
    """
    proxy, values = np.asarray(proxy, dtype=float), np.asarray(values, dtype=float)
    samples = proxy.shape[1]
    if not all(1 <= n <= samples for n in sizes):
        remedy = "Sample more answers, or ask for a smaller n."
        raise ConfigError(f"n must be from 1 to the number of samples, {samples}", got=list(sizes), remedy=remedy)
    weights = np.stack([_weights(samples, n) for n in sizes], axis=1)  # (N, sizes)
    found = []
    for scored, value in zip(proxy, values, strict=True):
        _, tied = np.unique(scored, return_inverse=True)
        shared = np.bincount(tied, value) / np.bincount(tied)  # a tie's answers are drawn equally often
        found.append(shared[tied][np.argsort(scored, kind="stable")] @ weights)
    return np.array(found)


def _weights(samples: int, n: int) -> np.ndarray:
    """C(i - 1, n - 1) / C(N, n) for i = 1..N: how often the i-th lowest is the highest of n."""
    weights = np.zeros(samples)
    weights[-1] = n / samples
    for i in range(samples - 1, n - 1, -1):  # C(i - 1, n - 1) = C(i, n - 1) (i - n + 1) / i
        weights[i - 1] = weights[i] * (i - n + 1) / i
    return weights


def band(values: np.ndarray, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(mean, low, high) over the prompts, (P, sizes) -> (sizes,) each: 95% interval of a bootstrap over prompts."""
    means = _resampled(values, seed)
    return values.mean(0), *np.quantile(means, [0.025, 0.975], axis=0)


def turn(gold: np.ndarray, sizes: list[int], seed: int = 0) -> dict:
    """Where gold turns, (P, sizes): n*, and by how much it rises up to there and falls from there to the last n.

    {n, n_low, n_high} is the argmax of the mean and the 95% interval of a bootstrap over prompts. {rise, fall}, each
    (estimate, low, high), are measured on one half of the prompts at the n* that the other half chose, and the other
    way round: the highest of several noisy means is too high, and would show a fall where there is none. turned: both
    intervals lie above 0. Needs two prompts at least.
    """
    sizes, drawn = np.asarray(sizes), _resampled(gold, seed)
    low, high = np.quantile(sizes[drawn.argmax(1)], [0.025, 0.975], method="nearest")
    top = np.empty(len(gold))
    for half in (0, 1):
        top[half::2] = gold[half::2, gold[1 - half :: 2].mean(0).argmax()]
    parts = {}
    for name, steps in (("rise", top - gold[:, 0]), ("fall", top - gold[:, -1])):
        middle, least, most = band(steps[:, None], seed)
        parts[name] = (float(middle[0]), float(least[0]), float(most[0]))
    found = {"n": int(sizes[gold.mean(0).argmax()]), "n_low": int(low), "n_high": int(high), **parts}
    return {**found, "turned": parts["rise"][1] > 0 and parts["fall"][1] > 0}


def _resampled(values: np.ndarray, seed: int) -> np.ndarray:
    """Means of bootstrap draws of the prompts: (P, sizes) -> (DRAWS, sizes)."""
    draws = np.random.default_rng(seed).integers(len(values), size=(DRAWS, len(values)))
    return values[draws].mean(1)
