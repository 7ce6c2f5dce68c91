"""What DPO on pairs of short and long answers does to a real language model: shorter answers, and what they are worth.

    python -m labkit fetch smol
    python benchmarks/brevity.py [SEED ...]

For each seed, in notebook 07's sizes for model = "smol": seconds of the training, words spent on MT-Bench's 80 first
turns over the words before, right answers to every fourth of the lab's safe questions and gold, each minus what it was
before, paired by question. Also MMLU's worked examples and perplexity. Writes benchmarks/BREVITY.md and brevity.json.
"""

import json
import os
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("LABKIT_RUNS", tempfile.mkdtemp())
HERE = Path(__file__).parent
COLUMNS = {
    "seconds": "seconds", "length": "words, after / before", "correct": "right answers, change", "gold": "gold, change",
    "mmlu_dev": "MMLU dev", "perplexity": "perplexity",
}  # fmt: skip


def main() -> None:
    from labkit import models, pipeline
    from labkit.config import DPOConfig, sized
    from labkit.evaluate import lengths
    from labkit.lineage import paired_difference

    seeds = [int(text) for text in sys.argv[1:]] or [0]
    before, about = measured(*models.load("smol", frozen=True))
    spent = [row["words"] for row in before["open"]]
    found = {"before": {**about, "words": sum(spent) / len(spent)}}
    for seed in seeds:
        run = pipeline.train_stage("dpo", sized(DPOConfig(model="smol", seed=seed)))
        after, about = measured(*models.load(run.checkpoint, frozen=True))
        row = {"seconds": run.info["seconds"], "length": lengths.ratio(after["open"], before["open"]), **about}
        for name in ("correct", "gold"):
            change = paired_difference(after["asked"], before["asked"], name)
            row[name] = [change[end] for end in ("difference", "low", "high")]
        row["examples"] = [after["open"][at]["text"] for at in (0, 40, 70)]
        found[f"seed {seed}"] = row
        print(json.dumps({seed: row}), flush=True)
    (HERE / "brevity.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    lines = ["Made by `python benchmarks/brevity.py`; every figure with its 95% interval.", ""]
    lines += ["| | " + " | ".join(COLUMNS.values()) + " |", "| --- |" + " ---: |" * len(COLUMNS)]
    lines += [
        f"| {name} | " + " | ".join(cell(row.get(column)) for column in COLUMNS) + " |" for name, row in found.items()
    ]
    (HERE / "BREVITY.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def measured(model, tokenizer) -> tuple[dict, dict]:
    """(answers to open and to the lab's safe questions, [estimate, low, high] of what needs no comparison)."""
    from labkit import data
    from labkit.evaluate import answers, choices, intervals, lengths, perplexity

    questions = [row for row in data.questions() if row["safe"]][::4]
    asked = answers.judged(
        questions, answers.ask(model, tokenizer, [row["prompt"] for row in questions], batch_size=64)
    )
    chosen = [row["correct"] for row in choices.choose(model, tokenizer, choices.mmlu_dev())]
    surprise = perplexity.perplexity(model, tokenizer, perplexity.held_out_texts())
    return {"open": lengths.ask(model, tokenizer, lengths.open_questions()), "asked": asked}, {
        "mmlu_dev": intervals.proportion(sum(chosen), len(chosen)),
        "perplexity": [surprise[name] for name in ("perplexity", "low", "high")],
        "share_right": intervals.proportion(sum(row["correct"] for row in asked), len(asked)),
    }


def cell(value) -> str:
    if isinstance(value, (list, tuple)):
        return f"{value[0]:.3g} [{value[1]:.3g}, {value[2]:.3g}]"
    return "" if value is None else f"{value:.0f}"


if __name__ == "__main__":
    main()
