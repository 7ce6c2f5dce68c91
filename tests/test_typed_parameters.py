"""A parameter has the type that the notebook declares and the path that the caller meant, however it came in."""

import datetime
import json
import os
import subprocess
import sys

import pytest

from labkit import parameters
from labkit.errors import ConfigError
from labkit.execute import NOTEBOOKS_DIR


@pytest.mark.parametrize(
    ("notebook", "name", "given", "wanted"),
    [
        ("03_lora", "ranks", 3, "3"),
        ("03_lora", "ranks", [4, 8], "4,8"),
        ("03_lora", "ranks", "[4, 8]", "4,8"),
        ("03_lora", "ranks", "4,8", "4,8"),
        ("14_goodhart", "kl_coefs", [0.3, 0.0], "0.3,0.0"),
        ("02_supervised_fine_tuning", "learning_rate", "1e-3", 1e-3),
        ("02_supervised_fine_tuning", "learning_rate", 1, 1.0),
        ("02_supervised_fine_tuning", "steps", "1e3", 1000),
        ("02_supervised_fine_tuning", "steps", 100.0, 100),
        ("02_supervised_fine_tuning", "steps", "10_000", 10_000),
        ("02_supervised_fine_tuning", "seed", "0", 0),
        ("02_supervised_fine_tuning", "retrain", "yes", True),
        ("02_supervised_fine_tuning", "retrain", "off", False),
        ("02_supervised_fine_tuning", "retrain", 1, True),
        ("02_supervised_fine_tuning", "parent", None, ""),
        ("02_supervised_fine_tuning", "data", datetime.date(2026, 1, 2), "2026-01-02"),
        ("02_supervised_fine_tuning", "model", 7, "7"),
    ],
)
def test_what_a_shell_or_yaml_makes_of_it_does_not_decide(notebook, name, given, wanted):
    value = getattr(parameters.check_parameters(notebook, {name: given}), name)
    assert value == wanted and type(value) is type(wanted)


@pytest.mark.parametrize(
    ("name", "given"),
    [("steps", "many"), ("steps", 1.5), ("steps", None), ("steps", True), ("retrain", "perhaps"), ("retrain", 2),
     ("learning_rate", "fast"), ("learning_rate", [1e-3]), ("data", True), ("model", None), ("steps", {"a": 1})],
)  # fmt: skip
def test_what_says_nothing_of_the_kind_is_refused(name, given):
    with pytest.raises(ConfigError, match=f"{name} must be") as caught:
        parameters.check_parameters("02_supervised_fine_tuning", {name: given})
    assert caught.value.remedy


def test_paths_are_the_callers(tmp_path, monkeypatch):
    (tmp_path / "rows.jsonl").write_text("{}")
    (tmp_path / "lab").mkdir()  # a name that means something else
    monkeypatch.chdir(tmp_path)
    found = parameters.as_declared("15_your_own", {"data": "rows.jsonl", "questions": "./rows.jsonl"}, paths=True)
    assert found == {"data": str(tmp_path / "rows.jsonl"), "questions": str(tmp_path / "rows.jsonl")}
    for name, text in (("data", "lab"), ("data", "gone.jsonl"), ("model", "org/name"), ("parent", "sft-nano-1f0c2a9b")):
        notebook = "02_supervised_fine_tuning"
        assert parameters.as_declared(notebook, {name: text}, paths=True) == {name: text}


CONFIGURE = "import labkit\nconfig = labkit.configure('15_your_own', globals())"
SHOW = "from pathlib import Path\nprint('rows:', len(Path(config.data).read_text().splitlines()))"
RECORD = "labkit.record('15_your_own', config, {'rows': 1.0})"


@pytest.mark.parametrize("runner", ["labkit", "papermill"])
def test_a_file_of_the_callers_folder_is_found_by_every_runner(store, tmp_path, runner):
    import nbformat

    original = nbformat.read(NOTEBOOKS_DIR / "15_your_own.ipynb", as_version=4)
    (knobs,) = [cell for cell in original.cells if "parameters" in cell.metadata.get("tags", [])]
    cells = [knobs, *(nbformat.v4.new_code_cell(text) for text in (CONFIGURE, SHOW, RECORD))]
    path = tmp_path / "course" / "15_your_own.ipynb"
    path.parent.mkdir()
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=original.metadata), path)
    here = tmp_path / "here"
    here.mkdir()
    (here / "rows.jsonl").write_text("".join(json.dumps({"prompt": "p", "answer": "a"}) + "\n" for _ in range(3)))
    command = [sys.executable, "-m", "labkit", "run", str(path), "-p", "data=rows.jsonl"]
    if runner == "papermill":
        command = [
            sys.executable,
            "-m",
            "papermill",
            str(path),
            "out.ipynb",
            "-p",
            "data",
            "rows.jsonl",
            "--log-output",
        ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=here, env={**os.environ})
    assert done.returncode == 0 and "rows: 3" in done.stdout + done.stderr, done.stderr[-2000:]
