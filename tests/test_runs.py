"""The run store: content makes the id, kills leave nothing half-written, bad files are told and not in the way."""

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy
import pytest

from labkit import lineage, runs
from labkit.config import STAGES, DPOConfig, SFTConfig
from labkit.errors import RunError


def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def kill(run, pid):
    """What a killed process leaves: status running, and a process that is gone."""
    runs.write_json(run.path / "run.json", run.info | {"status": "running", "pid": pid})


def test_a_process_of_that_number_that_began_later_is_another_one(store):
    run = runs.open_run("sft", SFTConfig(steps=5))
    assert run.reload().status == "running"
    runs.write_json(run.path / "run.json", run.info | {"process_began": run.info["process_began"] - 60})
    assert run.reload().status == "stopped"


def test_a_run_on_another_machine_lives_as_long_as_it_logs(store):
    run = runs.open_run("sft", SFTConfig(steps=5))
    runs.write_json(run.path / "run.json", run.info | {"host": "another", "pid": dead_pid()})
    run.log(1, loss=1.0)
    assert run.reload().status == "running"
    for file in run.path.iterdir():
        os.utime(file, (0, 0))
    assert run.reload().status == "stopped"


def test_other_weights_in_the_same_folder_are_another_run(store, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    weights = tmp_path / "model.safetensors"
    found = []
    for content in (bytes(10_000_000), bytes(10_000_000), bytes(9_990_000) + b"1" * 10_000, bytes(9_000_000)):
        weights.write_bytes(content)
        found.append(runs.run_id("sft", SFTConfig(model=str(tmp_path))))
    assert found[0] == found[1] and len(set(found)) == 3


def test_same_content_is_the_same_run(store):
    run = runs.open_run("sft", SFTConfig(steps=5), parent="pretrain-nano-0", data_hash="d")
    assert run.path == store / "sft" / run.id and run.id.startswith("sft-nano-")
    same = runs.open_run("sft", SFTConfig(steps=5, eval_every=3, retrain=True), parent="pretrain-nano-0", data_hash="d")
    assert same.id == run.id
    others = [
        runs.run_id("sft", SFTConfig(steps=6), "pretrain-nano-0", "d"),
        runs.run_id("sft", SFTConfig(steps=5), "pretrain-nano-1", "d"),
        runs.run_id("sft", SFTConfig(steps=5), "pretrain-nano-0", "e"),
        runs.run_id("dpo", DPOConfig(steps=5), "pretrain-nano-0", "d"),
    ]
    assert len({run.id, *others}) == 5


def test_the_configured_parent_is_used_where_none_is_given(store):
    config = SFTConfig(parent="pretrain-nano-1")
    assert runs.open_run("sft", config).id == runs.run_id("sft", SFTConfig(), "pretrain-nano-1")


def test_ids_do_not_change_from_one_process_to_the_next(store):
    code = "from labkit import runs; from labkit.config import SFTConfig; print(runs.run_id('sft', SFTConfig(seed=3)))"
    env = os.environ | {"PYTHONHASHSEED": "7"}
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env).stdout
    assert other.strip() == runs.run_id("sft", SFTConfig(seed=3))


@pytest.mark.parametrize("model", ["org/name", "/tmp/my model/", "..", "../../etc", "a\\b", "x" * 300, "π"])
def test_any_model_gives_a_safe_folder_name(store, model):
    run = runs.open_run("sft", SFTConfig(model=model))
    assert run.path.parent == store / "sft" and run.path.is_dir()
    assert len(run.id) < 64 and set(run.id) <= set("abcdefghijklmnopqrstuvwxyz0123456789_.-") and ".." not in run.id


def test_life_of_a_run(store):
    run = runs.open_run("sft", SFTConfig(seed=4), data_hash="d")
    assert run.status == "running" and runs.find_run("sft", SFTConfig(seed=4), data_hash="d") is None
    run.log(1, loss=2.5, learning_rate=numpy.float32(0.5))
    run.log(numpy.int64(2), loss=float("nan"))
    assert run.history() == [{"step": 1, "loss": 2.5, "learning_rate": 0.5}, {"step": 2, "loss": None}]
    run.finish(accuracy=numpy.float64(0.5), rows=3)
    found = runs.find_run("sft", SFTConfig(seed=4), data_hash="d")
    assert found.metrics == {"accuracy": 0.5, "rows": 3} and found.status == "finished"
    assert found.config == SFTConfig(seed=4).as_dict() and found.checkpoint == run.path / "checkpoint"
    needed = "id stage status config parent data_hash versions seed metrics created updated seconds peak_rss_mb pid"
    assert set(needed.split()) <= set(found.info)
    assert found.info["seed"] == 4 and found.info["pid"] == os.getpid() and found.info["peak_rss_mb"] > 1
    assert found.info["versions"]["python"].startswith("3.")


def test_a_finished_run_is_returned_untouched_unless_fresh(store):
    run = runs.open_run("sft", SFTConfig())
    run.log(1, loss=1.0)
    run.finish(loss=1.0)
    before = (run.path / "run.json").read_text()
    assert runs.open_run("sft", SFTConfig()).status == "finished"
    assert (run.path / "run.json").read_text() == before
    fresh = runs.open_run("sft", SFTConfig(), fresh=True)
    assert (fresh.id, fresh.status, fresh.metrics, fresh.history()) == (run.id, "running", {}, [])


def test_stop_fail_and_resume(store):
    run = runs.open_run("sft", SFTConfig())
    run.fail(ValueError("bad row"))
    assert runs.get(run.id).status == "failed" and runs.get(run.id).info["error"] == "ValueError: bad row"
    runs.write_json(run.path / "run.json", run.info | {"seconds": 100.0})
    again = runs.open_run("sft", SFTConfig())
    assert again.status == "running" and "error" not in again.info
    again.stop()
    assert runs.get(run.id).status == "stopped" and 100 <= runs.get(run.id).info["seconds"] < 130
    assert run.status == "failed" and run.reload().status == "stopped"


def test_a_killed_run_is_stopped_and_loses_only_its_torn_line(store):
    run = runs.open_run("sft", SFTConfig())
    run.log(1, loss=3.0)
    run.log(2, loss=2.0)
    with open(run.path / "metrics.jsonl", "a") as file:
        file.write('{"step": 3, "lo')
    kill(run, dead_pid())
    killed = runs.get(run.id)
    assert killed.status == "stopped"
    assert [row["step"] for row in killed.history()] == [1, 2]
    resumed = runs.open_run("sft", SFTConfig())
    resumed.log(3, loss=1.0)
    assert [row["loss"] for row in resumed.history()] == [3.0, 2.0, 1.0]
    resumed.rewind(1)
    assert [row["step"] for row in resumed.history()] == [1]


def test_a_bad_line_in_the_middle_is_told(store):
    run = runs.open_run("sft", SFTConfig())
    (run.path / "metrics.jsonl").write_text('{"step": 1}\nnonsense\n{"step": 2}\n')
    with pytest.raises(RunError, match=r"nonsense.*Delete line 2"):
        run.history()


@pytest.mark.parametrize("value", ["3", True, None, numpy.zeros(2), [1], numpy.bool_(True)])
def test_only_numbers_are_logged(store, value):
    run = runs.open_run("sft", SFTConfig())
    for call in (lambda: run.log(1, loss=value), lambda: run.finish(loss=value)):
        with pytest.raises(RunError, match="loss must be a number; got"):
            call()
    assert run.history() == [] and run.reload().status == "running"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), numpy.float32("nan")])
def test_a_run_cannot_finish_with_a_metric_that_is_no_number(store, value):
    run = runs.open_run("sft", SFTConfig())
    with pytest.raises(RunError, match=r"loss must be finite.*got (nan|inf).*learning rate"):
        run.finish(loss=value)
    assert run.reload().status == "running"


def test_get_by_prefix_and_near_misses(store):
    first = runs.open_run("sft", SFTConfig())
    runs.open_run("sft", SFTConfig(steps=5))
    assert runs.get(first.id).path == first.path and runs.get(first.id[:-2]).id == first.id
    with pytest.raises(RunError, match=r"one run only; got 'sft-nano'\. Add letters: .*, "):
        runs.get("sft-nano")
    with pytest.raises(RunError, match=f"got 'sft-nona.*Near it: .*{first.id}"):
        runs.get("sft-nona-" + first.id[-8:])
    for name in ("", "..", "../sft"):
        with pytest.raises(RunError):
            runs.get(name)


def test_get_from_an_empty_store(store):
    with pytest.raises(RunError, match=r"got 'sft'\. The store is empty"):
        runs.get("sft")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"id": "x"}', "\xff"])
def test_a_corrupt_run_is_told_and_does_not_break_the_list(store, text):
    good, bad = runs.open_run("sft", SFTConfig()), runs.open_run("dpo", DPOConfig())
    (bad.path / "run.json").write_text(text, encoding="latin-1")
    with pytest.warns(UserWarning, match=f"{bad.id}.*Delete the folder"):
        assert [run.id for run in runs.all_runs()] == [good.id]
    assert [run.id for run in runs.all_runs("sft")] == [good.id]
    for call in (lambda: runs.get(bad.id), lambda: runs.open_run("dpo", DPOConfig())):
        with pytest.raises(RunError, match="Delete the folder"):
            call()


def test_files_are_replaced_whole(store, monkeypatch):
    run = runs.open_run("sft", SFTConfig())
    before = (run.path / "run.json").read_text()

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        run.finish(loss=1.0)
    assert (run.path / "run.json").read_text() == before
    json.loads(before)


def test_lines_are_written_whole_whatever_they_hold(store):
    rows = [{"text": text} for text in ("é\u2028\x85", "half a pair \ud83d", "a\nb")]
    file = runs.write_lines(store / "made" / "rows.jsonl", rows)
    assert [json.loads(line) for line in file.open(encoding="utf-8")] == rows
    with pytest.raises(TypeError):
        runs.write_lines(file, [{"text": "new"}, {"text": object()}])
    assert [json.loads(line) for line in file.open(encoding="utf-8")] == rows
    assert [one.name for one in file.parent.iterdir()] == ["rows.jsonl"]


def test_a_folder_without_run_json_is_a_new_run(store):
    path = store / "sft" / runs.run_id("sft", SFTConfig())
    path.mkdir(parents=True)
    assert runs.all_runs() == [] and runs.open_run("sft", SFTConfig()).path == path


def test_stage_must_be_a_plain_name(store):
    with pytest.raises(RunError, match=r"stage.*\.\./x"):
        runs.open_run("../x", SFTConfig())


def test_memory_is_the_processs_own():
    """A process started by a large one must not count the large one's memory."""
    large = bytearray(os.urandom(1)) * 400_000_000
    code = "from labkit.runs import peak_rss_mb; x = bytearray(b'1') * 50_000_000; print(peak_rss_mb())"
    small = float(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout)
    assert 50 < small < 200 < len(large) / 1e6 < runs.peak_rss_mb()


def test_versions_line_names_everything():
    line = runs.describe_versions(7, device="cpu", dtype="torch.bfloat16")
    for part in ("python 3.", "torch 2.", "transformers 5.", "trl 1.", "device cpu", "dtype bfloat16", "seed 7"):
        assert part in line
    assert "\n" not in line


def test_the_pace_is_the_median_so_that_a_look_does_not_count(store):
    run = runs.open_run("sft", SFTConfig(model="smoke"))
    assert math.isnan(run.seconds_per_step())
    for step, seconds in ((1, 1.0), (3, 2.0), (5, 3.0), (7, 34.0), (9, 35.0)):
        run.log(step, loss=1.0, seconds=seconds)
        run.log(step, held_out_loss=1.0, seconds=seconds)
    assert run.seconds_per_step() == 0.5


def test_an_edit_of_the_code_is_another_run_and_of_a_comment_is_not(tmp_path, monkeypatch):
    """What decides the numbers takes part in the id: the stage's module and what it imports."""
    package = tmp_path / "labkit"
    shutil.copytree(Path(runs.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__", "ui"))
    monkeypatch.setattr(runs, "__file__", str(package / "runs.py"))

    def hashes():
        runs.code_hash.cache_clear()
        return {stage: runs.code_hash(stage) for stage in STAGES}

    def edited(name, old, new):
        file = package / f"{name}.py"
        text = file.read_text(encoding="utf-8")
        assert old in text
        file.write_text(text.replace(old, new), encoding="utf-8")

    try:
        before = hashes()
        assert len(set(before.values())) == len(STAGES)
        edited("stages/dpo", '"""Direct preference', '"""# another docstring: Direct preference')
        edited("order", "def order(", "# a comment\ndef order(")
        edited("evaluate/checkers", "def ", "def  ")
        assert hashes() == before
        edited("stages/dpo", "return -logsigmoid(p.margin(b))", "return -2 * logsigmoid(p.margin(b))")
        assert {stage for stage, now in hashes().items() if now != before[stage]} == {"dpo"}
        edited("ppo", "+ 1e-8", "+ 1e-7")
        assert {stage for stage, now in hashes().items() if now != before[stage]} == {"dpo", "ppo"}
        edited("order", "POOL = 50", "POOL = 51")
        assert all(now != before[stage] for stage, now in hashes().items())
    finally:
        runs.code_hash.cache_clear()


HOLDER = """
import sys
from pathlib import Path
from labkit import lineage, runs
from labkit.config import SFTConfig
run = runs.open_run("sft", SFTConfig())
print(run.id, flush=True)
sys.stdin.readline()
run.finish(held_out_loss=1.0)
"""


def test_two_processes_never_train_one_run(store):
    child = subprocess.Popen([sys.executable, "-c", HOLDER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    name = child.stdout.readline().strip()
    run = runs.get(name)
    run.log(1, loss=1.0)
    for fresh in (False, True):
        with pytest.raises(
            RunError, match=f"must not be trained by two processes at once; got 'process {child.pid} on"
        ):
            runs.open_run("sft", SFTConfig(), fresh=fresh)
    assert runs.get(name).history()  # nothing was deleted
    with pytest.raises(RunError, match="must not be running to be deleted"):
        lineage.delete(name)
    child.communicate("\n")
    assert runs.open_run("sft", SFTConfig()).status == "finished"


def test_a_killed_process_leaves_no_lock(store):
    child = subprocess.Popen([sys.executable, "-c", HOLDER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    name = child.stdout.readline().strip()
    child.kill()
    child.wait()
    again = runs.open_run("sft", SFTConfig())
    assert again.id == name and again.status == "running"
    again.stop()
    assert runs.open_run("sft", SFTConfig(), fresh=True).stop().status == "stopped"
