"""Model cards: what a run's model is, how it was made and what was measured, in the form of the Hugging Face Hub."""

import re
import shutil
from pathlib import Path

import yaml

from labkit import adapters, exports, lineage, runs
from labkit.errors import RunError
from labkit.evaluate import checkers
from labkit.runs import Run

TAG = "training-pipeline-lab"
HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?", re.ASCII)
NO_LICENCE = (
    "Licence: not stated, for the lab cannot know it. It follows from the model it started from, its training data "
    "(the lab's own: see its `data/README.md`; a part is CC BY-SA 4.0) and your decision."
)
BASE_MODEL = (
    "`base_model` is the lab's name of the model it started from. A run's id is no repository of the Hub: put in the "
    "name under which you publish that model, or take the line out."
)
LIMITS = (
    "The intervals tell how other questions of the same kind might move a figure, not how another seed would.",
    "Nothing checks what it writes: a model of this kind is often wrong and never says so.",
)


def model_card(run: Run, license: str = "", folder: str | Path = "FOLDER", merged: bool = False) -> str:
    """The model card (README.md) of a run: YAML front matter and markdown.

    license: the Hub's name of the licence ("apache-2.0") where you know it; the lab does not guess one. folder and
    merged: as in `export`, for the code that loads it.
    """
    chain, rows, info = lineage.ancestors(run), lineage.answers_of(run), run.info
    adapter = adapters.is_adapter(run.checkpoint) and not merged
    about = {"library_name": "peft" if adapter else "transformers", "tags": [TAG, run.stage]}
    if chain and HUB_NAME.fullmatch(chain[0]):  # a path on this machine would be refused by the Hub, and tell too much
        about["base_model"] = chain[0]
    about |= {"license": license} if license else {}
    made = {
        "run": run.id, "stage": run.stage, "status": run.status, "data hash": info.get("data_hash") or "not known",
        "parent, its parent, ...": " ← ".join(chain) or "none: it began with random weights",
        "seed": info.get("seed", "not known"), "seconds": f"{info['seconds']:.0f}",
        "peak memory (MB)": f"{info['peak_rss_mb']:.0f}",
        "versions": ", ".join(f"{name} {number}" for name, number in info.get("versions", {}).items()) or "not known",
    }  # fmt: skip
    measured = {
        name: f"{share:.1%} [{low:.1%}, {high:.1%}]" for name, (share, low, high) in checkers.score(rows).items()
    }
    limits = [f"Licence: {_cell(license)}." if license else NO_LICENCE, BASE_MODEL if "base_model" in about else ""]
    parts = [
        f"---\n{yaml.safe_dump(about, sort_keys=False, allow_unicode=True)}---",
        f"# {_cell(lineage.label(run) or run.id)}",
        "Trained by the Training Pipeline Lab, whose models are made to be studied.\n\n## How it was made",
        _table(("what", "value"), made),
        _table(("setting", "value"), run.config),
        "## Metrics\n\nAt the end of training; one training with one seed gives no interval.",
        _table(("metric", "value"), run.metrics or {"none yet": "-"}),
        f"Of {len(rows)} judged answers to test questions:" if rows else "No answers to test questions were kept.",
        _table(("share of answers", "value [95% interval, Wilson's]"), measured) if rows else "",
        f"## How to load\n\n```python\n{exports.code(run, folder, merged)}\n```\n\n{exports.gguf(run)}\n\n## Limits",
        "\n".join(f"- {limit}" for limit in [*limits, *LIMITS] if limit),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def export(run: Run, folder: str | Path, license: str = "", merged: bool = False) -> Path:
    """Write a run's model and its card, as README.md, to a new or empty folder. Raises RunError.

    merged: an adapter added to its base's weights, as one whole model; else an adapter, with its base beside it unless
    that is a model of the Hub. What a whole model's run saved is copied either way.
    """
    folder = Path(folder).expanduser().absolute()
    if not run.checkpoint.is_dir():
        what = f"{run.id} must have a checkpoint to be exported"
        raise RunError(what, got=run.status, remedy="Train it to its end first.")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RunError("folder must be new or empty", got=str(folder), remedy="Name another: nothing is overwritten.")
    if folder.resolve().is_relative_to(runs.runs_dir().resolve()):
        raise RunError("folder must lie outside the run store", got=str(folder), remedy=f"Not in {runs.runs_dir()}.")
    card = model_card(run, license, folder, merged)  # before anything is written, for it may raise
    try:
        exports.write(run, folder, merged)
        (folder / "README.md").write_text(card, encoding="utf-8")
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)  # whole or not at all
        raise
    return folder


def _table(head: tuple[str, str], rows: dict) -> str:
    cells = [head, ("---", "---"), *((_cell(name), _cell(value)) for name, value in rows.items())]
    return "\n".join(f"| {name} | {value} |" for name, value in cells)


def _cell(value) -> str:
    """A value as markdown text: no tag, link, cell or line begins in it."""
    text = f"{value:.4g}" if isinstance(value, float) else lineage.printable(value)
    return re.sub(r"([\\`*\[\]|])", r"\\\1", text.replace("&", "&amp;").replace("<", "&lt;"))
