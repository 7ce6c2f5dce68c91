"""Headless notebooks: parameters checked first, failures kept, the same result as plain papermill."""

import json
import os
import subprocess
import sys

import nbformat
import pytest

from labkit import execute
from labkit.config import NOTEBOOKS, StartConfig
from labkit.errors import ConfigError, NotebookError

NAME = "00_start_here"
PARAMETERS = 'model = "nano"  # which model\nseed = 0\nretrain = False'
CONFIGURE = f'import labkit\nconfig = labkit.configure("{NAME}", globals())'
MEASURE = "import random\nmetrics = {'draw': random.Random(config.seed).random(), 'size': len(config.model)}"
RECORD = f'labkit.record("{NAME}", config, metrics)'
STAMP = "from pathlib import Path\nPath('ran.txt').write_text('ran')"

pytestmark = pytest.mark.notebook


def write(folder, *cells, name=NAME, tag="parameters"):
    notebook = nbformat.v4.new_notebook(
        metadata={"kernelspec": {"name": "python3", "display_name": "x", "language": "python"}}
    )
    notebook.cells = [nbformat.v4.new_markdown_cell("# A notebook"), nbformat.v4.new_code_cell(PARAMETERS)]
    notebook.cells[1].metadata["tags"] = [tag]
    notebook.cells += [nbformat.v4.new_code_cell(source) for source in cells]
    folder.mkdir(exist_ok=True)
    nbformat.write(notebook, folder / f"{name}.ipynb")
    return folder / f"{name}.ipynb"


@pytest.fixture
def course(tmp_path, monkeypatch):
    """A folder of notebooks in place of the course's, for this process."""
    folder = tmp_path / "notebooks"
    monkeypatch.setattr(execute, "NOTEBOOKS_DIR", folder)
    return folder


def papermill(notebook, output, *arguments, **env):
    command = [sys.executable, "-m", "papermill", "--no-progress-bar", str(notebook), str(output), *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=notebook.parent, env={**os.environ, **env})


def outputs(folder):
    cells = nbformat.read(folder / f"{NAME}.ipynb", as_version=4).cells
    return [cell for cell in cells if cell.cell_type == "code"]


def test_both_ways_give_the_same_result_and_a_full_record(store, course, tmp_path):
    path = write(course, CONFIGURE, MEASURE, RECORD)
    folder = execute.run_notebook("00", {"seed": 3})
    assert folder.parent == store / "notebooks" / NAME
    ours = json.loads((folder / "record.json").read_text())
    assert (ours["parameters"], ours["seed"]) == (StartConfig(seed=3).as_dict(), 3)
    assert ours["metrics"]["size"] == 4 and 0 < ours["metrics"]["draw"] < 1
    assert 0 < ours["seconds"] < 60 and 10 < ours["peak_rss_mb"] < 1000 and "error" not in ours
    assert [cell.execution_count for cell in outputs(folder)] == [1, 2, 3, 4, 5]
    assert "recorded 2 metrics" in outputs(folder)[-1].outputs[0].text

    done = papermill(path, tmp_path / "out.ipynb", "-p", "seed", "3")
    assert done.returncode == 0, done.stderr
    newest = max((store / "notebooks" / NAME).glob("*/record.json"), key=os.path.getmtime)
    plain = json.loads(newest.read_text())
    assert newest.parent != folder
    assert (plain["metrics"], plain["parameters"]) == (ours["metrics"], ours["parameters"])


@pytest.mark.parametrize(
    ("parameters", "parts"),
    [
        ({"sede": 3}, ["sede", "got 3", "Did you mean seed?", "from 0 to"]),
        ({"seed": "three"}, ["seed", "'three'", "from 0 to"]),
    ],
)
def test_wrong_parameters_fail_before_anything_runs_in_the_runner(store, course, parameters, parts):
    write(course, STAMP, CONFIGURE, RECORD)
    with pytest.raises(ConfigError) as caught:
        execute.run_notebook(NAME, parameters)
    assert all(part in str(caught.value) for part in parts), str(caught.value)
    assert not (course / "ran.txt").exists() and not store.exists()


@pytest.mark.parametrize(
    ("name", "value", "parts"),
    [
        ("sede", "3", ["sede is not a parameter", "got 3", "Did you mean seed?", "from 0 to"]),
        ("seed", "three", ["seed must be", "got 'three'", "from 0 to"]),
    ],
)
def test_wrong_parameters_fail_at_the_first_cell_in_plain_papermill(store, course, tmp_path, name, value, parts):
    path = write(course, CONFIGURE, STAMP, RECORD)
    done = papermill(path, tmp_path / "out.ipynb", "-p", name, value)
    assert done.returncode != 0
    line = done.stderr.splitlines()[-2]
    assert all(part in line for part in parts), done.stderr
    assert not (course / "ran.txt").exists() and not store.exists()


def test_a_failing_notebook_is_saved_up_to_its_cell_and_the_command_fails(store, course):
    path = write(course, CONFIGURE, "print('before')", "def deep():\n    return 1 / 0\ndeep()", STAMP, RECORD)
    command = [sys.executable, "-m", "labkit", "run", str(path), "-p", "seed=3"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=execute.NOTEBOOKS_DIR.parent, env={**os.environ})
    assert done.returncode == 1
    for part in ("NotebookError: cell 4 (In [5])", "ZeroDivisionError: division by zero", "return 1 / 0"):
        assert part in done.stderr, done.stderr
    assert "before" in done.stdout and "raise failure" not in done.stderr and "\x1b" not in done.stderr
    (folder,) = (store / "notebooks" / NAME).iterdir()
    record = json.loads((folder / "record.json").read_text())
    assert record["error"]["name"] == "ZeroDivisionError" and record["error"]["cell"] == 4
    assert record["parameters"]["seed"] == record["seed"] == 3 and record["metrics"] == {}
    assert any("1 / 0" in line for line in record["error"]["traceback"])
    cells = outputs(folder)
    assert cells[3].outputs[0].text == "before\n" and cells[4].outputs[0].ename == "ZeroDivisionError"
    assert cells[5].execution_count is None and not (course / "ran.txt").exists()


def test_a_notebook_that_records_nothing_is_told(store, course):
    write(course, CONFIGURE)
    with pytest.raises(NotebookError, match=r"00_start_here must record.*labkit\.record\('00_start_here'"):
        execute.run_notebook("0", {})
    (folder,) = (store / "notebooks" / NAME).iterdir()
    assert json.loads((folder / "record.json").read_text())["error"]["name"] == "NotebookError"


def test_a_dead_kernel_is_told(store, course):
    write(course, CONFIGURE, "import os\nos._exit(9)", RECORD)
    with pytest.raises(NotebookError, match=r"kernel of 00_start_here must live.*memory"):
        execute.run_notebook(NAME)
    (folder,) = (store / "notebooks" / NAME).iterdir()
    assert json.loads((folder / "record.json").read_text())["error"]["name"] == "DeadKernelError"
    assert outputs(folder)[1].execution_count == 2


def test_the_kernel_is_this_python_whatever_is_installed(store, course, tmp_path, monkeypatch):
    """Another python3 kernel comes first on Jupyter's path, and the folder's name has signs easily misread."""
    spec = tmp_path / "jupyter" / "kernels" / "python3" / "kernel.json"
    spec.parent.mkdir(parents=True)
    spec.write_text(
        json.dumps({"argv": ["/bin/false", "{connection_file}"], "display_name": "x", "language": "python"})
    )
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    odd = tmp_path / "odd {seed} $HOME folder"
    monkeypatch.setenv("LABKIT_RUNS", str(odd / "runs"))
    monkeypatch.setattr(execute, "NOTEBOOKS_DIR", odd)
    odd.mkdir()
    look = "import os, sys\nprint(sys.executable, labkit.__file__, os.getcwd(), sep='\\n')"
    write(odd, CONFIGURE, look, MEASURE, RECORD)
    folder = execute.run_notebook(NAME, {"seed": 1})
    printed = outputs(folder)[3].outputs[0].text.splitlines()
    assert printed == [sys.executable, execute.__file__.replace("execute.py", "__init__.py"), str(odd)]
    assert odd in folder.parents


def test_all_runs_the_course_in_order(store, course, monkeypatch, capsys):
    monkeypatch.setattr(execute, "NOTEBOOKS", {NAME: StartConfig, "07_dpo": NOTEBOOKS["07_dpo"]})
    write(course, CONFIGURE, MEASURE, RECORD)
    parameters = "\n".join(f"{name} = {value!r}" for name, value in NOTEBOOKS["07_dpo"]().as_dict().items())
    other = write(
        course,
        CONFIGURE.replace(NAME, "07_dpo"),
        RECORD.replace(NAME, "07_dpo").replace("metrics", "{'pi': 3.14}"),
        name="07_dpo",
    )
    notebook = nbformat.read(other, as_version=4)
    notebook.cells[1].source = parameters
    nbformat.write(notebook, other)
    folders = execute.run_all({"seed": 2})
    assert [folder.parent.name for folder in folders] == [NAME, "07_dpo"]
    assert [json.loads((folder / "record.json").read_text())["seed"] for folder in folders] == [2, 2]
    table = capsys.readouterr().out.split("\n\n")[-1]
    assert "peak MB" in table and "pi" in table and "3.14" in table and table.index(NAME) < table.index("07_dpo")


def test_all_takes_only_what_every_notebook_has(store, course):
    with pytest.raises(ConfigError, match=r"beta is not a parameter of every notebook; got 0.3.*model, seed"):
        execute.run_all({"beta": 0.3})
    with pytest.raises(ConfigError, match="notebook must be a file"):
        execute.run_all({"seed": "x"})
    assert not store.exists()


def test_finding_a_notebook(course, tmp_path):
    path = write(course, CONFIGURE)
    assert execute.find_notebook("00") == execute.find_notebook("0") == execute.find_notebook(NAME) == path
    assert execute.find_notebook(path) == execute.find_notebook(str(path)) == path
    for wrong, part in [("00_strat_here", "Did you mean 00_start_here"), ("99", "Known: 00_start_here"), ("", "Known")]:
        with pytest.raises(ConfigError, match=part):
            execute.find_notebook(wrong)
    with pytest.raises(ConfigError, match=r"must be a file; got .*07_dpo\.ipynb"):
        execute.find_notebook("07")
    with pytest.raises(ConfigError, match="must be named"):
        execute.find_notebook(tmp_path / "mine.ipynb")


def test_a_notebook_without_the_tag_is_refused(store, course):
    """papermill would set the parameters above the cell that then sets them back."""
    write(course, CONFIGURE, RECORD, tag="other")
    with pytest.raises(ConfigError, match="one cell tagged parameters; got 0"):
        execute.run_notebook(NAME, {"seed": 3})
    (course / f"{NAME}.ipynb").write_text("{")
    with pytest.raises(ConfigError, match="notebook JSON"):
        execute.run_notebook(NAME)
    assert not store.exists()
