"""How right labkit.budget is: peaks of memory, predicted from the configuration and measured on this CPU.

    python benchmarks/memory.py

Every configuration trains for a few steps in a process of its own, through `python -m labkit train`, on rows of equal
length, and its run keeps the peak. Writes benchmarks/MEMORY.md and memory.json; needs `python -m labkit fetch smol`.
"""

import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ["LABKIT_RUNS"] = tempfile.mkdtemp()
HERE = Path(__file__).parent
LORA = {"tuning": "lora"}
# stage, model, words in an answer (or in a prompt and an answer), knobs
TRIED = [
    ("sft", "nano", 50, {"batch_size": 8}),
    ("sft", "nano", 240, {"batch_size": 32}),
    ("sft", "nano", 240, {"batch_size": 32, **LORA}),
    ("sft", "nano", 240, {"batch_size": 32, **LORA, "quantization": "4bit"}),
    ("dpo", "nano", 100, {"batch_size": 16}),
    ("pretrain", "nano", 0, {"batch_size": 16, "block_size": 128}),
    ("pretrain", "nano", 0, {"batch_size": 32, "block_size": 512, "optimizer": "adamw"}),
    ("sft", "smol", 90, {"batch_size": 2, **LORA}),
    ("sft", "smol", 90, {"batch_size": 8, **LORA}),
    ("sft", "smol", 400, {"batch_size": 4, **LORA, "lora_rank": 64}),
    ("sft", "smol", 90, {"batch_size": 8, **LORA, "target_modules": "q_proj,v_proj"}),
    ("sft", "smol", 90, {"batch_size": 8, **LORA, "quantization": "8bit"}),
    ("sft", "smol", 90, {"batch_size": 8, **LORA, "quantization": "4bit"}),
    ("sft", "smol", 400, {"batch_size": 4, **LORA, "quantization": "4bit"}),
    ("sft", "smol", 90, {"batch_size": 2}),
    ("sft", "smol", 90, {"batch_size": 8}),
    ("dpo", "smol", 60, {"batch_size": 4, **LORA}),
    ("sft", "nano", (200, 40), {"batch_size": 32}),  # long prompts: few tokens of a row are learned
    ("sft", "smol", (300, 60), {"batch_size": 4}),
    ("sft", "smol", (300, 60), {"batch_size": 4, **LORA}),
    ("reward", "nano", 100, {"batch_size": 16}),
    ("reward", "smol", 60, {"batch_size": 4}),
    ("reward", "smol", 60, {"batch_size": 4, **LORA}),
]
UNSEEN = [  # written down after the constants of the prediction were set, and measured after that
    ("sft", "nano", 150, {"batch_size": 12}),
    ("sft", "nano", (80, 60), {"batch_size": 48}),
    ("sft", "nano", 60, {"batch_size": 48, **LORA, "lora_rank": 8, "target_modules": "v_proj,w2"}),
    ("pretrain", "nano", 0, {"batch_size": 48, "block_size": 96}),
    ("dpo", "nano", 200, {"batch_size": 8, **LORA}),
    ("orpo", "nano", 60, {"batch_size": 16}),
    ("reward", "nano", (60, 30), {"batch_size": 24}),
    ("sft", "smol", 600, {"batch_size": 1, **LORA}),
    ("sft", "smol", 40, {"batch_size": 16, **LORA, "lora_variant": "dora"}),
    ("sft", "smol", (500, 200), {"batch_size": 2, **LORA, "quantization": "4bit"}),
    ("sft", "smol", 200, {"batch_size": 2}),
    ("dpo", "smol", (100, 50), {"batch_size": 2}),
    ("orpo", "smol", 80, {"batch_size": 4, **LORA}),
    ("reward", "smol", (100, 100), {"batch_size": 2, **LORA, "quantization": "8bit"}),
]


def main() -> None:
    from labkit import budget, config

    rows = []
    for number, (stage, model, words, knobs) in enumerate([*TRIED, *UNSEEN]):
        if stage != "pretrain":
            knobs = {**knobs, "data": str(data_file(words, number)), "warmup_steps": 1}
            knobs |= {"parent": parent_of(model)} if stage in budget.PAIRED else {}
        values = {"model": model, "steps": 4, "eval_every": 4, "seed": number, **knobs}
        one = config.STAGES[stage](**values)
        arguments = budget.knobs(stage, one)
        predicted = budget.estimate(budget.shape(model), **arguments)
        run = trained(stage, values)
        peaks = run.info["peaks_mb"]
        shown = {name: value for name, value in arguments.items() if name not in ("device", "autocast", "stage")}
        row = {
            "stage": stage, "model": model, "unseen": number >= len(TRIED), **shown,
            "predicted_mb": round(predicted.total / 1e6), "measured_mb": round(peaks["training"]),
            "loading_mb": round(peaks.get("loading", 0)), "before_mb": round(peaks.get("before loading", 0)),
            "parts": predicted.parts,
        }  # fmt: skip
        row["error"] = row["predicted_mb"] / row["measured_mb"] - 1
        rows.append(row)
        print(f"{stage:9}{model:6}{row['measured_mb']:6} MB measured, {row['error']:+.0%}  {knobs}", flush=True)
    write(rows)


def data_file(words: int | tuple[int, int], number: int) -> Path:
    """Two hundred rows of the same length, for SFT and for pairs."""
    asked, said = words if isinstance(words, tuple) else (0, words)
    answer = " ".join(["river", "stone"] * (said // 2))
    prompt = " ".join(["Say it", *["lamp"] * asked])
    row = {"prompt": prompt, "answer": answer, "chosen": answer, "rejected": answer[:-1]}
    file = Path(os.environ["LABKIT_RUNS"]) / f"rows-{number}.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for _ in range(200)), encoding="utf-8")
    return file


def parent_of(model: str) -> str:
    """A run for DPO to start from: the model, hardly trained."""
    values = {"model": model, "steps": 1, "eval_every": 1, "data": str(data_file(8, 999)), "batch_size": 1}
    return trained("sft", values).id


def trained(stage: str, values: dict):
    """The run of this configuration, trained in a process of its own."""
    from labkit import config, pipeline

    file = Path(os.environ["LABKIT_RUNS"]) / "config.json"
    file.write_text(json.dumps({"stage": stage, **values}), encoding="utf-8")
    subprocess.run([sys.executable, "-m", "labkit", "train", str(file)], check=True, stdout=subprocess.DEVNULL)
    return pipeline.existing(stage, config.STAGES[stage](**values))


def write(rows: list[dict]) -> None:
    (HERE / "memory.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    lines = [
        f"Made by `python benchmarks/memory.py` on {platform.machine()}, Python {platform.python_version()}.",
        "MB are 10^6 bytes of resident memory, the process with its libraries included. Rows of equal length, four",
        "steps, looks at held-out data, saving.",
    ]
    unseen, known = ([row for row in rows if row["unseen"] is side] for side in (True, False))
    lines += ["", "## Configurations chosen after the prediction was finished", "", *table(unseen)]
    lines += ["", "## Configurations that its constants were set on", ""]
    lines += ["The size of the process, the copies of the logits and the heap's holes were set after looks at these."]
    (HERE / "MEMORY.md").write_text("\n".join([*lines, "", *table(known)]) + "\n", encoding="utf-8")


def table(rows: list[dict]) -> list[str]:
    """How many are within 15%, and the rows as Markdown."""
    worst, within = max((row["error"] for row in rows), key=abs), sum(abs(row["error"]) <= 0.15 for row in rows)
    lines = [
        f"{within} of {len(rows)} predictions are within 15% of the peak that was measured; the worst is {worst:+.0%}.",
        "",
        "| stage | model | weights that train | batch x tokens, learned | predicted MB | measured MB | error |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        kind = "all"
        if row.get("method") == "lora":
            name = {"dora": "DoRA"}.get(row["lora_variant"], "LoRA")
            kind = f"{name} {row['lora_rank']}, {row['target_modules']}"
        kind += f", {row['quantization']}" if row.get("quantization", "none") != "none" else ""
        size = f"{row['batch_size']} x {row['seq_length']}"
        size += f", {row['learned_tokens']}" if "learned_tokens" in row else ""
        cells = row["stage"], row["model"], kind, size, row["predicted_mb"], row["measured_mb"], f"{row['error']:+.1%}"
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return lines


if __name__ == "__main__":
    main()
