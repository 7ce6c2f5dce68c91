"""The command line: one clean message for a mistake, numbers for the rest."""

import json
import os
import subprocess
import sys
import types

import pytest
from typer.testing import CliRunner

from labkit import __main__ as cli
from labkit import runs
from labkit.config import DPOConfig, SFTConfig
from labkit.errors import ConfigError

runner = CliRunner()


def command(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "labkit", *arguments], capture_output=True, text=True, env={**os.environ}
    )


def test_help_is_quick_and_loads_nothing_heavy():
    code = (
        "import sys; sys.argv = ['labkit', '--help']; import labkit.__main__ as m\n"
        "try: m.main()\n"
        "except SystemExit: print('LOADED', *sys.modules)"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    text, _, loaded = printed.partition("LOADED")
    assert all(
        name in text for name in ("run", "sweep", "runs", "show", "compare", "budget", "train", "fetch", "doctor")
    )
    assert not {"torch", "papermill", "pandas", "labkit.execute"} & set(loaded.split())


@pytest.mark.parametrize(
    ("arguments", "code", "part"),
    [
        (["run", "02", "-p", "steps"], 2, "-p must be name=value; got 'steps'"),
        (["run", "99"], 2, "notebook is not known; got '99'"),
        (["run"], 2, "either a notebook or --all"),
        (["run", "00", "--all"], 2, "either a notebook or --all; got '00'"),
        (["run", "--all", "-p", "beta=0.3"], 2, "beta is not a parameter of every notebook; got 0.3"),
        (["train", "none.json"], 2, "none.json must be a readable JSON file"),
        (["budget", "none.json"], 2, "none.json must be a readable JSON file"),
        (["sweep", "07", "-p", "beta=0.1,-1"], 2, "beta must be"),
        (["sweep", "07", "-p", "seed=0", "-p", "seed=1"], 2, "-p must name a parameter once; got 'seed'"),
        (["sweep", "07", "-p", "beta"], 2, "-p must be name=value"),
        (["compare", "sft-nano", "dpo-nano"], 1, "run must be the id of a run"),
        (["show", "sft-nano"], 1, "run must be the id of a run"),
    ],
)
def test_a_mistake_gives_one_message_and_no_traceback(store, arguments, code, part):
    done = command(*arguments)
    assert done.returncode == code and part in done.stderr, done.stderr
    assert "Traceback" not in done.stderr and done.stdout == ""


def test_values_are_typed_as_papermill_types_them():
    from papermill.cli import _resolve_type

    for text in (
        "3",
        "-3",
        "1_000",
        "0.3",
        "1e-3",
        "1e3",
        "nan",
        "True",
        "true",
        "None",
        "nano",
        "",
        "a=b",
        "0x10",
        "[1]",
    ):
        name, value = cli.split_parameter(f"beta={text}")
        assert name == "beta" and type(value) is type(_resolve_type(text)) and repr(value) == repr(_resolve_type(text))
    for wrong in ("beta", "=3", "be ta=3", ""):
        with pytest.raises(ConfigError):
            cli.split_parameter(wrong)


def test_runs_and_show(store):
    assert "no runs in" in runner.invoke(cli.app, ["runs"]).output
    sft = runs.open_run("sft", SFTConfig())
    sft.log(7, loss=1.25)
    sft.finish(accuracy=0.98765)
    dpo = runs.open_run("dpo", DPOConfig(), parent=sft.id)
    listed = runner.invoke(cli.app, ["runs"]).stdout.splitlines()
    assert listed[1].split()[:2] == [sft.id, "finished"] and "accuracy=0.9877" in listed[1]
    assert listed[2].split()[:2] == [dpo.id, "running"] and len(listed) == 3
    assert dpo.id not in runner.invoke(cli.app, ["runs", "--stage", "sft"]).stdout
    shown = runner.invoke(cli.app, ["show", sft.id[:-3]]).stdout
    assert json.loads(shown.partition("\n\n")[0])["metrics"] == {"accuracy": 0.98765}
    assert "1 logged lines" in shown and "step=7 loss=1.25" in shown
    (dpo.path / "run.json").write_text("{")
    broken = runner.invoke(cli.app, ["runs"])
    assert broken.exit_code == 0 and sft.id in broken.stdout and f"unreadable: run.json of {dpo.id}" in broken.stderr


def test_compare_shows_what_differs_and_what_each_measured(store):
    a, b = (runs.open_run("sft", SFTConfig(steps=n)) for n in (9, 10))
    for run, share in ((a, 0.5), (b, 0.75)):
        run.finish(accuracy=share)
    b.info["config"]["data"] = "\x1b[31mred"  # what a file says does not steer a terminal
    runs.write_json(b.path / "run.json", b.info)
    done = runner.invoke(cli.app, ["compare", a.id, b.id])
    lines = [line.split() for line in done.stdout.splitlines()]
    assert done.exit_code == 0 and ["steps", "9", "10"] in lines and ["accuracy", "0.5", "0.75"] in lines
    assert "\x1b" not in done.stdout and not any("model" in line for line in lines)
    alone = runner.invoke(cli.app, ["compare", a.id, a.id])
    assert alone.exit_code != 0 and "compare needs two runs" in str(alone.exception)


def test_values_of_a_sweep():
    assert cli.split_values("beta=0.1,0.3,1") == ("beta", [0.1, 0.3, 1])
    assert cli.split_values('target_modules="q_proj,v_proj",all-linear') == (
        "target_modules",
        ["q_proj,v_proj", "all-linear"],
    )
    assert cli.split_values("seed=1,1,2") == ("seed", [1, 2]) and cli.split_values("parent=") == ("parent", [""])
    for wrong in ("beta", "=3", "a,b=3"):
        with pytest.raises(ConfigError):
            cli.split_values(wrong)


def test_a_sweep_runs_its_grid_and_fails_where_one_does(store, monkeypatch):
    from labkit import sweep

    seen = []

    def run_grid(notebook, grid, say):
        seen.append((notebook, grid))
        good = {"varied": {"beta": 0.1}, "metrics": {"gold": 1.0}, "verdicts": [], "seconds": 2.0}
        bad = {"varied": {"beta": 0.3}, "metrics": {}, "verdicts": [], "seconds": None, "error": {"message": "x"}}
        return [good, bad]

    monkeypatch.setattr(sweep, "sweep", run_grid)
    done = runner.invoke(cli.app, ["sweep", "07", "-p", "beta=0.1,0.3"])
    assert seen == [("07", {"beta": [0.1, 0.3]})] and done.exit_code == 1
    assert "1 of 1" in done.stdout and "0 of 1" in done.stdout and "gold" in done.stdout


def test_train_hands_the_checked_config_to_the_pipeline(store, tmp_path, monkeypatch):
    seen = []

    def train_stage(stage, config):
        seen.append((stage, config))
        return types.SimpleNamespace(path="runs/sft/x")

    monkeypatch.setitem(sys.modules, "labkit.pipeline", types.SimpleNamespace(train_stage=train_stage))
    file = tmp_path / "config.json"
    file.write_text('{"stage": "sft", "steps": 9}')
    done = runner.invoke(cli.app, ["train", str(file)])
    assert done.exit_code == 0 and "runs/sft/x" in done.stdout and seen == [("sft", SFTConfig(steps=9))]
    for text, part in [
        ('{"stage": "sft", "stpes": 9}', "Did you mean steps"),
        ('{"stage": "sff"}', "got 'sff'"),
        ("[]", "names its stage"),
        ("{", "readable JSON"),
    ]:
        file.write_text(text)
        error = runner.invoke(cli.app, ["train", str(file)]).exception
        assert isinstance(error, ConfigError) and part in str(error)
    assert len(seen) == 1


@pytest.mark.parametrize("about", [{"stage": "sft", "data": "glossary", "tuning": "lora"}, {"stage": "pretrain"}])
def test_budget_says_what_a_training_weighs_and_how_long_it_takes(tmp_path, about):
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"model": "smoke", "steps": 50, "batch_size": 2, **about}))
    done = runner.invoke(cli.app, ["budget", str(file), "--probe"])
    assert done.exit_code == 0, done.output
    parts = {line[2:24].strip(): line[24:].strip() for line in done.output.splitlines() if line.startswith("  ")}
    sizes = {name: float(size.removesuffix(" MB").replace(",", "")) for name, size in parts.items()}
    assert sizes["process"] > 100 and sizes["in all"] >= sum(sizes[name] for name in ("process", "activations"))
    assert "fits" in done.output and "50 steps take about" in done.output


def test_a_probe_of_ppo_is_refused(tmp_path):
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"stage": "ppo", "model": "smoke"}))
    done = runner.invoke(cli.app, ["budget", str(file), "--probe"])
    assert done.exit_code != 0 and "stage cannot be probed" in str(done.exception)
