"""Lineage: which run came from which, what may be done with a run (label, delete), and in what two runs differ."""

import json
import math
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from labkit import runs as store
from labkit.errors import RunError
from labkit.evaluate import intervals
from labkit.runs import Run

TEXTS = ("id", "split", "kind", "prompt", "text")  # what a row of answers.jsonl holds, as evaluate.answers writes it
PARTS = ("correct", "helpful", "concise", "safe", "stopped", "gold")
MAIN_METRICS = ("accuracy", "held_out_accuracy", "bits_per_byte", "held_out_loss", "loss")


@dataclass
class Node:
    """A run, or a model outside the store such as the shipped base (run = None), with the runs that start from it."""

    name: str
    run: Run | None = None
    children: list["Node"] = field(default_factory=list)


def printable(text: object) -> str:
    """The text on one line, without what could steer a terminal or turn the direction of writing."""
    return "".join(sign if sign.isprintable() else "\N{REPLACEMENT CHARACTER}" for sign in str(text))


def label(run: Run) -> str:
    """The name that a reader gave the run with `rename`, or ""."""
    found = run.info.get("label")
    return printable(found)[:60] if isinstance(found, str) else ""


def ancestors(run: Run, runs: Iterable[Run] | None = None) -> list[str]:
    """Names from the run's parent to the root: ids, then a model outside the store where the line began with one."""
    known = {one.id: one for one in (store.all_runs() if runs is None else runs)}
    names: list[str] = []
    while run and run.parent and _parent_in(run, known) not in names:  # only files changed by hand make a circle
        names.append(_parent_in(run, known))
        run = known.get(names[-1])
    return names


def tree(runs: Iterable[Run]) -> list[Node]:
    """The roots of the runs' family trees, each with what came from it, in the order given. A circle is cut."""
    runs, roots = list(runs), {}
    nodes = {run.id: Node(run.id, run) for run in runs}
    for run in runs:
        above = ancestors(run, runs)
        if not above or run.id in above:
            roots[run.id] = nodes[run.id]
        elif above[0] in nodes:
            nodes[above[0]].children.append(nodes[run.id])
        else:
            roots.setdefault(above[0], Node(above[0])).children.append(nodes[run.id])
    return list(roots.values())


def draw(runs: Iterable[Run]) -> str:
    """The trees as text, as the command `tree` draws folders: id, label, stage, status and main metric of each run."""
    lines, waiting = [], [(root, "", "") for root in reversed(tree(runs))]
    while waiting:
        node, lead, below = waiting.pop()
        parts = [node.name, "(not a run in this store)"]
        if run := node.run:
            best = next((f"{name}={run.metrics[name]:.4g}" for name in MAIN_METRICS if name in run.metrics), "")
            parts = [run.id, f'"{label(run)}"' if label(run) else "", run.stage, run.status, best]
        lines.append(lead + "  ".join(printable(part)[:200] for part in parts if part))
        for place, child in reversed(list(enumerate(node.children, 1))):
            corner, bar = ("└── ", "    ") if place == len(node.children) else ("├── ", "│   ")
            waiting.append((child, below + corner, below + bar))
    return "\n".join(lines) or "no runs yet"


def dependents(run_id: str) -> list[Run]:
    """All runs that descend from this one, oldest first: by parent, or through a run that their configuration names."""
    everything = store.all_runs()
    known = {run.id: run for run in everything}
    found, size = {store.get(run_id).id}, 0
    while len(found) > size:
        size = len(found)
        found |= {run.id for run in everything if found & {_parent_in(run, known), *map(str, run.config.values())}}
    return [run for run in everything if run.id in found - {store.get(run_id).id}]


def delete(run_id: str, *, with_dependents: bool = False) -> list[str]:
    """Delete a run's folder (by its whole id), and with_dependents=True all that descends from it; returns the ids.

    Raises RunError, with nothing deleted, where a run depends on it, or one is running or lies outside the store.
    """
    run, below = store.get(run_id), dependents(run_id)
    if run_id != run.path.name:
        raise RunError("run must be a whole id to be deleted", got=run_id, remedy=f"Did you mean {run.path.name}?")
    if below and not with_dependents:
        what = f"with_dependents must be True to delete {run_id}: {', '.join(one.id for one in below)} came from it"
        raise RunError(what, got=False, remedy="Delete those first, or all of them with with_dependents=True.")
    for one in (run, *below):
        if one.status == "running" or store.held_elsewhere(one.path):
            raise RunError(f"{one.id} must not be running to be deleted", got=one.status, remedy="Stop it first.")
        if one.path.is_symlink() or one.path.resolve().parent.parent != store.runs_dir().resolve():
            what, remedy = f"{one.id} must lie in {store.runs_dir()} to be deleted", "It is a link: delete it by hand."
            raise RunError(what, got=str(one.path.resolve()), remedy=remedy)
    doomed = [*reversed(below), run]  # the youngest first: a deletion cut short leaves no run without its parent
    for one in doomed:
        (one.path / "run.json").unlink()  # first, so that half a folder is never taken for a run
        shutil.rmtree(one.path)
    return [one.id for one in doomed]


def rename(run_id: str, name: str) -> Run:
    """Give a run a label; its id is made from its content and stays. Raises RunError for a label that cannot be one."""
    run, name = store.get(run_id), name.strip() if isinstance(name, str) else ""
    if not 1 <= len(name) <= 60 or not name.isprintable() or set(name) & set("/\\"):
        what, remedy = "label must be 1 to 60 printable characters without / and \\", 'Write for example "two passes".'
        raise RunError(what, got=name, remedy=remedy)
    for other in store.all_runs():
        if other.id != run.id and name.casefold() in (other.id.casefold(), label(other).casefold()):
            raise RunError("label must be unique", got=name, remedy=f"{other.id} has it: choose another.")
    if run.status == "running":  # the training process writes run.json from its memory: the label would be lost
        raise RunError(f"{run.id} must not be running to be renamed", got=run.status, remedy="Wait for its end.")
    run.info["label"] = name
    store.write_json(run.path / "run.json", run.info)
    return run


def differences(runs: Iterable[Run]) -> list[dict]:
    """Rows {field, one value for each run id}: what differs, and nothing else. None: the run has no such field."""
    facts = {}
    for run in runs:
        config = {name: value for name, value in run.config.items() if name != "parent"}  # the one really used counts
        versions = {f"versions.{name}": value for name, value in run.info.get("versions", {}).items()}
        about = {"stage": run.stage, "parent": run.parent, "data_hash": run.info.get("data_hash")}
        facts[run.id] = {**about, **config, **versions}
    found = {name: [other.get(name) for other in facts.values()] for one in facts.values() for name in one}
    differ = {name: values for name, values in found.items() if any(value != values[0] for value in values)}
    return [{"field": name, **dict(zip(facts, values, strict=True))} for name, values in differ.items()]


def answers_of(run: Run) -> list[dict]:
    """The judged answers kept beside a run; [] where there are none. Raises RunError for a line that is not one."""
    file, rows = run.path / "answers.jsonl", []
    for number, line in enumerate(file.read_bytes().splitlines() if file.exists() else [], 1):
        try:
            rows.append(json.loads(line))
            good = all(isinstance(rows[-1][name], str) for name in TEXTS)
            good = good and all(math.isfinite(rows[-1][name]) for name in PARTS)
        except (ValueError, TypeError, LookupError, ArithmeticError):
            good = False
        if not good:
            remedy = f"Delete {file}: the evaluation writes it again."
            raise RunError(f"line {number} of {run.id}'s answers must be a judged answer", got=line, remedy=remedy)
    return rows


def paired_difference(rows_a: list[dict], rows_b: list[dict], key: str = "correct") -> dict:
    """By how much `key` of a's judged answers is above b's, on the questions that both answered.

    {difference, low, high, pairs, a_higher, b_higher, share, reading}; reading is "noise" where the 95% interval holds
    0. Pairs show what two separate intervals cannot. A yes-or-no key is a difference of shares (share=True) and has
    Newcombe's interval, a graded one Student's t over the pairs. Raises RunError where nothing can be paired.
    """
    others = {(row["id"], row["prompt"]): row for row in rows_b}
    both = [(row, others[place]) for row in rows_a if (place := (row["id"], row["prompt"])) in others]
    if key not in PARTS or not both:
        remedy = f"Take two runs that answered the same test, and a key of {', '.join(PARTS)}."
        raise RunError("two runs must have answers with this key in common", got=key, remedy=remedy)
    pairs = [(float(a[key]), float(b[key])) for a, b in both]
    share = all(value in (0.0, 1.0) for pair in pairs for value in pair)
    middle, low, high = intervals.paired(pairs) if share else intervals.mean([a - b for a, b in pairs])
    counts = {"pairs": len(pairs), "a_higher": sum(a > b for a, b in pairs), "b_higher": sum(b > a for a, b in pairs)}
    reading = "noise" if low <= 0 <= high else "a is higher" if middle > 0 else "b is higher"
    return {"difference": middle, "low": low, "high": high, **counts, "share": share, "reading": reading}


def _parent_in(run: Run, known: dict[str, Run]) -> str:
    """The parent's name: its id where it is one of `known`, also where a path into that run's folder was given."""
    name = str(run.parent or "")
    return next((part for part in (name, *reversed(Path(name).parts)) if part in known and part != run.id), name)
