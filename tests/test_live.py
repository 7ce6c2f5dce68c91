"""Training from the panel: in a thread, stopped, resumed, found again, and refused twice at once."""

import itertools
import time
import types

import psutil
import pytest

from labkit import background, runs
from labkit.config import SFTConfig
from labkit.errors import ConfigError, DataError, TrainingError
from labkit.ui import live, plots


@pytest.fixture
def bench(store):
    return live.Bench("02_supervised_fine_tuning", config(), ["What is an LLM?"])


def config(**options):
    return SFTConfig(model="smoke", **{"steps": 4, "eval_every": 2, **options})


def until(true, seconds=120):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.05)


def test_train_from_the_button_to_the_end(bench):
    assert bench.run is None and "train" in bench.panel.state["can"] and "stop" in bench.panel.state["why"]
    bench.panel._do({"do": "train"})
    until(lambda: bench.run is not None and bench.run.status == "finished" and "again" in bench.panel.state["can"])
    assert bench.panel.state["share"] == 1 and "finished" in bench.panel.state["text"]
    assert len(bench.figure.data[0].x) >= 2 and "What is an LLM?" in bench.samples.value
    bench.samples.value, bench._status = "", "running"  # as if the last row had been drawn before the last answers came
    bench.refresh()
    assert "What is an LLM?" in bench.samples.value
    again = live.Bench("02_supervised_fine_tuning", config(), ["What is an LLM?"])  # another kernel, a reloaded page
    assert again.run.id == bench.run.id and again.figure.data[0].x == bench.figure.data[0].x


@pytest.mark.parametrize("when", ["at first", "at the end"])
def test_what_cannot_be_shown_once_does_not_end_the_view(bench, monkeypatch, when):
    show, failed = bench._show_samples, []

    def fails_once():
        if not failed and (when == "at first" or bench.run.status == "finished"):
            failed.append(True)
            raise OSError("the disk is slow")
        show()

    told = []
    bench.panel.observe(lambda change: told.append(change["new"]["error"]), "state")
    monkeypatch.setattr(bench, "_show_samples", fails_once)
    bench.train()
    until(lambda: bench.run is not None and bench.run.status == "finished" and "again" in bench.panel.state["can"])
    assert any("the disk is slow" in error for error in told)
    assert bench.panel.state["error"] == "" and "What is an LLM?" in bench.samples.value


def test_answers_are_read_while_they_are_written(bench):
    bench.train().thread.join()
    until(lambda: "What is an LLM?" in bench.samples.value)
    with (bench.run.path / "samples.jsonl").open("a") as file:
        file.write('{"step": 9, "prompt": "What is')
    bench._show_samples()
    assert "What is an LLM?" in bench.samples.value


def test_stop_keeps_what_was_learned_and_resume_goes_on(store):
    bench = live.Bench("02_supervised_fine_tuning", config(steps=4000, eval_every=1000), ["Hello"])
    bench.panel._do({"do": "train"})
    until(lambda: bench.run is not None and len(bench._log.rows) > 2)
    began = time.monotonic()
    bench.panel._do({"do": "stop"})
    until(lambda: bench.panel.state["status"] == "stopped")
    assert time.monotonic() - began < 10
    step = bench._log.rows[-1]["step"]
    assert step < 4000 and "what was learned is kept" in bench.panel.state["text"]
    assert bench.panel.state["label"] == "Resume"
    bench.panel._do({"do": "train"})
    until(lambda: bench._log.rows[-1]["step"] > step + 5)
    steps = [row["step"] for row in bench._log.rows if "loss" in row]
    assert steps == sorted(set(steps))  # it went on where it stopped
    bench.panel._do({"do": "stop"})
    until(lambda: bench.panel.state["status"] == "stopped")


def test_a_second_training_is_refused(bench):
    bench.panel.set(steps=4000)
    bench.panel._do({"do": "train"})
    until(lambda: background.Training.now.alive)
    second = live.Bench("02_supervised_fine_tuning", config(learning_rate=0.1), ["Hello"])
    second.panel._do({"do": "train"})
    assert "running in this kernel already" in second.panel.state["error"]
    with pytest.raises(TrainingError, match="running in this kernel already"):
        second.finish(say=lambda line: None)
    until(lambda: bench.run is not None and bench.run.status == "running")
    third = live.Bench("02_supervised_fine_tuning", config(steps=4000), ["Hello"])  # the cell was run once more
    assert "stop" in third.panel.state["can"] and third.run.id == bench.run.id
    third.panel._do({"do": "stop"})
    until(lambda: bench.run.status == "stopped" and not background.Training.now.alive)


def test_an_error_before_training_is_shown(store):
    bench = live.Bench("02_supervised_fine_tuning", config(data="nowhere.jsonl"), ["Hello"])
    assert "data file not found" in bench.panel.notes["estimate"][-1][1]
    bench.panel._do({"do": "train"})
    until(lambda: not background.Training.now.alive)
    until(lambda: "data file not found" in bench.panel.state["error"])


@pytest.mark.parametrize("place", ["costs", "existing"])
def test_a_slow_refusal_is_not_asked_for_again_at_every_turn_of_a_knob(store, monkeypatch, place):
    asked, clock = [], itertools.count(0, 3)

    def refuse(stage, config):
        if config.data != "lab":  # the pump of an earlier test may still be looking
            asked.append(config.data)
        raise DataError("no dataset could be read", got=config.data, remedy="Connect.")

    monkeypatch.setattr(live, "costs", refuse if place == "costs" else lambda stage, config: [])
    monkeypatch.setattr(live.pipeline, "existing", refuse if place == "existing" else lambda stage, config: None)
    monkeypatch.setattr(live, "time", types.SimpleNamespace(monotonic=lambda: next(clock), sleep=time.sleep))
    bench = live.Bench("02_supervised_fine_tuning", config(data="nobody/nothing"), ["Hello"])
    bench.panel.set(steps=5)
    bench.panel.set(steps=6)
    assert asked == ["nobody/nothing"] and "no dataset could be read" in str(bench.panel.notes)
    bench.panel.set(data="other/thing")
    assert asked == ["nobody/nothing", "other/thing"]
    bench.panel.set(data="nobody/nothing", model=str(store))  # perhaps it was the model that could not be read
    assert asked == ["nobody/nothing", "other/thing", "nobody/nothing"]


def test_a_cell_goes_the_same_way_as_the_button(bench):
    said = []
    found, run = bench.finish(say=said.append)
    assert run.status == "finished" and found == bench.panel.config and "step" in said[0]
    bench.panel.values = {**bench.panel.values, "steps": "none"}
    with pytest.raises(ConfigError, match="every knob"):
        bench.finish()


def test_a_run_of_another_kernel_is_watched(bench, store, monkeypatch):
    _, run = bench.finish(say=lambda line: None)
    began = psutil.Process(1).create_time()
    info = {**run.info, "status": "running", "pid": 1, "process_began": began}  # it lives and is not this one
    runs.write_json(run.path / "run.json", info)
    monkeypatch.setattr(live, "PULSE", 0.05)
    other = live.Bench("02_supervised_fine_tuning", config(), ["Hello"])
    assert "another kernel" in other.panel.state["text"] and "train" in other.panel.state["why"]
    runs.write_json(run.path / "run.json", {**info, "status": "finished"})
    until(lambda: other.panel.state["status"] == "finished")


def test_the_log_is_read_on_and_anew_after_a_rewind(store):
    run = runs.open_run("sft", config())
    log = background.Log(run.path)
    assert log.read() == []
    for step in range(5):
        run.log(step, loss=1.0)
    assert [row["step"] for row in log.read()] == list(range(5))
    run.rewind(2)
    assert [row["step"] for row in log.read()] == [0, 1, 2]
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "lo')  # torn
    assert [row["step"] for row in log.read()] == [0, 1, 2]


def test_a_long_history_is_thinned_without_losing_its_peaks():
    points = [(n, 1.0) for n in range(50_000)]
    points[31_234] = (31_234, 9.0)
    points[77] = (77, -9.0)
    x, y = plots.thinned(points, 2000)
    assert len(x) <= 2000 and list(x) == sorted(x) and max(y) == 9.0 and min(y) == -9.0


def test_a_histogram_counts_every_weight_and_marks_the_levels():
    figure = plots.histogram([0.0] * 30 + [1.0] * 10, [-1.0, 0.5], title="t", x="x")
    assert sum(figure.data[0].y) == pytest.approx(1) and max(figure.data[0].y) == 0.75
    assert [line.x0 for line in figure.layout.shapes] == [-1.0, 0.5]


def test_stacked_bars_have_every_part_and_what_was_measured():
    figure = plots.stacked({"a": {"x": 1.0}, "b": {"x": 2.0, "y": 3.0}}, title="t", y="MB", marks={"a": 1.5})
    assert {trace.name: list(trace.y) for trace in figure.data} == {"x": [1, 2], "y": [0, 3], "measured": [1.5]}
    assert figure.layout.barmode == "stack"


def test_the_charts_are_as_wide_as_the_panel():
    bench = live.Bench("02_supervised_fine_tuning", SFTConfig(model="smoke", steps=2), ["x"])
    bench.panel.width = 912
    assert bench.figure.layout.width == 912
    bench._do("shown")
    bench._do("shown")  # a page that was loaded again
    assert bench.figure.layout.width == 912
