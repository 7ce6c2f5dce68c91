"""A sweep: one notebook executed for every combination of some parameters' values, and one table of what each found.

It can be interrupted and repeated: a combination that a record of the store has already is read from there.
"""

import json
from collections.abc import Callable
from itertools import product

from labkit.errors import ConfigError, NotebookError
from labkit.evaluate import intervals
from labkit.execute import find_notebook, run_notebook
from labkit.parameters import as_declared, check_parameters
from labkit.records import find_record, text_table


def sweep(notebook: str, grid: dict[str, list], say: Callable = print) -> list[dict]:
    """The records of all combinations of the values in `grid` ({parameter: values}), each with its own as "varied".

    All are checked before anything runs: raises ConfigError for an unknown notebook, parameter or value. One that fails
    does not end the sweep: its record holds the "error", and it is tried again the next time.
    """
    path = find_notebook(notebook)
    combinations = [dict(zip(grid, values, strict=True)) for values in product(*grid.values())]
    if not grid or not combinations:
        raise ConfigError("a sweep needs at least one value of a parameter", got=grid, remedy="Write beta=0.1,0.3.")
    for one in combinations:
        check_parameters(path.stem, one)
    combinations = [as_declared(path.stem, one, paths=True) for one in combinations]
    found = []
    for number, one in enumerate(combinations, 1):
        record = find_record(path.stem, one)
        say(f"{number} of {len(combinations)}: {described(one)}{', recorded already' if record else ''}")
        if record is None:
            try:
                record = json.loads((run_notebook(path, one) / "record.json").read_text(encoding="utf-8"))
            except NotebookError as error:
                record = {"metrics": {}, "verdicts": [], "seconds": None, "error": {"message": str(error)}}
        found.append({**record, "varied": one})
    return found


def described(values: dict) -> str:
    """The values on one line, as -p takes them."""
    return " ".join(f"{name}={value}" for name, value in values.items())


def table(found: list[dict]) -> str:
    """One column for each combination, one line for each metric and each verdict.

    Combinations that differ only in the seed share a column: the mean over their seeds and its 95% interval (Student's
    t). Those that failed are left out of it and counted.
    """
    columns: dict[str, list[dict]] = {}
    for one in found:
        rest = {name: value for name, value in one["varied"].items() if name != "seed"}
        columns.setdefault(described(rest) or "all", []).append(one)
    done = {column: [one for one in records if "error" not in one] for column, records in columns.items()}
    metrics = dict.fromkeys(name for records in done.values() for one in records for name in one["metrics"])
    claims = dict.fromkeys(
        verdict["claim"] for records in done.values() for one in records for verdict in one["verdicts"]
    )
    rows = [("", *columns)]
    rows += [("runs", *(f"{len(done[c])} of {len(columns[c])}" for c in columns))]
    rows += [("seconds", *(_mean([one["seconds"] for one in records]) for records in done.values()))]
    rows += [(name, *(_mean([one["metrics"].get(name) for one in r]) for r in done.values())) for name in metrics]
    for claim in claims:
        said = {
            column: [v["verdict"] for one in r for v in one["verdicts"] if v["claim"] == claim]
            for column, r in done.items()
        }
        rows.append((f"claim {claim}", *("; ".join(dict.fromkeys(words)) or "-" for words in said.values())))
    return text_table(rows)


def _mean(values: list[float | None]) -> str:
    values = [value for value in values if value is not None]
    if not values:
        return "-"
    middle, low, high = intervals.mean(values)
    return f"{middle:.4g} [{low:.4g}, {high:.4g}]" if len(values) > 1 else f"{middle:.4g}"
