"""Parameters: the check of every value that reaches a notebook, from its own cell, papermill or the command line.

A notebook's first cell after its parameters cell says

    config = labkit.configure("02_supervised_fine_tuning", globals())
"""

import ast
import dataclasses
import time
from difflib import get_close_matches
from pathlib import Path

from labkit.config import NOTEBOOKS, Config, sized
from labkit.errors import MISSING, ConfigError
from labkit.fields import allowed, check_names, typed

PATHS = ("model", "corpus", "data", "parent", "reward", "judge", "questions")  # parameters that may name a file
NAMES = ("lab", "all", "brief", "tickets", "glossary", "nano", "smol", "smoke", "instruction")  # what is no file's name
_started: float | None = None  # time.monotonic() at the last configure(); records.record() measures from here


def check_parameters(notebook: str, parameters: dict) -> Config:
    """The notebook's Config with these parameters. Raises ConfigError for an unknown notebook, name or value."""
    if notebook not in NOTEBOOKS:
        near = get_close_matches(str(notebook), NOTEBOOKS, n=1, cutoff=0.4)
        hint = f"Did you mean {near[0]}? " if near else ""
        raise ConfigError("notebook is not known", got=notebook, remedy=f"{hint}Known: {', '.join(NOTEBOOKS)}.")
    return NOTEBOOKS[notebook].from_dict(as_declared(notebook, parameters))


def as_declared(notebook: str, parameters: dict, paths: bool = False) -> dict:
    """The parameters in the types that the notebook declares (`fields.typed`). Raises ConfigError for unknown names.

    paths: also make those absolute that lead to a file or folder from the caller's folder, which is not the notebook's.
    """
    check_names(NOTEBOOKS[notebook], parameters)
    fields = {field.name: field for field in dataclasses.fields(NOTEBOOKS[notebook])}
    values = {name: typed(fields[name], value) for name, value in parameters.items()}
    return {**values, **absolute(values)} if paths else values


def absolute(values: dict) -> dict:
    """Those of the values that are paths relative to the current folder, made absolute."""
    texts = {name: value for name, value in values.items() if name in PATHS and isinstance(value, str)}
    paths = {name: Path(text).expanduser() for name, text in texts.items() if text and text not in NAMES}
    return {name: str(path.absolute()) for name, path in paths.items() if path.exists()}


def configure(notebook: str, namespace: dict) -> Config:
    """The Config of a notebook from its own variables; called as `configure("07_dpo", globals())`.

    Checks that the parameters cell set every field, and that a cell which papermill injected sets no unknown name
    (papermill itself only warns). Prints one line where the model has sizes of its own. Starts the clock that
    `record` reads. Raises ConfigError.
    """
    global _started
    _started = time.monotonic()
    check_parameters(notebook, {})  # is the notebook known?
    fields = dataclasses.fields(NOTEBOOKS[notebook])
    names = [field.name for field in fields]
    injected = {name: namespace.get(name, MISSING) for name in _injected(namespace, names)}
    check_names(NOTEBOOKS[notebook], injected)
    for field in fields:
        if field.name not in namespace:
            remedy = (
                f"Add the line {field.name} = {field.default!r} to the parameters cell ({allowed(field)}) and run it."
            )
            raise ConfigError(f"{field.name} must be set in the parameters cell of {notebook}", remedy=remedy)
    config = check_parameters(notebook, {name: namespace[name] for name in names})
    before, fitting = config.as_dict(), sized(config, keep=injected)
    changes = [
        f"{name} {before[name]} -> {value}" for name, value in fitting.as_dict().items() if value != before[name]
    ]
    if changes:
        why = "tests the plumbing only" if config.model == "smoke" else "has sizes of its own"
        print(f"model = {config.model} {why}: {', '.join(changes)}. Set other values to keep them.")
    return fitting


def seconds_since_configure() -> float | None:
    """Seconds since the last `configure` in this process, or None where there was none."""
    return None if _started is None else time.monotonic() - _started


def _injected(namespace: dict, fields: list[str]) -> list[str]:
    """The names assigned by the cell that papermill injected, from IPython's history (`In`); [] without one.

    Only the newest such cell counts, and only where it ran after the parameters cell: so in a long-lived kernel, an
    injected cell that has since been corrected, or removed and the notebook run again, raises no alarm.
    """
    history = namespace.get("In")
    for source in reversed(history if isinstance(history, list) else []):
        names = _assigned(source)
        if source.partition("\n")[0].strip() == "# Parameters":
            return [name for name in names if not name.startswith("PAPERMILL_")]  # papermill's own --inject-paths
        if set(fields) <= set(names):
            return []  # the parameters cell, and nothing was injected after it
    return []


def _assigned(source: str) -> list[str]:
    """The names that the top level of a cell assigns; [] where it is not plain Python."""
    try:
        nodes = ast.parse(source).body
    except SyntaxError:
        return []
    assignments = [node for node in nodes if isinstance(node, (ast.Assign, ast.AnnAssign))]
    targets = [target for node in assignments for target in getattr(node, "targets", None) or [node.target]]
    return [target.id for target in targets if isinstance(target, ast.Name)]
