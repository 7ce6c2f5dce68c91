"""Run notebooks without a screen: papermill, with parameters checked before anything starts.

Each execution leaves runs/notebooks/NAME/STAMP/ with the executed notebook (saved after every cell, so a failing one
is there up to the failing cell) and record.json. The kernel is the Python that runs this code, whatever kernels are
installed. `papermill notebooks/NAME.ipynb out.ipynb -p beta 0.3` gives the same numbers.
"""

import json
import os
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path

from labkit.config import NOTEBOOKS, Config
from labkit.errors import ConfigError, NotebookError
from labkit.parameters import as_declared, check_parameters
from labkit.records import new_folder, record_failure, records_table
from labkit.runs import runs_dir

NOTEBOOKS_DIR = Path(__file__).resolve().parent.parent / "notebooks"
PAPERMILL_MARKS = {"injected-parameters", "papermill-error-cell-tag"}  # tags of cells that papermill adds
TRACEBACK_TAIL = 15  # lines kept of a failing cell's traceback


def find_notebook(name_or_path: str | Path) -> Path:
    """The notebook's file, from "02", "02_supervised_fine_tuning" or a path. Raises ConfigError where there is none."""
    text = str(name_or_path)
    if text.endswith(".ipynb") or os.sep in text:
        path = Path(text).expanduser().absolute()
        if path.stem not in NOTEBOOKS:
            remedy = f"Its file name says which parameters it has: {', '.join(NOTEBOOKS)}."
            raise ConfigError("notebook must be named as one of the course", got=text, remedy=remedy)
    else:
        names = [name for name in NOTEBOOKS if name == text or (text and name.split("_")[0] == text.zfill(2))]
        if not names:
            near = get_close_matches(text, NOTEBOOKS, n=1, cutoff=0.4)
            hint = f"Did you mean {near[0]}? " if near else ""
            raise ConfigError("notebook is not known", got=text, remedy=f"{hint}Known: {', '.join(NOTEBOOKS)}.")
        path = NOTEBOOKS_DIR / f"{names[0]}.ipynb"
    if not path.is_file():
        raise ConfigError("notebook must be a file", got=str(path), remedy=f"Put it there, or use {NOTEBOOKS_DIR}.")
    return path


def run_notebook(name_or_path: str | Path, parameters: dict | None = None) -> Path:
    """Execute a notebook in its own folder; returns runs/notebooks/NAME/STAMP.

    parameters: values that replace those of the parameters cell; relative paths are the caller's. Raises ConfigError
    before anything runs where one is unknown or not allowed; NotebookError where a cell fails, the kernel dies or
    nothing was recorded.
    """
    parameters = dict(parameters or {})
    path = find_notebook(name_or_path)
    check_parameters(path.stem, parameters)
    parameters = as_declared(path.stem, parameters, paths=True)
    _check_tag(path)
    folder = new_folder(path.stem)
    output, began = folder / path.name, time.monotonic()
    print(f"{path.stem}: running, output in {output}", flush=True)
    with _failure_kept(folder, path.stem, parameters, began):
        _papermill(path, output, parameters, {"LABKIT_RECORD_DIR": str(folder)})
        if not (folder / "record.json").exists():
            remedy = f"End it with a cell that calls labkit.record({path.stem!r}, config, metrics)."
            raise NotebookError(f"{path.stem} must record what it found", remedy=remedy)
    return folder


def run_all(parameters: dict | None = None) -> list[Path]:
    """Execute every notebook in order, then print the table of their records; returns their folders.

    parameters: only those that all notebooks have (model, seed, retrain). The first notebook that fails ends the run.
    Raises ConfigError before anything runs, NotebookError.
    """
    parameters = dict(parameters or {})
    shared = set.intersection(*({field.name for field in fields(kind)} for kind in NOTEBOOKS.values()))
    for name in parameters:
        if name not in shared:
            remedy = f"With --all write one of {', '.join(sorted(shared))}, or run one notebook."
            raise ConfigError(f"{name} is not a parameter of every notebook", got=parameters[name], remedy=remedy)
    for name in NOTEBOOKS:
        find_notebook(name)
        check_parameters(name, parameters)
    folders: list[Path] = []
    try:
        for name in NOTEBOOKS:
            folders.append(run_notebook(name, parameters))
    finally:
        records = [json.loads((folder / "record.json").read_text(encoding="utf-8")) for folder in folders]
        if records:
            print("\n" + records_table(records))
    return folders


def _check_tag(path: Path) -> None:
    """Raise ConfigError where no cell is tagged `parameters`: papermill would set them too early, to no effect."""
    try:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        tagged = sum("parameters" in cell.get("metadata", {}).get("tags", []) for cell in cells)
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError("notebook must be notebook JSON", got=str(error), remedy=f"Save {path} again.") from None
    if tagged != 1:
        remedy = f"Tag the parameters cell of {path} in JupyterLab's property inspector."
        raise ConfigError("notebook must have one cell tagged parameters", got=tagged, remedy=remedy)


def _papermill(path: Path, output: Path, parameters: dict, env: dict[str, str]) -> None:
    """Hand the notebook to papermill; what its cells print goes to our own stdout and stderr as it comes."""
    from papermill import execute_notebook

    execute_notebook(
        _braces_kept(path),
        _braces_kept(output),
        parameters,
        kernel_name="python3",
        language="python",
        kernel_manager_class=_this_python(env),
        cwd=path.parent,
        progress_bar=False,
        stdout_file=sys.stdout,
        stderr_file=sys.stderr,
    )


def _this_python(env: dict[str, str]) -> type:
    """A kernel manager that starts this very Python, with this very labkit and run store, whatever is installed."""
    from ipykernel.kernelspec import get_kernel_dict
    from jupyter_client import AsyncKernelManager
    from jupyter_client.kernelspec import KernelSpec

    package_root = str(Path(__file__).resolve().parent.parent)
    search = [package_root, *filter(None, [os.environ.get("PYTHONPATH")])]
    env = {**env, "PYTHONPATH": os.pathsep.join(search), "LABKIT_RUNS": str(runs_dir())}
    escaped = {name: value.replace("$", "$$") for name, value in env.items()}  # jupyter_client fills in $NAME
    quiet = ["--IPKernelApp.log_level=ERROR"]  # it warns of plain TCP, which is this machine's loopback, keyed
    spec = KernelSpec(**get_kernel_dict(quiet), env=escaped)

    class ThisPython(AsyncKernelManager):
        kernel_spec = spec

    return ThisPython


def _braces_kept(path: Path) -> str:
    return str(path).replace("{", "{{").replace("}", "}}")  # papermill formats paths with the parameters


@contextmanager
def _failure_kept(folder: Path, name: str, parameters: dict, began: float) -> Iterator[None]:
    """Turn whatever ends an execution into a NotebookError, with the error kept in record.json."""
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    saved = folder / f"{name}.ipynb"
    try:
        yield
        return
    except PapermillExecutionError as error:
        trace = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", "\n".join(error.traceback)).splitlines()[-TRACEBACK_TAIL:]
        kept = {"name": error.ename, "message": error.evalue, "cell": _failing_cell(saved), "traceback": trace}
        text = "\n".join(["The end of its traceback:", *trace])
        failure = NotebookError(
            f"cell {kept['cell']} (In [{error.exec_count}]) of {name} must run without an error",
            got=f"{error.ename}: {error.evalue}",
            remedy=f"The notebook is saved up to that cell: {saved}\n{text}",
        )
    except DeadKernelError as error:
        kept = {"name": "DeadKernelError", "message": str(error), "cell": _failing_cell(saved), "traceback": []}
        remedy = f"Most often memory ran out: lower batch_size or the model. Saved up to there: {saved}"
        failure = NotebookError(f"the kernel of {name} must live to the end", got=str(error), remedy=remedy)
    except NotebookError as error:
        kept = {"name": "NotebookError", "message": str(error), "cell": None, "traceback": []}
        failure = error
    except KeyboardInterrupt:
        kept = {"name": "KeyboardInterrupt", "message": "interrupted", "cell": _failing_cell(saved), "traceback": []}
        record_failure(folder, name, _all_parameters(name, parameters), time.monotonic() - began, kept)
        raise
    record_failure(folder, name, _all_parameters(name, parameters), time.monotonic() - began, kept)
    raise failure from None


def _all_parameters(name: str, parameters: dict) -> dict:
    config: Config = check_parameters(name, parameters)
    return config.as_dict()


def _failing_cell(saved: Path) -> int | None:
    """Where the execution ended: the cell's place in the source notebook, counted from 0."""
    import nbformat

    if not saved.exists():
        return None
    cells = [
        cell
        for cell in nbformat.read(saved, as_version=4).cells
        if not PAPERMILL_MARKS & set(cell.metadata.get("tags", []))
    ]
    for place, cell in enumerate(cells):
        failed = cell.metadata.get("papermill", {}).get("status") == "failed"
        if failed or any(output.output_type == "error" for output in cell.get("outputs", [])):
            return place
    done = [place for place, cell in enumerate(cells) if cell.get("execution_count")]
    return done[-1] if done else None
