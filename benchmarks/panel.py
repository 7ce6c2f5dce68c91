"""How quick the panel is: from the start of its cell to the widget, and from the turn of a knob to the new estimate.

    python benchmarks/panel.py

Measured in this process, without the browser's part. Prints one line a figure: median and worst.
"""

import os
import statistics
import tempfile
import time

os.environ.setdefault("LABKIT_RUNS", tempfile.mkdtemp())


def main() -> None:
    began = time.perf_counter()
    from labkit import data, models
    from labkit.config import DPOConfig, SFTConfig

    models.load(data.BASE)
    print(f"the cells before the panel's, which load torch and a model: {time.perf_counter() - began:.2f} s")
    began = time.perf_counter()
    from labkit.ui import live

    bench = live.bench("02_supervised_fine_tuning", SFTConfig(), ["What is an LLM?"])
    print(f"first panel, with its imports {time.perf_counter() - began:.2f} s")
    began = time.perf_counter()
    live.bench("07_dpo", DPOConfig(), ["What is an LLM?"])
    print(f"second panel {time.perf_counter() - began:.2f} s")

    spent = []
    for n in range(60):
        turned = {
            "tuning": "lora",
            "lora_rank": str(n + 1),
            "batch_size": str(n + 1),
            "learning_rate": f"{(n + 1) / 1e5}",
        }
        began = time.perf_counter()
        bench.panel.values = {**bench.panel.values, **turned}
        spent.append(1000 * (time.perf_counter() - began))
        assert not bench.panel.notes["errors"]
    print(
        f"knob to estimate: median {statistics.median(spent):.0f} ms, worst {max(spent):.0f} ms over {len(spent)} turns"
    )

    rows = [{"step": n, "loss": 3 / (n + 1), "grad_norm": 1.0, "learning_rate": 1e-3} for n in range(50_000)]
    began = time.perf_counter()
    bench._draw(rows)
    print(f"50,000 logged points drawn in {time.perf_counter() - began:.2f} s as {len(bench.figure.data[0].x)} points")


if __name__ == "__main__":
    main()
