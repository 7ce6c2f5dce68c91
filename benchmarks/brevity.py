"""What DPO on pairs of short and long answers does to a real language model: shorter answers, and what they are worth.

    python -m labkit fetch smol
    python benchmarks/brevity.py [SEED ...]

For each seed, in notebook 07's sizes for model = "smol": seconds of the training, words spent on MT-Bench's 80 first
turns over the words before, right answers to every fourth of the lab's safe questions and gold, each minus what it was
before, paired by question. Also MMLU's worked examples and perplexity. Writes benchmarks/BREVITY.md and brevity.json.
"""

import json
import sys

from smol import general, write  # the benchmark beside this one

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
    write("brevity", found, COLUMNS)


def measured(model, tokenizer) -> tuple[dict, dict]:
    """(answers to open and to the lab's safe questions, [estimate, low, high] of what needs no comparison)."""
    from labkit import data
    from labkit.evaluate import answers, intervals, lengths

    questions = [row for row in data.questions() if row["safe"]][::4]
    asked = answers.judged(
        questions, answers.ask(model, tokenizer, [row["prompt"] for row in questions], batch_size=64)
    )
    right = intervals.proportion(sum(row["correct"] for row in asked), len(asked))
    return {"open": lengths.ask(model, tokenizer, lengths.open_questions()), "asked": asked}, {
        "share_right": right,
        **general(model, tokenizer),
    }


if __name__ == "__main__":
    main()
