"""What LoRA teaches a real language model, SmolLM2-135M-Instruct, in notebook 03's sizes, and what that costs it.

    python -m labkit fetch smol
    python benchmarks/smol.py [SEED ...]

For each seed: seconds of the training, glossary questions in wordings never trained on, MMLU-dev exemplars by
log-likelihood and perplexity of held-out English, all before and after. Writes benchmarks/SMOL.md and smol.json.
"""

import json
import os
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("LABKIT_RUNS", tempfile.mkdtemp())
HERE = Path(__file__).parent


def main() -> None:
    from labkit import models, pipeline
    from labkit.config import LoRAConfig, sized

    seeds = [int(text) for text in sys.argv[1:]] or [0]
    found = {"before": measured(*models.load("smol", frozen=True))}
    for seed in seeds:
        run = pipeline.train_stage("sft", sized(LoRAConfig(model="smol", seed=seed)))
        tuned = measured(*models.load(run.checkpoint, frozen=True))
        about = {"seconds": run.info["seconds"]}
        found[f"seed {seed}"] = about | tuned
        print(json.dumps({seed: found[f"seed {seed}"]}), flush=True)
    columns = {"seconds": "seconds", "glossary": "glossary", "mmlu_dev": "MMLU dev", "perplexity": "perplexity"}
    write("smol", found, columns)


def write(name: str, found: dict[str, dict], columns: dict[str, str]) -> None:
    """NAME.json, all of it, and NAME.md in capitals, a table of these columns {key: heading}."""
    (HERE / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    command = " ".join(["python", f"benchmarks/{name}.py", *sys.argv[1:]])
    lines = [f"Made by `{command}`; every figure with its 95% interval.", ""]
    lines += ["| | " + " | ".join(columns.values()) + " |", "| --- |" + " ---: |" * len(columns)]
    lines += [f"| {what} | " + " | ".join(cell(row.get(key)) for key in columns) + " |" for what, row in found.items()]
    (HERE / f"{name.upper()}.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def measured(model, tokenizer) -> dict:
    """[estimate, low, high] of each measure."""
    from labkit import data
    from labkit.evaluate import answers, intervals

    questions = data.questions(source="glossary")
    said = answers.ask(model, tokenizer, [row["prompt"] for row in questions], max_new_tokens=48, batch_size=48)
    right = [row["correct"] for row in answers.judged(questions, said)]
    return {"glossary": intervals.proportion(sum(right), len(right)), **general(model, tokenizer)}


def general(model, tokenizer) -> dict:
    """The same of what tuning should leave alone: MMLU's worked examples, perplexity of held-out English."""
    from labkit.evaluate import choices, intervals, perplexity

    chosen = [row["correct"] for row in choices.choose(model, tokenizer, choices.mmlu_dev())]
    surprise = perplexity.perplexity(model, tokenizer, perplexity.held_out_texts())
    return {
        "mmlu_dev": intervals.proportion(sum(chosen), len(chosen)),
        "perplexity": [surprise[name] for name in ("perplexity", "low", "high")],
    }


def cell(value) -> str:
    if isinstance(value, (list, tuple)):
        return f"{value[0]:.3g} [{value[1]:.3g}, {value[2]:.3g}]"
    return "" if value is None else f"{value:.0f}"


if __name__ == "__main__":
    main()
