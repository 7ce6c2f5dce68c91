"""The floors over several seeds: mean and 95% interval of each, as a table.

    LABKIT_RUNS=/tmp/floors python benchmarks/floors.py                   # seeds 0, 1, 2: an hour on two cores
    LABKIT_RUNS=/tmp/floors python benchmarks/floors.py --notebooks 02 07 # without pretraining

Runs the notebooks as `make course` does, and writes benchmarks/floors.json and benchmarks/FLOORS.md beside this file;
rows of notebooks that are not run stay as they were measured, with their date. A notebook whose record with these
parameters is in the run store is not run again, so that an interrupted benchmark goes on: name an empty store after a
change of code or data.
"""

import argparse
import datetime
import json
import platform
import sys
from pathlib import Path

from labkit import floors
from labkit.evaluate import intervals
from labkit.execute import find_notebook, run_notebook
from labkit.records import find_record

HERE = Path(__file__).parent


def record(notebook: str, seed: int) -> dict:
    """The newest record of the notebook at its defaults with this seed; the notebook is run where there is none."""
    name = find_notebook(notebook).stem
    found = find_record(name, {"seed": seed})
    return found or json.loads((run_notebook(name, {"seed": seed}) / "record.json").read_text(encoding="utf-8"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--notebooks", nargs="+", default=["01", "02", "05", "06", "07", "08"])
    options = parser.parse_args()
    file, today = HERE / "floors.json", datetime.date.today().isoformat()
    measured: dict[str, dict] = {}
    for seed in options.seeds:
        for row in floors.rows([record(name, seed) for name in options.notebooks]):
            about = {"measured": today, "values": []}
            measured.setdefault(row["what"].strip(), about)["values"].append(row["value"])
    before = json.loads(file.read_text(encoding="utf-8"))["found"] if file.exists() else {}
    found = {}
    for what, _, _, floor, side in floors.FLOORS:
        if row := measured.get(what.strip()) or before.get(what.strip()):
            found[what.strip()] = row | {"floor": floor, "side": side}
    command = "python benchmarks/" + " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])
    lines = [
        f"Last made by `{command}` on {platform.machine()}, Python {platform.python_version()}; seeds {options.seeds}.",
        "",
        "| what | mean | 95% interval | by seed | floor | every seed | measured |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for what, row in found.items():
        mean, low, high = intervals.mean(row["values"])
        sign = ">=" if row["side"] == "above" else "<="
        reached = all(v >= row["floor"] if row["side"] == "above" else v <= row["floor"] for v in row["values"])
        each = ", ".join(f"{value:.3g}" for value in row["values"])
        values = f"| {mean:.3g} | {low:.3g} to {high:.3g} | {each} | {sign} {row['floor']:g} "
        values += f"| {'yes' if reached else 'no'} | {row['measured']} |"
        lines.append(f"| {what} {values}")
    file.write_text(json.dumps({"command": command, "seeds": options.seeds, "found": found}, indent=1) + "\n")
    table = HERE / "FLOORS.md"
    told = table.read_text(encoding="utf-8").partition("\n## ") if table.exists() else ("", "", "")
    table.write_text("\n".join(lines) + "\n" + told[1] + told[2], encoding="utf-8")  # what is written beneath stays
    print("\n".join(lines))


if __name__ == "__main__":
    main()
