"""The leaderboard: every run with benchmark results, ranked, with what the ranks are worth.

A score is normalised so that guessing gives 0 and all right gives 100, averaged over the parts of a task where it is a
group such as mmlu, and then over the tasks, as Open LLM Leaderboard 2 does (Fourrier et al. 2024):

    score = 100 mean_tasks mean_parts max(0, (share - random) / (1 - random))

So a group of 57 subjects counts as much as a task of one piece.

Whether two ranks are apart is asked of the items, which all runs share: a paired bootstrap of the difference (Koehn
2004). Where its 95% interval holds 0, the order is noise.
"""

import re
from pathlib import Path

import numpy as np

from labkit import lineage, runs
from labkit.errors import ConfigError
from labkit.evaluate import benchmarks

METRICS = ("acc_norm", "acc", "pass@1")  # of a task's metrics the first that it has, in all its parts


def parts(result: dict) -> list[dict]:
    """What a task's score is the mean of: a group's own tasks in the order of their names, or the task itself."""
    return [part for _, part in sorted(result["parts"].items())] if "parts" in result else [result]


def metric(result: dict) -> str:
    """The metric that a task is ranked by: acc_norm where it has one, else acc, else pass@1; else ConfigError."""
    found = [name for name in METRICS if all(name in part["correct"] for part in parts(result))]
    if not found:
        remedy = "Leave this task out of the leaderboard."
        raise ConfigError(
            f"a ranked task must have one of {', '.join(METRICS)}", got=[*result["metrics"]], remedy=remedy
        )
    return found[0]


def share(result: dict) -> float:
    """What the task scores by that metric, as the harness counts it; of a group that has no own score, the mean."""
    name = metric(result)
    if name in result["metrics"]:
        return float(result["metrics"][name][0])
    return float(np.mean([np.mean(part["correct"][name]) for part in parts(result)]))


def normalised(share: float, random: float) -> float:
    """100 for all right, 0 for what guessing gives or less."""
    return 100 * max(0.0, (share - random) / (1 - random))


def score(results: dict[str, dict]) -> float:
    """The mean of the normalised scores over {task: result}. Raises ConfigError where there is none."""
    if not results:
        raise ConfigError("results must hold at least one task", got=results, remedy="Run a benchmark first.")
    found = []
    for one in results.values():
        name = metric(one)
        found.append(np.mean([normalised(np.mean(part["correct"][name]), part["random"]) for part in parts(one)]))
    return float(np.mean(found))


def difference(first: dict[str, dict], second: dict[str, dict], *, draws: int = 2000, seed: int = 0) -> tuple:
    """(difference of the scores, low, high), 95%, by redrawing the items of each task for both at once.

    first, second: {task: result} of the same tasks and items. Raises ConfigError where they are not.
    """
    if _items(first) != _items(second):
        remedy = "Run the same tasks with the same limit on both."
        raise ConfigError("two results must be of the same items", got=(sorted(first), sorted(second)), remedy=remedy)
    low, high = np.quantile(redrawn(first, draws, seed) - redrawn(second, draws, seed), [0.025, 0.975])
    middle = score(first) - score(second)
    return middle, min(float(low), middle), max(float(high), middle)


def _items(results: dict[str, dict]) -> dict[str, dict[str, int]]:
    """{task: {part: how many items}}."""
    return {
        task: {name: part["items"] for name, part in one.get("parts", {task: one}).items()}
        for task, one in results.items()
    }


def redrawn(results: dict[str, dict], draws: int = 2000, seed: int = 0) -> np.ndarray:
    """The score in each redraw of the items, (draws,): all runs have the same redraws, and so paired differences."""
    rng, scores = np.random.default_rng(seed), np.zeros(draws)
    for _, one in sorted(results.items()):
        name, among = metric(one), parts(one)
        for part in among:
            right = np.asarray(part["correct"][name], dtype=float)
            shares = right[rng.integers(len(right), size=(draws, len(right)))].mean(axis=1)
            better = np.maximum(0.0, (shares - part["random"]) / (1 - part["random"]))
            scores += 100 * better / len(among) / len(results)
    return scores


def stored(tasks: list[str], *, limit: int | None = None, chat: bool = False) -> dict[str, dict[str, dict]]:
    """{name: {task: result}} of every folder in the run store that has results of all these tasks; see `waiting`."""
    keys = [benchmarks.key(task, limit, chat) for task in tasks]
    found = {}
    files = [file for depth in ("*", "*/*") for file in sorted(runs.runs_dir().glob(f"{depth}/{benchmarks.FILE}"))]
    for file in files:
        kept = benchmarks.read(file.parent)
        if all(key in kept for key in keys):
            found[_name(file.parent)] = {task: one for key in keys for task, one in kept[key].items()}
    return found


def waiting(tasks: list[str], model: str, *, limit: int | None = None, chat: bool = False) -> list[runs.Run]:
    """Finished runs of this model that lack results of these tasks, oldest first: they are not on the leaderboard.

    Reward models are left out, for they write nothing. To rank one: `benchmarks.evaluate(*models.load(run.checkpoint),
    tasks, folder=run.path)`.
    """
    keys = {benchmarks.key(task, limit, chat) for task in tasks}
    return [
        run
        for run in runs.all_runs()
        if run.status == "finished" and run.config.get("model") == model and run.stage != "reward"
        if run.checkpoint.is_dir() and not keys <= set(benchmarks.read(run.path))
    ]


def table(results: dict[str, dict[str, dict]]) -> list[dict]:
    """Rows of the leaderboard, best first: {rank, model, score, one share a task, behind, apart}.

    behind: the points behind the row above, with its interval; apart: whether that interval leaves out 0. rank: one
    more than the runs that are surely better, of which the interval of the difference lies above 0; so a run may have
    a better rank than one above it that is surely worse than the first.
    """
    order = sorted(results, key=lambda name: -score(results[name]))
    scores, rows = {name: redrawn(results[name]) for name in order}, []
    for place, name in enumerate(order):
        mine = results[name]
        better = sum(np.quantile(scores[above] - scores[name], 0.025) > 0 for above in order[:place])
        row = {"rank": 1 + int(better), "model": name, "score": score(mine)}
        row |= {task: share(one) for task, one in mine.items()}
        if place:
            gap, low, high = difference(results[order[place - 1]], mine)
            row |= {"behind": f"{gap:.1f} [{low:.1f}, {high:.1f}]", "apart": "yes" if low > 0 else "no"}
        else:
            row |= {"behind": "", "apart": ""}
        rows.append(row)
    return rows


def _name(folder: Path) -> str:
    """What the reader calls this run; the shipped base's and smol's folders have no run.json, but their place."""
    if not (folder / "run.json").exists():
        return re.sub("[0-9a-f]{9,}", lambda found: found[0][:8], folder.relative_to(runs.runs_dir()).as_posix())
    run = runs.get(folder.name)
    return lineage.label(run) or run.id
