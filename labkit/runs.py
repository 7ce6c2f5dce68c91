"""The run store: every training is a folder runs/STAGE/ID/.

    run.json       id, stage, status, config, parent, data_hash, versions, seed, metrics, alarms, times, memory, process
    metrics.jsonl  one line per logged step
    checkpoint/    what the stage saves

The id is made from the content: the same stage, code, configuration, parent and data give the same id, so that what
has already run is found instead of trained again. Files are replaced whole, so that a killed process leaves no half a
file.
"""

import ast
import contextlib
import hashlib
import json
import math
import os
import platform
import re
import resource
import shutil
import statistics
import sys
import time
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from difflib import get_close_matches
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from itertools import pairwise
from pathlib import Path

import filelock
import psutil

from labkit import health
from labkit.config import Config
from labkit.errors import RunError

WATCHES = ("budget", "config", "errors", "evaluate", "fetch", "fields", "health", "recorder", "records", "runs")
_held: dict[Path, filelock.BaseFileLock] = {}  # the runs that this process trains
PACKAGES = ("torch", "transformers", "trl", "datasets", "tokenizers", "accelerate", "peft")


def runs_dir() -> Path:
    """Where runs are kept: the environment variable LABKIT_RUNS, else runs/ in the repository or current folder."""
    if os.environ.get("LABKIT_RUNS"):
        return Path(os.environ["LABKIT_RUNS"]).expanduser().absolute()
    root = Path(__file__).resolve().parent.parent
    return (root if (root / "pyproject.toml").exists() else Path.cwd()) / "runs"


def now() -> str:
    """The time in ISO 8601, in UTC, to the microsecond."""
    return datetime.now(UTC).isoformat()


def rank() -> int:
    """Which of the processes that train together this one is, as `accelerate launch` and torchrun number them; or 0.

    The run's folder is written by 0 alone.
    """
    return int(os.environ.get("RANK", 0)) if processes() > 1 else 0


def processes() -> int:
    """How many processes train together."""
    return int(os.environ.get("WORLD_SIZE", 1))


def write_json(path: Path, content: dict) -> None:
    """Write a JSON file whole or not at all."""
    _write_text(path, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_lines(path: Path, rows: Iterable[dict]) -> Path:
    """Write a JSONL file whole or not at all, and the folder for it where there is none; returns the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return path


def _write_text(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8", errors="backslashreplace")  # half a surrogate pair: JSON's \ud83d
    os.replace(temporary, path)


def plain_number(name: str, value) -> int | float:
    """A Python int or float from a number or a numpy or torch scalar; NaN and infinity pass. Raises RunError."""
    with contextlib.suppress(ValueError, RuntimeError):  # an array of another length than one: refused below
        value = value.item() if hasattr(value, "item") else value
    if type(value) not in (int, float):
        raise RunError(f"{name} must be a number", got=value, remedy="Log plain numbers; take .mean() or len() first.")
    return value


def peak_rss_mb() -> float:
    """The most memory (MB = 10^6 bytes) that this process has held at once."""
    try:  # Linux: getrusage would count the parent's memory too, which exec carries over
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="ignore").splitlines()
        return round(next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024 / 1e6, 1)
    except (OSError, StopIteration):
        unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, other systems KiB
        return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6, 1)


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide a result, read without importing them."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def describe_versions(seed: int, device=None, dtype=None) -> str:
    """One line for the top of a notebook: versions, device, dtype (where given) and seed.

    device: what the model will run on; None guesses from the torch build and the machine, without importing torch.
    """
    found = versions()
    if device is None:
        on_mac = sys.platform == "darwin" and platform.machine() == "arm64"
        device = "cuda" if Path("/dev/nvidia0").exists() else "mps" if on_mac else "cpu"
        device = "cpu" if found.get("torch", "").endswith("+cpu") else device
    parts = [f"{name} {found.get(name, 'missing')}" for name in ("python", "torch", "transformers", "trl")]
    parts += [f"device {device}"] + ([f"dtype {str(dtype).removeprefix('torch.')}"] if dtype is not None else [])
    return " | ".join([*parts, f"seed {seed}"])


@dataclass
class Run:
    """One run's folder. Read it through the properties; `reload` after another process has changed it."""

    path: Path
    info: dict = field(default_factory=dict, repr=False)
    _opened: float | None = field(default=None, repr=False)  # time.monotonic() where this process trains the run
    _before: float = field(default=0.0, repr=False)  # seconds trained before it did
    _worked: float = field(default=0.0, repr=False)  # processor seconds before that, less this process's at the opening

    @property
    def id(self) -> str:
        return self.info["id"]

    @property
    def stage(self) -> str:
        return self.info["stage"]

    @property
    def config(self) -> dict:
        return self.info["config"]

    @property
    def parent(self) -> str:
        return self.info["parent"]

    @property
    def metrics(self) -> dict[str, float]:
        return self.info["metrics"]

    @property
    def checkpoint(self) -> Path:
        return self.path / "checkpoint"

    @property
    def status(self) -> str:
        """running, stopped, finished or failed; a run whose process was killed is stopped."""
        killed = self.info["status"] == "running" and not self._alive()
        return "stopped" if killed else self.info["status"]

    def _alive(self) -> bool:
        """Whether the process that trains it lives; on another machine, whether it logged in the last 15 minutes."""
        if self.info.get("host", platform.node()) != platform.node():
            files = (file for file in (self.path / "metrics.jsonl", self.path / "run.json") if file.exists())
            return time.time() - max(file.stat().st_mtime for file in files) < 900
        try:
            began = psutil.Process(self.info["pid"]).create_time()
            return (
                abs(began - self.info.get("process_began", began)) < 10
            )  # seconds: a clock may be set; not a later one
        except (psutil.Error, KeyError, TypeError, ValueError):
            return False

    def elapsed(self) -> float:
        """Seconds trained so far, over all stops and resumes; what run.json says where this process does not train."""
        return self.info["seconds"] if self._opened is None else self._before + time.monotonic() - self._opened

    def processor_seconds(self) -> float:
        """Seconds that processors worked for it, summed over them: what other work on the machine hardly changes."""
        if self._opened is None:
            return self.info.get("processor_seconds", math.nan)
        return self._worked + time.process_time()

    def reload(self) -> "Run":
        """Read run.json again. Raises RunError where it is missing or unreadable."""
        self.info = _read(self.path)
        return self

    def log(self, step: int, **numbers) -> None:
        """Append one line to metrics.jsonl. NaN and infinity are kept as null: a divergence must stay visible.

        Raises RunError for anything but numbers.
        """
        line = {"step": int(plain_number("step", step))}
        for name, value in numbers.items():
            value = plain_number(name, value)
            line[name] = value if math.isfinite(value) else None
        if rank():
            return
        with open(self.path / "metrics.jsonl", "a+b") as file:
            _drop_torn_tail(file)
            file.write(json.dumps(line).encode() + b"\n")

    def history(self) -> list[dict]:
        """The logged lines in order; a last line torn by a kill is left out. Raises RunError for another bad line."""
        file = self.path / "metrics.jsonl"
        lines = file.read_bytes().split(b"\n") if file.exists() else [b""]
        rows = []
        for number, line in enumerate(lines[:-1], 1):  # what follows the last newline is empty or torn
            try:
                rows.append(json.loads(line))
            except ValueError:
                remedy = f"Delete line {number} of {file}."
                raise RunError("metrics.jsonl must hold one JSON object a line", got=line, remedy=remedy) from None
        return rows

    def seconds_per_step(self) -> float:
        """The median over the logged lines, so that looks at held-out data do not count; nan before two lines."""
        paces = self.paces("seconds")
        return statistics.median(paces) if paces else math.nan

    def paces(self, clock: str = "processor_seconds") -> list[float]:
        """What a step took from each logged line to the next, by this clock; [] where it was not kept."""
        rows = [row for row in self.history() if "loss" in row and clock in row]
        lines = [(b[clock] - a[clock], b["step"] - a["step"]) for a, b in pairwise(rows)]
        return [seconds / steps for seconds, steps in lines if steps > 0]

    def rewind(self, step: int, look: bool = True) -> None:
        """Forget what was logged, and sampled, after `step`, before training resumes from a checkpoint of that step.

        look: whether the look at held-out data at that very step was completed; if not, it is forgotten too.
        """
        if rank():
            return
        sure = step if look else step - 1
        rows = [row for row in self.history() if row["step"] <= (step if "loss" in row else sure)]
        write_lines(self.path / "metrics.jsonl", rows)
        samples = self.path / "samples.jsonl"
        if samples.exists():
            lines = samples.read_bytes().split(b"\n")[:-1]  # what follows the last newline is empty or torn
            write_lines(samples, [row for row in map(json.loads, lines) if row["step"] <= sure])

    def finish(self, **metrics) -> "Run":
        """Mark as finished with its final metrics. Raises RunError for a metric that is not a finite number."""
        numbers = {name: plain_number(name, value) for name, value in metrics.items()}
        for name, value in numbers.items():
            if not math.isfinite(value):
                remedy = "The training diverged: lower the learning rate; mark such a run with fail()."
                raise RunError(f"{name} must be finite to finish run {self.id}", got=value, remedy=remedy)
        return self._write(status="finished", metrics={**self.metrics, **numbers})

    def stop(self) -> "Run":
        """Mark as stopped by the user: it can be resumed."""
        return self._write(status="stopped")

    def fail(self, error: BaseException | str) -> "Run":
        """Mark as failed and keep the error."""
        text = error if isinstance(error, str) else f"{type(error).__name__}: {error}"
        return self._write(status="failed", error=text)

    def _write(self, **changes) -> "Run":
        self.info |= changes | {"updated": now()}
        if self._opened is not None:  # seconds add up over a stop and a resume
            self.info["seconds"] = round(self.elapsed(), 3)
            self.info["processor_seconds"] = round(self.processor_seconds(), 3)
            self.info["peak_rss_mb"] = max(self.info["peak_rss_mb"], peak_rss_mb())
        if rank():
            return self
        if self.info["status"] != "running":
            self.info["alarms"] = health.kept(self.history())
        write_json(self.path / "run.json", self.info)
        if self.info["status"] != "running":
            release(self.path)
        return self


def run_id(stage: str, config: Config, parent: str = "", data_hash: str = "") -> str:
    """The id that this content has, such as "sft-nano-1f0c2a9b"."""
    if not re.fullmatch(r"[a-z][a-z0-9_]*", stage):
        raise RunError("stage must be a snake_case name", got=stage, remedy='Use a key of config.STAGES such as "sft".')
    content = {"stage": stage, "config": config.identity(), "parent": parent, "data_hash": data_hash}
    content["code"] = code_hash(stage)
    if os.path.isdir(config.model):  # Path.is_dir raises where a name is too long
        content["weights"] = fingerprint(Path(config.model))
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:8]
    tail = re.split(r"[/\\]", config.model.rstrip("/\\"))[-1]
    tail = re.sub(r"[^A-Za-z0-9_.]+", "-", tail).strip("-.")[:40] or "model"
    return f"{stage}-{tail}-{digest}"


@lru_cache
def code_hash(stage: str) -> str:
    """A short hash of the lab's code that decides what a stage learns: its module and what that imports of the lab.

    What only watches a training (WATCHES) is left out, and so are comments, docstrings and the form of lines.
    """
    root, waiting, found = Path(__file__).parent, [f"stages/{stage}"], {}
    while waiting:
        name = waiting.pop()
        file = root / f"{name}.py"
        if name in found or name.split("/")[0] in WATCHES or not file.is_file():
            continue
        tree = ast.parse(file.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "labkit":
                inside = "/".join(node.module.split(".")[1:])
                names = [inside, *(f"{inside}/{alias.name}".lstrip("/") for alias in node.names)]
                waiting += [one for one in names if name.startswith("stages/") or not one.startswith("stages/")]
            documented = isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))
            if documented and ast.get_docstring(node, clean=False) is not None:
                node.body[0] = ast.Pass()
        found[name] = ast.unparse(tree)
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()[:16]


def hold(path: Path) -> None:
    """Take the lock of a run's folder, which a process holds while it trains; its death, too, frees it.

    Raises RunError where another process has it.
    """
    if path in _held:
        return
    lock = _lock(path)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        info = _read(path) if (path / "run.json").exists() else {}
        holder = f"process {info.get('pid', '?')} on {info.get('host', '?')}"
        remedy = "Wait for its end: the run is then loaded. Or stop it there."
        raise RunError(f"{path.name} must not be trained by two processes at once", got=holder, remedy=remedy) from None
    _held[path] = lock


def release(path: Path) -> None:
    if path in _held:
        _held.pop(path).release()


def held_elsewhere(path: Path) -> bool:
    """Whether another process trains the run in this folder."""
    try:
        with _lock(path).acquire(timeout=0) if path not in _held else contextlib.nullcontext():
            return False
    except filelock.Timeout:
        return True


def _lock(path: Path) -> filelock.BaseFileLock:
    folder = path.parent.parent / ".locks"  # beside the runs, for a run's folder may be deleted
    folder.mkdir(parents=True, exist_ok=True)
    return filelock.FileLock(folder / f"{path.name}.lock", thread_local=False)


def fingerprint(folder: Path) -> str:
    """A short hash of a model's config and of samples of its weights: others in the same folder are another model."""
    digest = hashlib.sha256()
    for file in sorted([*folder.glob("config.json"), *folder.glob("*.safetensors")]):
        size = file.stat().st_size
        digest.update(f"{file.name} {size}".encode())
        with file.open("rb") as opened:
            for start in range(0, size, max(2**16, size // 256)):  # all of it would take minutes for a large model
                opened.seek(start)
                digest.update(opened.read(2**16))
    return digest.hexdigest()[:16]


def open_run(stage: str, config: Config, parent: str | None = None, data_hash: str = "", fresh: bool = False) -> Run:
    """The run of this content: a new folder, or the one that exists, marked as running unless it has finished.

    parent: the id of the run really started from (default: config.parent). data_hash: a hash of the rows trained on.
    fresh=True deletes what exists first (`retrain`). Raises RunError where the existing run.json is unreadable, and
    where another process trains the run.
    """
    parent = getattr(config, "parent", "") if parent is None else parent
    path = runs_dir() / stage / run_id(stage, config, parent, data_hash)
    if not rank():
        hold(path)
    if fresh and path.exists() and not rank():
        shutil.rmtree(path)
    path.mkdir(parents=True, exist_ok=True)
    if (path / "run.json").exists() and not (fresh and rank()):  # 0 may not have deleted it yet
        run = Run(path, _read(path))
        if run.status == "finished":
            release(path)
            return run
    else:
        times, numbers = {"created": now(), "updated": now()}, {"metrics": {}, "seconds": 0.0, "peak_rss_mb": 0.0}
        about = {"parent": parent, "data_hash": data_hash, "seed": config.seed}
        run = Run(path, {"id": path.name, "stage": stage, "status": "running", **about, **numbers, **times})
    run._opened, run._before = time.monotonic(), run.info["seconds"]
    run._worked = run.info.get("processor_seconds", 0.0) - time.process_time()
    run.info.pop("error", None)
    process = {"pid": os.getpid(), "host": platform.node(), "process_began": psutil.Process().create_time()}
    return run._write(status="running", **process, config=config.as_dict(), versions=versions())


def find_run(stage: str, config: Config, parent: str | None = None, data_hash: str = "") -> Run | None:
    """The finished run of this content, or None. Raises RunError where its run.json is unreadable."""
    parent = getattr(config, "parent", "") if parent is None else parent
    path = runs_dir() / stage / run_id(stage, config, parent, data_hash)
    run = Run(path, _read(path)) if (path / "run.json").exists() else None
    return run if run and run.status == "finished" else None


def get(name: str) -> Run:
    """The run with this id, or with the only id that starts so. Raises RunError where none or several do."""
    paths = {path.parent.name: path.parent for path in sorted(runs_dir().glob("*/*/run.json"))}
    found = [name] if name in paths else [one for one in paths if name and one.startswith(name)]
    if len(found) == 1:
        return Run(paths[found[0]], _read(paths[found[0]]))
    if found:
        raise RunError("run must name one run only", got=name, remedy=f"Add letters: {', '.join(found)} start so.")
    near = get_close_matches(name, paths, n=3, cutoff=0.4) or list(paths)[:3]
    hint = f"Near it: {', '.join(near)}." if near else "The store is empty: train a stage first."
    remedy = f"{hint} `python -m labkit runs` lists all."
    raise RunError(f"run must be the id of a run in {runs_dir()}", got=name, remedy=remedy)


def all_runs(stage: str | None = None) -> list[Run]:
    """Every run (of one stage), oldest first. One that cannot be read gives a warning and is left out."""
    runs = []
    for file in sorted(runs_dir().glob(f"{stage or '*'}/*/run.json")):
        try:
            runs.append(Run(file.parent, _read(file.parent)))
        except RunError as error:
            warnings.warn(str(error), stacklevel=2)
    return sorted(runs, key=lambda run: run.info["created"])


def _read(path: Path) -> dict:
    remedy = f"Delete the folder {path} and train again."
    try:
        info = json.loads((path / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"run.json of {path.name} must be readable JSON", got=str(error), remedy=remedy) from None
    needed = {"id", "stage", "status", "config", "parent", "metrics", "seconds", "peak_rss_mb", "created"}
    missing = sorted(needed - set(info)) if isinstance(info, dict) else sorted(needed)
    if missing:
        raise RunError(f"run.json of {path.name} must have {', '.join(missing)}", got=info, remedy=remedy)
    return info


def _drop_torn_tail(file) -> None:
    """Cut off a last line without its newline (the process that wrote it was killed), so that the next stays whole."""
    end = file.seek(0, os.SEEK_END)
    if end and (file.seek(end - 1), file.read(1))[1] != b"\n":
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)
