"""Whether the arena's intervals hold known strengths as often as they say; never part of the tests' pass or fail.

    python benchmarks/arena.py [--simulations 200]

Strengths are drawn from a normal distribution, votes from them, and `arena.ratings` has only the votes. Ties come about
in three ways: "half" keeps the expected score; "Davidson" is his model (1970); "abstains" is a voter who abstains,
whatever the strengths. Ties count as "half" a win each, or `ratings` has its default and they "drop" out; where there
are none the two are the same. Writes benchmarks/ARENA.md and arena.json.
"""

import argparse
import json
import os
import platform
import sys
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from scipy import special

from labkit.evaluate import arena, intervals, votes

HERE = Path(__file__).parent
# models, votes, spread of the strengths, how ties come about, what `ratings` makes of them
DESIGNS = [
    (3, 100, 1.0, "none", "half"),
    (3, 300, 0.3, "half", "half"),
    (4, 200, 1.0, "half", "half"),
    (5, 100, 1.0, "half", "half"),
    (5, 500, 1.5, "none", "half"),
    (8, 100, 1.0, "none", "half"),
    (8, 250, 1.0, "half", "half"),
    (8, 500, 0.5, "half", "half"),
    (5, 300, 1.0, "Davidson", "half"),
    (5, 300, 1.0, "Davidson", "drop"),
    (5, 300, 1.0, "abstains", "half"),
    (5, 300, 1.0, "abstains", "drop"),
]


def chances(gap: float, ties: str) -> list[float]:
    """Probabilities of a, b and tie at a difference of strengths."""
    share = special.expit(gap)
    tie = {"none": 0.0, "half": 1.6 * share * (1 - share), "abstains": 0.25}.get(ties)
    if ties == "Davidson":  # a : b : tie = exp(gap / 2) : exp(-gap / 2) : 0.8
        parts = np.array([np.exp(gap / 2), np.exp(-gap / 2), 0.8])
        return list(parts / parts.sum())
    if ties == "abstains":
        return [share * (1 - tie), (1 - share) * (1 - tie), tie]
    return [share - tie / 2, 1 - share - tie / 2, tie]


def simulate(design: tuple, seed: int) -> dict:
    """One simulation: which strengths were held, and by how much each was missed."""
    size, count, spread, ties, treated = design
    rng = np.random.default_rng([seed, size, count])
    truth, models, cast = rng.normal(size=size) * spread, [f"m{n}" for n in range(size)], []
    for number in range(count):
        i, j = rng.permutation(size)[:2]
        choice = rng.choice(["a", "b", "tie"], p=chances(truth[i] - truth[j], ties))
        battle = {"id": number, "models": {"a": models[i], "b": models[j]}, "prompt": "", "answers": {}}
        cast.append(votes.filled(battle, choice, votes.SCRIPTED))
    found = arena.ratings(cast, models, draws=200, seed=seed, ties=treated)
    low, high = found.together()
    rated = np.isfinite(found.strengths)
    truth = truth - (truth[rated].mean() if rated.any() else 0.0)
    held = [bool(low <= value <= high) for low, value, high in zip(found.low, truth, found.high, strict=True)]
    return {
        "held": held,
        "all_held": bool(((low <= truth) & (truth <= high)).all()),
        "width": (found.high - found.low)[rated].tolist(),
        "outward": ((found.strengths - truth) * np.sign(truth))[rated].tolist(),
        "unrated": int((~rated).sum()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--simulations", type=int, default=200)
    count = parser.parse_args().simulations
    command, table, kept = "python benchmarks/" + " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]), [], []
    with ProcessPoolExecutor() as pool:
        for design in DESIGNS:
            found = list(pool.map(partial(simulate, design), range(count), chunksize=10))
            each = intervals.mean([np.mean(one["held"]) for one in found])  # strengths of one simulation hang together
            every = intervals.proportion(sum(one["all_held"] for one in found), count)
            width = np.mean(np.concatenate([one["width"] for one in found]))
            outward = np.mean(np.concatenate([one["outward"] for one in found]))
            unrated = sum(one["unrated"] for one in found)
            shown = [f"{share:.1%} [{low:.1%}, {high:.1%}]" for share, low, high in (each, every)]
            row = [*map(str, design), *shown, f"{width:.2f}", f"{outward:+.3f}", str(unrated)]
            table.append("| " + " | ".join(row) + " |")
            kept.append({"design": design, "each": each, "all": every, "width": width, "outward": outward})
            print(table[-1], flush=True)
    heads = ["models", "votes", "spread", "ties come about", "ties count", "each strength held", "all held at once"]
    heads += ["mean width", "bias outwards", "without a finite rating"]
    made = f"Made by `{command}` on {platform.machine()}, Python {platform.python_version()}; {count} simulations each."
    about = "*Each strength held* is the coverage of the intervals as shown, *all held at once* that of `together`."
    lines = [made, "", about, "", "| " + " | ".join(heads) + " |", "|" + " --- |" * len(heads), *table]
    (HERE / "ARENA.md").write_text("\n".join(lines) + "\n")
    (HERE / "arena.json").write_text(json.dumps({"command": command, "simulations": count, "found": kept}, indent=1))


if __name__ == "__main__":
    main()
