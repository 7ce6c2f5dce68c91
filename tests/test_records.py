"""Records: plain numbers under stable names, one folder for each execution, the newest found again."""

import json
import os

import numpy
import pytest

import labkit
from labkit import parameters, records
from labkit.config import StartConfig
from labkit.errors import LabError

NAME = "00_start_here"
EVIDENCE = labkit.Evidence("answer rate", 0.9, 0.8, 0.95, 0.5)


def test_record_holds_everything(store, capsys):
    labkit.configure(NAME, {"model": "nano", "seed": 5, "retrain": False})
    verdict = labkit.verdict(2, EVIDENCE, "nano, seed 5")
    path = labkit.record(NAME, StartConfig(seed=5), {"accuracy": numpy.float32(0.5), "rows": 3}, [verdict])
    assert path.parent.parent == store / "notebooks" / NAME and path.name == "record.json"
    content = json.loads(path.read_text())
    assert content["notebook"] == NAME and content["seed"] == 5
    assert content["parameters"] == {"model": "nano", "seed": 5, "retrain": False}
    assert content["metrics"] == {"accuracy": 0.5, "rows": 3}
    assert content["verdicts"][0]["verdict"] == "holds here" and content["verdicts"][0]["evidence"][0]["low"] == 0.8
    assert content["versions"]["python"].startswith("3.") and content["date"][:2] == "20"
    assert 0 <= content["seconds"] < 10 and content["peak_rss_mb"] > 1
    assert capsys.readouterr().out.count("\n") == 1


def test_without_configure_the_seconds_are_unknown(store, monkeypatch):
    monkeypatch.setattr(parameters, "_started", None)
    assert json.loads(labkit.record(NAME, StartConfig(), {}).read_text())["seconds"] is None


def test_the_runners_folder_is_used(store, tmp_path, monkeypatch):
    monkeypatch.setenv("LABKIT_RECORD_DIR", str(tmp_path))
    assert labkit.record(NAME, StartConfig(), {}) == tmp_path / "record.json"


def test_two_in_the_same_second_do_not_collide(store):
    paths = [labkit.record(NAME, StartConfig(), {"number": number}) for number in range(5)]
    assert len(set(paths)) == 5
    assert [json.loads(path.read_text())["metrics"]["number"] for path in paths] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("name", ["Accuracy", "held-out", "1st", "a b", "", 3, "é"])
def test_names_are_snake_case(store, name):
    with pytest.raises(LabError, match="snake_case"):
        labkit.record(NAME, StartConfig(), {name: 1.0})
    assert not store.exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), numpy.float64("nan"), "0.5", None, True, [1]])
def test_values_are_finite_plain_numbers(store, value):
    with pytest.raises(LabError, match="accuracy must be"):
        labkit.record(NAME, StartConfig(), {"accuracy": value})
    assert not store.exists()


def test_unknown_notebook_and_typed_verdict(store):
    with pytest.raises(LabError, match=r"00_strat_here.*Did you mean 00_start_here"):
        labkit.record("00_strat_here", StartConfig(), {})
    with pytest.raises(LabError, match="computed, not typed"):
        labkit.record(NAME, StartConfig(), {}, ["holds here"])


def test_latest_records(store):
    labkit.record(NAME, StartConfig(), {"number": 1})
    newest = labkit.record(NAME, StartConfig(), {"number": 2})
    records.record_failure(records.new_folder(NAME), NAME, {"seed": 0}, 1.0, {"name": "ValueError"})
    broken = records.new_folder("07_dpo") / "record.json"
    broken.write_text("{")
    with pytest.warns(UserWarning, match="07_dpo.*Delete its folder"):
        found = labkit.latest_records()
    assert list(found) == [NAME] and found[NAME]["metrics"] == {"number": 2} and found[NAME]["path"] == str(newest)


def test_a_failure_keeps_what_was_recorded_before(store):
    path = labkit.record(NAME, StartConfig(), {"number": 1})
    records.record_failure(path.parent, NAME, {"seed": 0}, 1.0, {"name": "ValueError"})
    content = json.loads(path.read_text())
    assert content["metrics"] == {"number": 1} and content["error"] == {"name": "ValueError"}


def test_table_shows_seconds_memory_and_metrics(store):
    one = json.loads(labkit.record(NAME, StartConfig(), {"held_out_accuracy": 0.98765}).read_text())
    text = records.records_table([one | {"seconds": 61.7, "peak_rss_mb": 812.3}, one | {"error": {}, "seconds": None}])
    first, *rest = text.splitlines()
    assert first.split() == ["notebook", "seconds", "peak", "MB"]
    assert rest[0].split() == [NAME, "62", "812"] and rest[1].split() == ["held_out_accuracy", "0.9877"]
    assert rest[2].split()[:3] == [NAME, "(failed)", "-"]
    assert os.linesep not in rest[0]
