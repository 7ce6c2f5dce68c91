"""Benchmarks, through lm-evaluation-harness (Gao et al. 2024): the real ones by name, and the lab's own tasks.

The lab's tasks are YAML files in `tasks/`, which the harness's command line reads too: `command` gives the line that
makes the same scores. HumanEval is there as well, for its programs are to run in the lab's sandbox and nowhere else.
What a model scored is kept beside its run, in benchmarks.json.
"""

import contextlib
import functools
import hashlib
import io
import json
import logging
from importlib.metadata import version
from pathlib import Path

from labkit import models, runs
from labkit.errors import ConfigError, LabError
from labkit.evaluate import code, items

TASKS = Path(__file__).parent / "tasks"
LAB_TASKS = tuple(sorted(file.stem for file in TASKS.glob("*.yaml")))
DATASETS = {
    "humaneval": code.humaneval_dataset,
    "lab_functions": code.functions_dataset,
    "lab_hellaswag": items.lab_hellaswag,
    "lab_mmlu": items.lab_mmlu,
}
BATCH_SIZE = 16
FILE = "benchmarks.json"


class BenchmarkError(LabError):
    """A benchmark cannot be had here."""


def evaluate(
    model, tokenizer, tasks: list[str], *, folder: Path | None = None, limit: int | None = None, chat: bool = False
) -> dict[str, dict]:
    """{task: result} for tasks of the lab (LAB_TASKS) or any name that lm-evaluation-harness knows ("mmlu").

    A result is {metrics: {acc: (share, standard error)}, random: what guessing scores, items: how many,
    correct: {acc: [0 or 1 per item]}}; a group such as mmlu gives one result for each subject.
    limit: only the first so many items of a task. chat: the prompt goes through the model's chat template. folder: the
    run's, where results are kept and found again. Raises ConfigError for an unknown task, BenchmarkError where a
    task's data cannot be fetched.
    """
    kept = read(folder) if folder else {}
    names = {task: key(task, limit, chat) for task in tasks}
    missing = [task for task in tasks if names[task] not in kept]
    if missing:
        _fill(kept, model, tokenizer, {task: names[task] for task in missing}, limit, chat, folder)
    return {task: one for name in names.values() for task, one in kept[name].items()}


def _fill(kept: dict, model, tokenizer, names: dict, limit: int | None, chat: bool, folder: Path | None) -> None:
    """Run the tasks of {task: its name in kept} and keep each as soon as it is done."""
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    from lm_eval.models.huggingface import HFLM  # here, for it takes seconds
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(TASKS), include_defaults=not set(names) <= set(LAB_TASKS))
    for task in names:
        if task not in manager.task_index:
            remedy = f"The lab's: {', '.join(LAB_TASKS)}. The harness's: `python -m lm_eval ls tasks`."
            raise ConfigError("task must be one of the lab's or of lm-evaluation-harness", got=task, remedy=remedy)
    lm = HFLM(pretrained=model.to(models.device()).eval(), tokenizer=tokenizer, batch_size=BATCH_SIZE)
    for task, name in names.items():
        found = _run(lm, manager, task, limit, chat)
        kept[name] = {part: _result(found, part) for part in found["samples"]}
        if folder:
            runs.write_json(folder / FILE, kept)


def read(folder: Path) -> dict[str, dict[str, dict]]:
    """What is kept in a run's folder: {`key`: {task: result}}, of this harness's version only."""
    file = folder / FILE
    kept = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    return {name: found for name, found in kept.items() if name.endswith(f"lm-eval {version('lm-eval')}")}


def key(task: str, limit: int | None, chat: bool) -> str:
    """Under what name a task's results are kept; of a task of the lab, a hash of its items is part of it."""
    size = f"first {limit}" if limit else "whole"
    asked = f"items {_items_hash(task)}, " if task in DATASETS else ""
    return f"{task}, {size}, {'chat' if chat else 'plain'}, {asked}lm-eval {version('lm-eval')}"


@functools.cache
def _items_hash(task: str) -> str:
    rows = DATASETS[task]()["test"].to_list()
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:8]


def command(checkpoint: Path, task: str, limit: int | None = None, chat: bool = False) -> list[str]:
    """The harness's own command line, after `python -m lm_eval`, for the same task, model and number format."""
    parts = ["run", "--model", "hf", "--model_args", f"pretrained={checkpoint},dtype=float32", "--tasks", task]
    parts += ["--include_path", str(TASKS), "--batch_size", str(BATCH_SIZE), "--device", models.device()]
    return parts + (["--limit", str(limit)] if limit else []) + (["--apply_chat_template"] if chat else [])


def _run(lm, manager, task: str, limit: int | None, chat: bool) -> dict:
    """The harness's results of one task or group. Raises BenchmarkError where its data cannot be fetched."""
    import lm_eval

    with contextlib.redirect_stderr(io.StringIO()):  # bars
        try:
            manager.load([task])
        except (OSError, ImportError) as error:  # ConnectionError of datasets, OfflineModeIsEnabled, a missing extra
            remedy = f"Run it where huggingface.co can be reached, or take one of the lab's: {', '.join(LAB_TASKS)}."
            what = f"the data of benchmark {task} must be reachable"
            raise BenchmarkError(what, got=_last_line(error), remedy=remedy) from error
        options = {"limit": limit, "apply_chat_template": chat, "batch_size": BATCH_SIZE}
        return lm_eval.simple_evaluate(model=lm, tasks=[task], task_manager=manager, **options)


def _last_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[-1] if str(error).strip() else ''}"


def _result(found: dict, task: str) -> dict:
    """One task's part of what the harness returns; of several filters of an answer, the first alone."""
    first = found["samples"][task][0]["filter"]
    samples = [row for row in found["samples"][task] if row["filter"] == first]
    numbers = {tuple(key.split(",")): value for key, value in found["results"][task].items()}
    after = {key[0]: value for key, value in numbers.items() if key[1:] == (first,)}
    names = [name for name in after if "_stderr" not in name]
    choices = [len(row["arguments"]) for row in samples if found["configs"][task]["output_type"] == "multiple_choice"]
    return {
        "metrics": {name: [after[name], after[f"{name}_stderr"]] for name in names},
        "random": sum(1 / number for number in choices) / len(choices) if choices else 0.0,
        "items": len(samples),
        "correct": {name: [row[name] for row in samples] for name in names if name in samples[0]},
    }
