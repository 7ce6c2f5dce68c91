"""Comparison: runs side by side as tables of text, for the widget of notebook 00 and for `python -m labkit compare`.

A table is a list of rows, the first of them its head. Text that a model or a reader wrote stands in it as it is: who
shows a table makes it safe.
"""

from itertools import combinations

from labkit import lineage
from labkit.errors import RunError
from labkit.evaluate import checkers
from labkit.runs import Run


def name(run: Run) -> str:
    """The reader's label for a run, with the id behind it, or the id alone."""
    label = lineage.label(run)
    return f"{label} ({run.id})" if label else run.id


def difference_table(runs: list[Run]) -> list[list[str]]:
    """The settings in which the runs differ; the head alone where they differ in none."""
    rows = [[str(value) for value in row.values()] for row in lineage.differences(runs)]
    return [["differs (None: it has no such setting)", *map(name, runs)], *rows]


def metric_table(runs: list[Run], answers: dict[str, list[dict]]) -> list[list[str]]:
    """What the runs measured, and shares of their judged answers ({run id: rows}) with 95% intervals."""
    columns = [{metric: f"{value:,.7g}" for metric, value in run.metrics.items()} for run in runs]
    for run, cells in zip(runs, columns, strict=True):
        for part, (share, low, high) in checkers.score(answers.get(run.id, [])).items():
            cells[f"answers: {part}"] = f"{share:.1%} [{low:.1%}, {high:.1%}]"
    metrics = dict.fromkeys(metric for cells in columns for metric in cells)
    rows = [[metric, *(cells.get(metric, "-") for cells in columns)] for metric in metrics]
    return [["metric [95% interval, where known]", *map(name, runs)], *rows]


def pair_table(runs: list[Run], answers: dict[str, list[dict]], key: str = "correct") -> list[list[str]]:
    """By how much the runs differ in their answers to the same questions, pair by pair; runs without any are left out.

    key: a part of the gold preference, of lineage.PARTS.
    """
    table = [["run a", "run b", f"{key}: a - b [95% interval]", "reading", "questions"]]
    for a, b in combinations([run for run in runs if answers.get(run.id)], 2):
        try:
            found = lineage.paired_difference(answers[a.id], answers[b.id], key)
        except RunError:  # they answered different tests
            table.append([name(a), name(b), "-", "no question in common", "0"])
            continue
        form = "+.1%" if found["share"] else "+.3g"
        shown = f"{found['difference']:{form}} [{found['low']:{form}}, {found['high']:{form}}]"
        table.append([name(a), name(b), shown, found["reading"], str(found["pairs"])])
    return table
