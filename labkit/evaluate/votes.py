"""Votes: what was voted in the arena, kept for good, and made into preference pairs.

All notebooks share one append-only file, runs/arena/votes.jsonl. A battle's id is made before the vote, and a second
vote on the same id is not taken; a lock keeps writers apart, and a vote counts once it is on the disk.
"""

import fcntl
import json
import os
import warnings
from collections import Counter
from pathlib import Path

import numpy as np

from labkit import runs
from labkit.errors import ConfigError, DataError

CHOICES = ("a", "b", "tie", "both_bad")
HUMAN, SCRIPTED = "human", "scripted voter"
KEYS = {"id", "models", "prompt", "answers", "choice", "voter", "time"}


def votes_file() -> Path:
    return runs.runs_dir() / "arena" / "votes.jsonl"


def add(battle: dict, choice: str, voter: str, file: Path | None = None, **about) -> bool:
    """Append the vote; True once it is on the disk, False where this battle has its vote already.

    about: more to keep with it, such as seconds. Raises ConfigError for an unknown choice or voter, DataError for a
    battle that `read` would not take for one.
    """
    vote = filled(battle, choice, voter, **about)
    if not _is_vote(vote):
        remedy = "Take one from arena.new_battle."
        raise DataError("a battle must have an id, two models, a prompt and two answers", got=battle, remedy=remedy)
    file = file or votes_file()
    file.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(file, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)  # closing the file gives it back, also where the process is killed
        known = _everything(handle)
        if vote["id"] in {one["id"] for one in _parsed(known)[0]}:
            os.fsync(handle)  # the disk may have failed when it was written
            return False
        line = json.dumps(vote, ensure_ascii=True).encode() + b"\n"
        line = line if known.endswith(b"\n") or not known else b"\n" + line  # what a crash tore stays, on a line alone
        while line:
            line = line[os.write(handle, line) :]
        os.fsync(handle)
        return True
    finally:
        os.close(handle)


def filled(battle: dict, choice: str, voter: str, **about) -> dict:
    """The row that a vote is, not kept anywhere. Raises ConfigError for an unknown choice or voter."""
    for name, value, allowed in (("choice", choice, CHOICES), ("voter", voter, (HUMAN, SCRIPTED))):
        if value not in allowed:
            raise ConfigError(f"{name} must be one of {', '.join(allowed)}", got=value, remedy="Write one of them.")
    return {**battle, "choice": choice, "voter": voter, "time": runs.now(), **about}


def read(file: Path | None = None, voter: str | None = None, among=None) -> list[dict]:
    """The votes in order, each id once; of one voter, and between the models `among`, where given.

    A line that is no vote, as a crash or an editor leaves it, is left out with a warning that counts such lines.
    """
    file = file or votes_file()
    if not file.exists():
        return []
    handle = os.open(file, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_SH)
        votes, torn = _parsed(_everything(handle))
    finally:
        os.close(handle)
    if torn:
        why = "cut off in writing, or changed by hand"
        warnings.warn(f"{torn} unreadable line(s) in {file} left out: {why}.", stacklevel=2)
    among = set(among) if among is not None else None
    return [
        vote for vote in votes
        if voter in (None, vote["voter"]) and (among is None or set(vote["models"].values()) <= among)
    ]  # fmt: skip


def scripted(gold: dict[str, float], helpful: dict[str, float], rng: np.random.Generator, noise: float) -> str:
    """How the scripted voter votes: for the higher gold preference; a coin decides instead with probability `noise`.

    gold and helpful: the checker's for sides a and b. Equal gold is a tie, or both_bad where neither is helpful.
    """
    if rng.random() < noise:
        return "a" if rng.random() < 0.5 else "b"
    if gold["a"] == gold["b"]:
        return "tie" if any(helpful.values()) else "both_bad"
    return "a" if gold["a"] > gold["b"] else "b"


def export_pairs(votes: list[dict], file: Path | None = None) -> tuple[Path, dict[str, int]]:
    """Write decided votes as preference pairs {prompt, chosen, rejected, voter, vote}; (the file, what was counted).

    The file, runs/arena/pairs-VOTER.jsonl where none is given, is read by `preferences.pairs`, so notebooks 05 and 07
    take it as `data`. Ties, both_bad and answers that `preferences` would refuse (empty, the same, the prompt itself)
    are left out and counted. Raises DataError where nothing remains or voters are mixed.
    """
    voters = sorted({vote["voter"] for vote in votes})
    if len(voters) > 1:
        raise DataError("pairs must be of one voter", got=voters, remedy="Read the votes with voter=...")
    rows, counted = [], Counter()
    for vote in votes:
        if vote["choice"] not in ("a", "b"):
            counted[vote["choice"]] += 1
            continue
        chosen, rejected = (vote["answers"][side] for side in ("ab" if vote["choice"] == "a" else "ba"))
        texts = [text.strip() for text in (vote["prompt"], chosen, rejected)]
        if not all(texts) or len(set(texts)) < 3:
            counted["unusable"] += 1
            continue
        about = {"voter": vote["voter"], "vote": vote["id"]}
        rows.append({"prompt": vote["prompt"], "chosen": chosen, "rejected": rejected, **about})
    if not rows:
        raise DataError("votes must hold a decided one", got=dict(counted), remedy="Vote a or b on some battles first.")
    file = file or votes_file().with_name(f"pairs-{voters[0].replace(' ', '-')}.jsonl")
    return runs.write_lines(file, rows), {"pairs": len(rows), **counted}


def _everything(handle: int) -> bytes:
    with open(handle, "rb", closefd=False) as file:
        file.seek(0)
        return file.read()


def _parsed(content: bytes) -> tuple[list[dict], int]:
    """(the votes, each id once; how many lines were none)."""
    votes, torn = {}, 0
    for line in filter(None, content.split(b"\n")):
        try:
            vote = json.loads(line)
        except (ValueError, RecursionError):
            vote = None
        if _is_vote(vote):
            votes.setdefault(vote["id"], vote)
        else:
            torn += 1
    return list(votes.values()), torn


def _is_vote(vote) -> bool:
    """Whether it has all that the arena reads of a vote, in the form in which `filled` makes it."""
    if not isinstance(vote, dict) or not set(vote) >= KEYS:
        return False
    if not all(isinstance(vote[name], dict) and set(vote[name]) == {"a", "b"} for name in ("models", "answers")):
        return False
    texts = [vote["id"], vote["prompt"], vote["time"], vote.get("question", "")]
    texts += [*vote["models"].values(), *vote["answers"].values()]
    if not all(isinstance(text, str) for text in texts) or vote["models"]["a"] == vote["models"]["b"]:
        return False
    seconds = vote.get("seconds", 0)
    return (
        vote["choice"] in CHOICES and vote["voter"] in (HUMAN, SCRIPTED)
        and isinstance(seconds, int | float) and 0 <= seconds < float("inf")
    )  # fmt: skip
