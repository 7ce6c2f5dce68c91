"""Make a finished pretraining run the shipped base model: its checkpoint goes to data/base, with a card.

python -m labkit train data/base/train.json
python data/ship_base.py pretrain-nano-...      # the id that the first command printed
"""

import json
import shutil
import sys
from pathlib import Path

from labkit import runs

BASE = Path(__file__).parent / "base"


def card(run: runs.Run) -> str:
    """The model card: where the weights come from, measured figures, what it is not for."""
    info, metrics = run.info, run.metrics
    versions = ", ".join(f"{name} {number}" for name, number in info["versions"].items())
    figures = "\n".join(f"| {name} | {value:.6g} |" for name, value in metrics.items())
    return f"""---
license: apache-2.0
language: en
---
# The shipped base model

A base model of {metrics["parameters"]:,} weights (LFM2), pretrained from random weights on
`data/pretrain/train.jsonl`. It continues text and does not answer questions. It knows a small
world of countries, elements, nouns and AI terms, and is for teaching only. A part of its training text is from
Wikipedia (CC BY-SA 4.0) and WordNet; see `data/README.md`.

| what | value |
| --- | --- |
| run | {run.id} |
| parent | none: random weights, seed {info["seed"]} |
| data hash | {info["data_hash"]} (sha256 of the training file, first 16 digits) |
| command | `python -m labkit train data/base/train.json` |
| seconds | {info["seconds"]:.0f} on 2 CPU cores with bf16, other work on the same cores at times |
| peak memory | {info["peak_rss_mb"]:.0f} MB |
| versions | {versions} |
{figures}
"""


def main() -> None:
    run = runs.get(sys.argv[1])
    BASE.mkdir(exist_ok=True)
    for file in run.checkpoint.iterdir():
        shutil.copy(file, BASE / file.name)
        (BASE / file.name).chmod(0o644)
    keep = {name: value for name, value in run.config.items() if name in ("steps", "eval_every")}
    (BASE / "train.json").write_text(json.dumps({"stage": "pretrain", **keep}, indent=1) + "\n")
    (BASE / "README.md").write_text(card(run))


if __name__ == "__main__":
    main()
