"""Benchmarks, through lm-evaluation-harness (Gao et al. 2024): the real ones by name, and the lab's own tasks.

The lab's tasks are YAML files in `tasks/`, which the harness's command line reads too: `command` gives the line that
makes the same scores. HumanEval is there as well, for its programs are to run in the lab's sandbox and nowhere else; of
the harness's other tasks those that run what a model wrote are refused. What a model scored is kept beside its run, in
benchmarks.json.
"""

import contextlib
import functools
import hashlib
import io
import json
import logging
import warnings
from importlib.metadata import version
from pathlib import Path

from labkit import models, runs
from labkit.errors import ConfigError, LabError
from labkit.evaluate import code, items, sandbox

TASKS = Path(__file__).parent / "tasks"
LAB_TASKS = tuple(sorted(file.stem for file in TASKS.glob("*.yaml")))
DATASETS = {
    "humaneval": code.humaneval_dataset,
    "lab_functions": code.functions_dataset,
    "lab_hellaswag": items.lab_hellaswag,
    "lab_mmlu": items.lab_mmlu,
}
IN_SANDBOX = ("humaneval", "lab_functions")  # where their programs run
BATCH_SIZE = 16
FILE = "benchmarks.json"


class BenchmarkError(LabError):
    """A benchmark cannot be had here."""


def evaluate(
    model, tokenizer, tasks: list[str], *, folder: Path | None = None, limit: int | None = None, chat: bool = False
) -> dict[str, dict]:
    """{task: result} for tasks of the lab (LAB_TASKS) or any name that lm-evaluation-harness knows ("mmlu").

    A result is {metrics: {acc: (share, standard error)}, random: what guessing scores, items: how many,
    correct: {acc: [0 or 1 per item]}}. That of a group such as mmlu has the harness's own score of the whole in
    `metrics`, and in place of `correct` the results of its tasks, parts: {mmlu_astronomy: result}.
    limit: only the first so many items of a task. chat: the prompt goes through the model's chat template. folder: the
    run's, where results are kept and found again. Raises ConfigError for an unknown task, BenchmarkError where a
    task's data cannot be fetched, or where it runs generated code and no sandbox is there for it.
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

    manager = _manager(not set(names) <= set(LAB_TASKS))
    for task in names:
        if task not in manager.task_index:
            remedy = f"The lab's: {', '.join(LAB_TASKS)}. The harness's: `python -m lm_eval ls tasks`."
            raise ConfigError("task must be one of the lab's or of lm-evaluation-harness", got=task, remedy=remedy)
        if task in IN_SANDBOX and (refusal := sandbox.refusal()):
            raise BenchmarkError(f"{task} must have a sandbox for its programs", got=refusal, remedy="Leave it out.")
    lm = HFLM(pretrained=model.to(models.device()).eval(), tokenizer=tokenizer, batch_size=BATCH_SIZE)
    for task, name in names.items():
        kept[name] = {task: _result(_run(lm, manager, task, limit, chat), task)}
        if folder:
            runs.write_json(folder / FILE, kept)


@functools.cache
def _manager(defaults: bool):
    """The harness's index of tasks: the lab's, and the harness's own, which takes seconds."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=str(TASKS), include_defaults=defaults)


def read(folder: Path) -> dict[str, dict[str, dict]]:
    """What is kept in a run's folder: {`key`: {task: result}}, of this harness's version only.

    Of a group the lab once kept the parts alone, without the group's own result: those are left out too.
    """
    file = folder / FILE
    kept = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    now = f"lm-eval {version('lm-eval')}"
    return {name: found for name, found in kept.items() if name.endswith(now) and name.split(", ")[0] in found}


def key(task: str, limit: int | None, chat: bool) -> str:
    """Under what name a task's results are kept; of a task of the lab, a hash of its items is part of it."""
    size = f"first {limit}" if limit else "whole"
    asked = f"items {_items_hash(task)}, " if task in DATASETS else ""
    asked += f"{code.NEW_TOKENS} new tokens, " if task == "humaneval" else ""  # they once were 512
    return f"{task}, {size}, {'chat' if chat else 'plain'}, {asked}lm-eval {version('lm-eval')}"


@functools.cache
def _items_hash(task: str) -> str:
    rows = DATASETS[task]()["test"].to_list()
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:8]


def command(checkpoint: Path, task: str, limit: int | None = None, chat: bool = False) -> list[str]:
    """The harness's own command line, after `python -m lm_eval`, for the same task, model and number format."""
    parts = ["run", "--model", "hf", "--model_args", f"pretrained={checkpoint},dtype=float32", "--tasks", task]
    parts += ["--include_path", str(TASKS), "--batch_size", str(BATCH_SIZE), "--device", models.device()]
    if task == "humaneval" and (room := _context(checkpoint)) <= code.NEW_TOKENS:
        parts += ["--gen_kwargs", f"max_gen_toks={room // 2}"]
    return parts + (["--limit", str(limit)] if limit else []) + (["--apply_chat_template"] if chat else [])


def _context(checkpoint: Path) -> int:
    """Tokens that the checkpoint's model can read; many, where its configuration does not say."""
    config = json.loads((Path(checkpoint) / "config.json").read_text(encoding="utf-8"))
    return config.get("max_position_embeddings", 2**20)


def _run(lm, manager, task: str, limit: int | None, chat: bool) -> dict:
    """The harness's results of one task or group. Raises BenchmarkError where it cannot be run here."""
    import lm_eval

    _refuse_unsafe(task, [(manager.task_index[task].cfg or {}).get("unsafe_code")])  # before its code is loaded
    bars = io.StringIO()
    try:
        with contextlib.redirect_stderr(bars):
            loaded = manager.load([task])
    except (OSError, ImportError) as error:  # ConnectionError of datasets, OfflineModeIsEnabled, a missing extra
        remedy = f"Run it where huggingface.co can be reached, or take one of the lab's: {', '.join(LAB_TASKS)}."
        what = f"the data of benchmark {task} must be reachable"
        raise BenchmarkError(what, got=_last_line(error), remedy=remedy) from error
    _refuse_unsafe(task, [getattr(one, "UNSAFE_CODE", False) for one in loaded["tasks"].values()])
    for name, one in loaded["tasks"].items():
        _leave_room(lm, name, one)
    options = {"limit": limit, "apply_chat_template": chat, "batch_size": BATCH_SIZE}
    tasks = [loaded["groups"][task]] if task in loaded["groups"] else [*loaded["tasks"].values()]
    with contextlib.redirect_stderr(bars):
        return lm_eval.simple_evaluate(model=lm, tasks=tasks, task_manager=manager, **options)


def _refuse_unsafe(task: str, unsafe: list[bool]) -> None:
    """Refuse what the harness would run in this process, and advises to allow."""
    if any(unsafe):
        what = f"a benchmark that runs generated code must be one of {', '.join(IN_SANDBOX)}"
        raise BenchmarkError(what, got=task, remedy="Take one of those: they run it in the lab's sandbox.")


def _leave_room(lm, name: str, task) -> None:
    """Where a task asks for more new tokens than the context holds, half of it is for them, with a warning."""
    asked = (task.config.generation_kwargs or {}).get("max_gen_toks", lm.max_gen_toks)
    if task.config.output_type == "generate_until" and asked >= lm.max_length:
        half = lm.max_length // 2
        task.set_config("generation_kwargs", {"max_gen_toks": half}, update=True)
        room = f"this model reads {lm.max_length:,} in all: it may write {half:,}"
        warnings.warn(f"{name} allows {asked:,} new tokens, and {room}", stacklevel=2)


def _last_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[-1] if str(error).strip() else ''}"


def _result(found: dict, task: str) -> dict:
    """A task's or a group's part of what the harness returns; of several filters of an answer, the first alone."""
    if task not in found["samples"]:
        parts = {part: _result(found, part) for part in found["samples"]}
        first = next(iter(found["samples"].values()))[0]["filter"]
        return {
            "metrics": _metrics(found["results"].get(task, {}), first),
            "random": sum(part["random"] for part in parts.values()) / len(parts),
            "items": sum(part["items"] for part in parts.values()),
            "parts": parts,
        }
    first = found["samples"][task][0]["filter"]
    samples = [row for row in found["samples"][task] if row["filter"] == first]
    metrics = _metrics(found["results"][task], first)
    choices = [len(row["arguments"]) for row in samples if found["configs"][task]["output_type"] == "multiple_choice"]
    return {
        "metrics": metrics,
        "random": sum(1 / number for number in choices) / len(choices) if choices else 0.0,
        "items": len(samples),
        "correct": {name: [row[name] for row in samples] for name in metrics if name in samples[0]},
    }


def _metrics(numbers: dict, first: str) -> dict[str, list]:
    """{metric: [value, standard error]} of the harness's {"acc,none": value, "acc_stderr,none": ...}."""
    after = {name.split(",")[0]: value for name, value in numbers.items() if name.endswith(f",{first}")}
    return {name: [after[name], after.get(f"{name}_stderr")] for name in after if "_stderr" not in name}
