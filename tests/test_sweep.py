"""Sweeps: every combination once, resumable, one table with intervals over seeds."""

import json

import pytest

from labkit import sweep
from labkit.config import NOTEBOOKS
from labkit.errors import ConfigError, NotebookError
from labkit.records import find_record, new_folder


@pytest.fixture
def executed(store, monkeypatch):
    """The parameters of each execution; beta 0.3 with seed 1 fails once, the others record beta + seed."""
    done = []

    def run_notebook(path, parameters):
        done.append(parameters)
        name = path.stem
        folder, beta, seed = new_folder(name), parameters.get("beta", 0.1), parameters.get("seed", 0)
        if (beta, seed) == (0.3, 1) and done.count(parameters) == 1:
            raise NotebookError("cell 9 must run", got="ValueError", remedy="Look at it.")
        config = NOTEBOOKS[name].from_dict(parameters)
        about = {"notebook": name, "parameters": config.as_dict(), "date": "2026", "seconds": 2.0}
        verdict = {"claim": 3, "verdict": "holds here" if seed == 0 else "holds in part"}
        (folder / "record.json").write_text(
            json.dumps({**about, "metrics": {"sum": beta + seed}, "verdicts": [verdict]})
        )
        return folder

    monkeypatch.setattr(sweep, "run_notebook", run_notebook)
    return done


def lines(text):
    return [line.split() for line in text.splitlines()]


def test_every_combination_runs_once_and_a_failed_one_again(executed):
    grid = {"beta": [0.1, 0.3], "seed": [0, 1]}
    found = sweep.sweep("07", grid, say=lambda line: None)
    assert executed == [{"beta": b, "seed": s} for b in (0.1, 0.3) for s in (0, 1)]
    assert [one["varied"] for one in found] == executed and ["error" in one for one in found] == [False] * 3 + [True]
    said = []
    again = sweep.sweep("07", grid, say=said.append)
    assert executed[4:] == [{"beta": 0.3, "seed": 1}] and not any("error" in one for one in again)
    assert said[0] == "1 of 4: beta=0.1 seed=0, recorded already" and said[3] == "4 of 4: beta=0.3 seed=1"


def test_the_table_takes_seeds_together_with_an_interval(executed):
    text = sweep.table(sweep.sweep("07", {"beta": [0.1, 0.3], "seed": [0, 1]}, say=lambda line: None))
    head, runs, _, metric, claim = lines(text)
    assert head == ["beta=0.1", "beta=0.3"] and runs == ["runs", "2", "of", "2", "1", "of", "2"]
    half = 12.706 * 0.5  # Student's t of two seeds, 0.1 and 1.1, by hand
    assert metric[:2] == ["sum", "0.6"] and metric[-1] == "0.3"
    assert [float(one.strip("[],")) for one in metric[2:4]] == pytest.approx([0.6 - half, 0.6 + half], abs=2e-3)
    assert " ".join(claim) == "claim 3 holds here; holds in part holds here"


def test_a_sweep_of_seeds_alone_has_one_column(executed):
    head, runs, *_ = lines(sweep.table(sweep.sweep("07_dpo", {"seed": [0, 1, 2]}, say=lambda line: None)))
    assert head == ["all"] and runs == ["runs", "3", "of", "3"]


@pytest.mark.parametrize("grid", [{"beta": [0.1, -1.0]}, {"bta": [0.1]}, {"beta": []}, {}])
def test_nothing_runs_where_one_value_is_wrong(executed, grid):
    with pytest.raises(ConfigError):
        sweep.sweep("07", grid)
    assert executed == []


def test_a_record_is_found_by_all_its_parameters(executed):
    name = "07_dpo"
    sweep.sweep("07", {"beta": [0.2]}, say=lambda line: None)
    assert find_record(name, {"beta": 0.2})["metrics"] == {"sum": 0.2}
    assert find_record(name, {}) is None and find_record(name, {"beta": 0.2, "seed": 1}) is None
    file = next((new_folder(name).parent).glob("*/record.json"))
    wrong = json.loads(file.read_text()) | {"error": {"message": "x"}}
    file.write_text(json.dumps(wrong))
    assert find_record(name, {"beta": 0.2}) is None


def test_a_model_with_sizes_of_its_own_is_found_by_them(store):
    config = NOTEBOOKS["07_dpo"].from_dict({"model": "smoke"})
    from labkit.config import sized

    folder = new_folder("07_dpo")
    about = {"notebook": "07_dpo", "parameters": sized(config).as_dict(), "date": "2026", "metrics": {}, "seconds": 1.0}
    (folder / "record.json").write_text(json.dumps(about))
    assert find_record("07_dpo", {"model": "smoke"}) is not None
    assert find_record("07_dpo", {"model": "smoke", "steps": 160}) is None  # written down, so it is kept
