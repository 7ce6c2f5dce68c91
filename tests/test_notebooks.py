"""The notebooks: their form, and each of them executed with the smoke model."""

import dataclasses
import json

import nbformat
import papermill
import pytest

from labkit.config import NOTEBOOKS
from labkit.execute import NOTEBOOKS_DIR, run_notebook

FILES = sorted(NOTEBOOKS_DIR.glob("*.ipynb"))


def test_every_notebook_is_known():
    assert [file.stem for file in FILES] == list(NOTEBOOKS)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_form(file):
    book = nbformat.read(file, as_version=4)
    first = book.cells[0].source
    assert first.startswith("# ") and "\n> " in first
    tagged = [cell for cell in book.cells if "parameters" in cell.metadata.get("tags", [])]
    assert len(tagged) == 1
    defaults = {field.name: field.default for field in dataclasses.fields(NOTEBOOKS[file.stem])}
    assert {name: value.default for name, value in _parameters(file).items()} == defaults
    code = [cell for cell in book.cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in code)
    assert all(len(cell.source.splitlines()) <= 17 for cell in code if cell not in tagged)
    assert f'labkit.record("{file.stem}"' in code[-1].source
    assert len({cell.id for cell in book.cells}) == len(book.cells)


def _parameters(file):
    found = papermill.inspect_notebook(file)
    field = dataclasses.make_dataclass("Parameter", ["default"])
    return {name: field(eval(about["default"], {})) for name, about in found.items()}  # literals only


@pytest.mark.notebook
@pytest.mark.parametrize("name", list(NOTEBOOKS))
def test_smoke(name):
    record = json.loads((run_notebook(name, {"model": "smoke"}) / "record.json").read_text())
    assert record["parameters"]["model"] == "smoke"
    assert record["metrics"] and all(isinstance(value, int | float) for value in record["metrics"].values())
    assert record["seconds"] > 0 and record["peak_rss_mb"] < 3000


OWN = {"05_reward_model": "held_out_accuracy", "06_ppo": "win_rate", "07_dpo": "win_rate", "08_orpo": "win_rate"}


@pytest.mark.parametrize(("name", "metric"), OWN.items())
def test_on_pairs_of_ones_own(tmp_path, name, metric):
    """Few and conversational, as in trl's documentation."""
    said = [[{"role": role, "content": text}] for role, text in (("user", "Hi?"), ("assistant", "Hello."))]
    row = {"prompt": said[0], "chosen": said[1], "rejected": [{"role": "assistant", "content": "What?"}]}
    own = tmp_path / "own.jsonl"
    own.write_text("\n".join([json.dumps(row)] * 5))
    record = json.loads((run_notebook(name, {"model": "smoke", "data": str(own)}) / "record.json").read_text())
    assert record["metrics"][metric] is not None
