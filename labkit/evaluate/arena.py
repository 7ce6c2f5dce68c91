"""The arena: which two answers to put side by side, and the ratings that blind votes on them give.

Bradley and Terry (1952) give each model a strength theta, such that model i wins a decided vote against model j with
probability sigma(theta_i - theta_j). A tie says nothing of who is stronger and is left out; both_bad is counted apart
and rates nobody.
"""

from collections import Counter
from dataclasses import dataclass
from itertools import combinations
from uuid import uuid4

import choix
import numpy as np
from scipy import optimize, special, stats
from scipy.sparse import csgraph

from labkit.errors import ConfigError, DataError

SPARE = 0.1  # wins added each way to every pair that has met: keeps a resample in which one side won all finite
ELO = 400 / np.log(10)  # Elo points per unit of theta


def new_battle(
    said: dict[str, list[dict]], votes: list[dict], rng: np.random.Generator, adaptive: bool = True
) -> dict | None:
    """A battle to vote on: {id, models {a, b}, prompt, question, answers {a, b}}, its sides drawn by chance.

    said: each model's rows {id, prompt, text}, matched by id. A pair is asked a question on which its answers differ
    (any, where none do), and never twice: that would not be another vote, but the same one again. The pair is
    `next_pair`'s, or a random one, of those with a question left; None where no pair has one. Raises ConfigError for
    fewer than two models, DataError for two without a question in common.
    """
    if len(said) < 2:
        remedy = "Give the answers of two models or more."
        raise ConfigError("said must hold two models to put side by side", got=list(said), remedy=remedy)
    rows = {name: {row["id"]: row for row in answers} for name, answers in said.items()}
    seen = {(frozenset(vote["models"].values()), vote.get("question")) for vote in votes}
    left = {}
    for pair in combinations(said, 2):
        one, two = (rows[name] for name in pair)
        shared = [number for number in one if number in two]
        if not shared:
            remedy = "Give answers to the same questions, with the same ids."
            raise DataError("two models must have a question in common", got=list(pair), remedy=remedy)
        differ = [n for n in shared if one[n]["text"].strip() != two[n]["text"].strip()]
        left[pair] = [n for n in differ or shared if (frozenset(pair), n) not in seen]
    pairs = [pair for pair, numbers in left.items() if numbers]
    if not pairs:
        return None
    pair = next_pair(votes, pairs, rng, said) if adaptive else pairs[rng.integers(len(pairs))]
    question = left[pair][rng.integers(len(left[pair]))]
    a, b = pair if rng.random() < 0.5 else pair[::-1]
    answers = {side: rows[name][question]["text"] for side, name in (("a", a), ("b", b))}
    about = {"prompt": rows[a][question]["prompt"], "question": question}
    return {"id": uuid4().hex, "models": {"a": a, "b": b}, **about, "answers": answers}


@dataclass(frozen=True)
class Ratings:
    """Bradley-Terry strengths in log-odds; arrays follow `models`.

    Strengths are centred: their mean over the models with a finite one is 0. So a strength, and its interval, is about
    the middle of just these models, and another model beside them moves it; `difference` does not depend on that.

    low, high: 95% intervals, one model at a time. draws (resamples, models): the bootstrap's strengths. A model that
    won or lost everything has the strength inf or -inf and an interval with one finite end; one that cannot be compared
    has nan. notes: what was said of such models. wins: wins[i, j], what the strengths were found from: without ties, or
    with ties as halves.
    """

    models: tuple[str, ...]
    voter: str
    strengths: np.ndarray
    low: np.ndarray
    high: np.ndarray
    draws: np.ndarray
    wins: np.ndarray
    counts: Counter
    notes: tuple[str, ...]

    def rows(self) -> list[dict]:
        """A table, the strongest first, in log-odds and in Elo points (1000 is the average)."""
        order = np.argsort(-np.nan_to_num(self.strengths, nan=-np.inf), kind="stable")
        return [
            {
                "model": self.models[n], "strength": float(self.strengths[n]),
                "95% interval": f"[{self.low[n]:.2f}, {self.high[n]:.2f}]",
                "Elo points": f"{1000 + ELO * self.strengths[n]:.0f}",
                "votes that count": f"{self.wins[n].sum() + self.wins[:, n].sum():.0f}", "voter": self.voter,
            }
            for n in order
        ]  # fmt: skip

    def together(self) -> tuple[np.ndarray, np.ndarray]:
        """(low, high), each (models,): wider intervals that hold all finite strengths at once with 95%."""
        rated, low, high = np.isfinite(self.strengths), self.low.copy(), self.high.copy()
        if rated.any():
            low[rated], high[rated] = _around(self.strengths[rated], self.draws[:, rated], together=True)
        return low, high

    def difference(self, one: str, two: str) -> tuple[float, float, float]:
        """(estimate, low, high) of theta_one - theta_two; nan, -inf, inf where one of them has no finite strength."""
        i, j = self.models.index(one), self.models.index(two)
        if not np.isfinite(self.strengths[[i, j]]).all():
            return float("nan"), float("-inf"), float("inf")
        gap = self.strengths[i] - self.strengths[j]
        low, high = _around(gap, self.draws[:, i] - self.draws[:, j])
        return float(gap), float(low), float(high)


def ratings(votes: list[dict], models=None, *, draws: int = 500, seed: int = 0, ties: str = "drop") -> Ratings:
    """Ratings by choix, with intervals from the normal bootstrap over votes (Efron and Tibshirani 1993, chapter 13).

    models: those to rate, all where none are given; votes on others are left out. ties: with "drop" a strength is the
    log-odds of winning a decided vote, whether ties come at any rate of their own or more between equals, as in
    Davidson's model (1970); with "half", half a win for each, it is the log-odds of the expected score, which every tie
    pulls towards 0. Without ties both are the same. Raises DataError where there is no vote, or votes of several voters
    are mixed; ConfigError for another `ties`.
    """
    if ties not in ("half", "drop"):
        raise ConfigError("ties must be half or drop", got=ties, remedy='Write ties = "drop".')
    voters = sorted({vote["voter"] for vote in votes})
    if len(voters) != 1:
        raise DataError("votes must be there, and of one voter", got=voters, remedy="Read them with voter=...")
    models = tuple(models or sorted({name for vote in votes for name in vote["models"].values()}))
    votes = _among(votes, models)
    counts = Counter(vote["choice"] for vote in votes)
    left, right, score = _scores(votes, models, ties)
    wins = _wins(left, right, score, len(models))
    core, notes = _core(wins, models)
    strengths, low, high = (np.full(len(models), value) for value in (np.nan, -np.inf, np.inf))
    found = np.full((draws, len(models)), np.nan)
    if len(core) > 1:
        strengths[core] = _fit(wins[np.ix_(core, core)])
        inside = np.isin(left, core) & np.isin(right, core)
        rng, place = np.random.default_rng(seed), np.searchsorted(core, np.stack([left, right]))[:, inside]
        for n in range(draws):
            drawn = rng.integers(inside.sum(), size=inside.sum())
            found[n, core] = _fit(_wins(*place[:, drawn], score[inside][drawn], len(core)))
        low[core], high[core] = _around(strengths[core], found[:, core])
        for n in set(range(len(models))) - set(core):
            strengths[n], low[n], high[n] = _outside(wins, n, core, strengths)
    return Ratings(models, voters[0], strengths, low, high, found, wins, counts, tuple(notes))


def elo(votes: list[dict], models, *, k: float = 16.0, start: float = 1000.0) -> np.ndarray:
    """Elo's ratings (models,) after the votes in the order given; another order gives others. A tie is half a win."""
    rating = dict.fromkeys(models, start)
    for vote in _among(votes, models):
        if vote["choice"] != "both_bad":
            a, b = vote["models"]["a"], vote["models"]["b"]
            step = k * (_score(vote) - special.expit((rating[a] - rating[b]) / ELO))
            rating[a], rating[b] = rating[a] + step, rating[b] - step
    return np.array([rating[name] for name in models])


def next_pair(
    votes: list[dict], pairs: list[tuple[str, str]], rng: np.random.Generator, models=None
) -> tuple[str, str]:
    """The pair whose vote is expected to reduce the summed variance of all strengths most; chance among equals.

    One decided vote on a pair adds the information w = p (1 - p) along x = e_i - e_j; by Sherman and Morrison the trace
    of the covariance P falls by w |P x|^2 / (1 + w x'P x). The pair's share of decided votes up to now, with one more
    taken for decided, is the chance that its next one is. models: all that are rated, those of the pairs where none
    are given.
    """
    models = sorted(models or {name for pair in pairs for name in pair})
    spread, share = covariance(votes, models)
    asked = Counter(frozenset(vote["models"].values()) for vote in votes)
    decided = Counter(frozenset(vote["models"].values()) for vote in votes if vote["choice"] in ("a", "b"))
    gains = []
    for one, two in pairs:
        i, j = models.index(one), models.index(two)
        column, w = spread[:, i] - spread[:, j], share[i, j] * share[j, i]
        chance = (decided[frozenset((one, two))] + 1) / (asked[frozenset((one, two))] + 1)
        gains.append(chance * w * (column @ column) / (1 + w * (column[i] - column[j])))
    best = np.flatnonzero(np.isclose(gains, max(gains), rtol=1e-6))
    return pairs[rng.choice(best)]


def covariance(votes: list[dict], models) -> tuple[np.ndarray, np.ndarray]:
    """(covariance of the strengths by Fisher's information, sigma(theta_i - theta_j)), each (models, models).

    Of decided votes. Every pair is taken to have met once more without a winner, so that it exists from the start.
    """
    wins = _wins(*_scores(_among(votes, models), models, "drop"), len(models)) + (1 - np.eye(len(models))) / 2
    strengths = _fit(wins)
    share = special.expit(strengths[:, None] - strengths)
    weight = (wins + wins.T) * share * share.T
    return np.linalg.pinv(np.diag(weight.sum(axis=1)) - weight), share


def votes_needed(share: float, power: float = 0.8) -> float:
    """Decided votes with which a two-sided 5% test tells a win rate of `share` from 1/2 with this power."""
    if share == 0.5:
        return float("inf")
    z, more = stats.norm.ppf([0.975, power])
    return float(np.ceil(((z / 2 + more * np.sqrt(share * (1 - share))) / (share - 0.5)) ** 2))


def _among(votes: list[dict], models) -> list[dict]:
    """The votes on two of these models."""
    return [vote for vote in votes if set(vote["models"].values()) <= set(models)]


def _score(vote: dict) -> float:
    return {"a": 1.0, "b": 0.0, "tie": 0.5}[vote["choice"]]


def _scores(votes: list[dict], models, ties: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(place of a's model, of b's, a's score) of every vote that rates."""
    place = {name: n for n, name in enumerate(models)}
    kept = [vote for vote in votes if vote["choice"] in (("a", "b", "tie") if ties == "half" else ("a", "b"))]
    left, right = (np.array([place[vote["models"][side]] for vote in kept], dtype=int) for side in "ab")
    return left, right, np.array([_score(vote) for vote in kept])


def _wins(left, right, score, size: int) -> np.ndarray:
    wins = np.zeros((size, size))
    np.add.at(wins, (left, right), score)
    np.add.at(wins, (right, left), 1 - score)
    return wins


def _fit(wins: np.ndarray) -> np.ndarray:
    """Strengths around 0 from the matrix of wins."""
    strengths = choix.ilsr_pairwise_dense(wins + SPARE * (wins + wins.T > 0) + 1e-6 * (1 - np.eye(len(wins))), tol=1e-6)
    return strengths - strengths.mean()


def _around(estimate, draws, together: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """The normal bootstrap's interval. Few votes push strengths outwards, and percentiles would do so once more."""
    sd, reach = np.std(draws, axis=0, ddof=1), stats.norm.ppf(0.975)
    if together:
        reach = np.quantile((abs(draws - draws.mean(axis=0)) / sd).max(axis=1), 0.95)
    return estimate - reach * sd, estimate + reach * sd


def _core(wins: np.ndarray, models) -> tuple[np.ndarray, list[str]]:
    """(places of the models with finite strengths, what to say of the others).

    Strengths are finite among models that each have beaten each other over a chain of wins (Ford 1957).
    """
    label = csgraph.connected_components(wins > 0, directed=True, connection="strong")[1]
    core = np.flatnonzero(label == np.bincount(label).argmax())
    if len(core) == 1:
        return core, ["No two models have both won and lost against each other, over any chain: no rating yet."]
    notes = []
    for n in set(range(len(models))) - set(core):
        won, lost = wins[n, core].sum(), wins[core, n].sum()
        if not won and not lost:
            notes.append(f"{models[n]} has no decided vote with the rated models: it cannot be placed among them.")
        else:
            what = "won" if won else "lost"
            notes.append(
                f"{models[n]} {what} all of its {won + lost:g} decided votes with them: no limit to its strength."
            )
    return core, notes


def _outside(wins: np.ndarray, n: int, core: np.ndarray, strengths: np.ndarray) -> tuple[float, float, float]:
    """(strength, low, high) of a model that won, or lost, every vote with the core: the limit has 2.5% probability."""
    won, lost = wins[n, core], wins[core, n]
    if not (won + lost).any():
        return np.nan, -np.inf, np.inf
    side = 1 if won.any() else -1  # by strong connection it is never both
    limit = optimize.brentq(
        lambda x: (won + lost) @ special.log_expit(side * (x - strengths[core])) - np.log(0.025), -1e3, 1e3
    )
    return (np.inf, limit, np.inf) if side > 0 else (-np.inf, -np.inf, limit)
