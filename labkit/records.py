"""Records: what one execution of a notebook found, in runs/notebooks/NAME/STAMP/record.json.

The last code cell of every notebook calls `labkit.record(...)`. The runner (execute.py) puts the executed notebook
beside it. Scripts read the numbers from here, without opening a notebook.
"""

import json
import math
import os
import re
import warnings
from collections.abc import Iterable
from dataclasses import asdict
from datetime import datetime
from pathlib import Path

from labkit.config import Config, sized
from labkit.errors import RunError
from labkit.parameters import check_parameters, seconds_since_configure
from labkit.runs import now, peak_rss_mb, plain_number, runs_dir, versions, write_json
from labkit.verdicts import Verdict

SNAKE_CASE = re.compile(r"[a-z][a-z0-9_]*")


def record(notebook: str, config: Config, metrics: dict, verdicts: Iterable[Verdict] = ()) -> Path:
    """Keep what a notebook found; returns the path of record.json and prints one line.

    metrics: finite numbers under snake_case names. verdicts: what `labkit.verdict` returned. Seconds count from
    `configure`; the memory peak is this process's own. Writes into the folder LABKIT_RECORD_DIR where the runner set
    it, else into a new stamped folder. Raises ConfigError for an unknown notebook, RunError for a bad metric.
    """
    check_parameters(notebook, config.as_dict())
    verdicts = [verdicts] if isinstance(verdicts, Verdict) else list(verdicts)
    for one in verdicts:
        if not isinstance(one, Verdict):
            raise RunError(
                "verdicts must come from labkit.verdict", got=one, remedy="Verdicts are computed, not typed."
            )
    content = {
        "notebook": notebook,
        "parameters": config.as_dict(),
        "metrics": {name: _metric(name, value) for name, value in metrics.items()},
        "verdicts": [asdict(one) for one in verdicts],
        "versions": versions(),
        "seed": config.seed,
        "seconds": _rounded(seconds_since_configure()),
        "peak_rss_mb": peak_rss_mb(),
        "date": now(),
    }
    folder = Path(os.environ["LABKIT_RECORD_DIR"]) if os.environ.get("LABKIT_RECORD_DIR") else new_folder(notebook)
    write_json(folder / "record.json", content)
    print(f"recorded {len(content['metrics'])} metrics in {folder.name}/record.json")
    return folder / "record.json"


def record_failure(folder: Path, notebook: str, parameters: dict, seconds: float, error: dict) -> None:
    """Keep that a notebook failed: `error` holds plain texts and numbers. What it had recorded before stays."""
    before = _read(folder / "record.json") or {"notebook": notebook, "parameters": parameters, "metrics": {}}
    about = {"verdicts": [], "versions": versions(), "seed": parameters.get("seed"), "peak_rss_mb": None}
    write_json(folder / "record.json", {**about, **before, "seconds": round(seconds, 3), "date": now(), "error": error})


def new_folder(notebook: str) -> Path:
    """A new folder runs/notebooks/NAME/STAMP; a second one in the same second gets a number."""
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    for number in range(1, 10_000):
        folder = runs_dir() / "notebooks" / notebook / (stamp if number == 1 else f"{stamp}-{number}")
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            continue
    raise RunError(f"{notebook} must find a free folder for {stamp}", remedy=f"Clear {runs_dir() / 'notebooks'}.")


def latest_records() -> dict[str, dict]:
    """The newest record of each notebook that ran to its end, with its file under "path". Unreadable ones warn.

    Those of the model "smoke", which test the plumbing, stand in for no other: they count where there is none but them.
    """
    newest: dict[str, dict] = {}
    for file in sorted(runs_dir().glob("notebooks/*/*/record.json")):
        one = _read(file)
        if one is None:
            warnings.warn(f"{file} cannot be read as a record. Delete its folder.", stacklevel=2)
        elif "error" not in one and _weight(one) > _weight(newest.get(one["notebook"], {"date": ""})):
            newest[one["notebook"]] = {**one, "path": str(file)}
    return dict(sorted(newest.items()))


def _weight(one: dict) -> tuple[bool, str]:
    return one.get("parameters", {}).get("model") != "smoke" and one["date"] != "", one["date"]


def find_record(notebook: str, parameters: dict) -> dict | None:
    """The newest record of an execution with exactly these parameters that ran to its end, or None.

    Parameters left out have the values that the model gives them. The content of files that they name is not compared.
    """
    wanted = sized(check_parameters(notebook, parameters), keep=parameters).as_dict()
    for file in sorted(runs_dir().glob(f"notebooks/{notebook}/*/record.json"), reverse=True):
        one = _read(file)
        if one is not None and "error" not in one and one.get("parameters") == wanted:
            return one
    return None


def records_table(records: Iterable[dict]) -> str:
    """Text: one line for each notebook with its seconds and memory peak, its metrics below it."""
    rows = [("notebook", "seconds", "peak MB")]
    for one in records:
        seconds, peak = one["seconds"], one["peak_rss_mb"]
        shown = ["-" if number is None else f"{number:.0f}" for number in (seconds, peak)]
        rows.append((one["notebook"] + (" (failed)" if "error" in one else ""), *shown))
        rows += [(f"  {name}", f"{value:.4g}", "") for name, value in one["metrics"].items()]
    return text_table(rows)


def text_table(rows: list[tuple[str, ...]]) -> str:
    """Columns of text, two spaces apart, each as wide as its longest entry."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _metric(name: str, value) -> int | float:
    if not isinstance(name, str) or not SNAKE_CASE.fullmatch(name):
        raise RunError(
            "a metric's name must be in snake_case", got=name, remedy='Write for example "held_out_accuracy".'
        )
    value = plain_number(name, value)
    if not math.isfinite(value):
        remedy = "Leave the metric out where it could not be measured, and say so in the notebook."
        raise RunError(f"metric {name} must be finite", got=value, remedy=remedy)
    return value


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)


def _read(file: Path) -> dict | None:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    needed = {"notebook", "metrics", "date"}
    return content if isinstance(content, dict) and needed <= set(content) else None
