"""The panel: knobs from the dataclass, errors beside them, nothing clamped; what it gives to copy runs the same."""

import ast
import dataclasses
import json

import pytest

from labkit import config as configs
from labkit import fields
from labkit.config import DPOConfig, PPOConfig, PretrainConfig, SFTConfig
from labkit.errors import ConfigError
from labkit.fields import allowed
from labkit.ui.panel import PRESETS, Panel, describe, parsed, shown

NOTEBOOKS = {"01_pretraining": PretrainConfig, "02_supervised_fine_tuning": SFTConfig, "07_dpo": DPOConfig}


def turn(panel, **raw):
    panel.values = {**panel.values, **raw}


@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_every_field_has_a_control_with_its_help_and_range(notebook):
    panel = Panel(notebook, NOTEBOOKS[notebook]())
    fields = {field.name: field for field in dataclasses.fields(NOTEBOOKS[notebook]) if field.name != "retrain"}
    assert [row["name"] for row in panel.fields] == list(fields)
    for row in panel.fields:
        assert fields[row["name"]].metadata["help"] in row["help"]
        assert allowed(fields[row["name"]]) in row["help"]
        assert row["choices"] == list(fields[row["name"]].metadata["choices"] or ())
        if row["slider"]:
            assert row["slider"]["low"] <= fields[row["name"]].default <= row["slider"]["high"]
    json.dumps([panel.fields, panel.values, panel.notes])  # what goes to the browser is plain


def test_it_starts_from_the_parameters_and_a_change_changes_the_config():
    panel = Panel("07_dpo", DPOConfig(beta=0.3, steps=7))
    assert (
        panel.values["beta"] == "0.3" and panel.values["steps"] == "7" and panel.config == DPOConfig(beta=0.3, steps=7)
    )
    turn(panel, beta="0.5", loss_type="ipo")
    assert panel.config == DPOConfig(beta=0.5, steps=7, loss_type="ipo")


@pytest.mark.parametrize("raw", ["99", "-1", "", "many", "nan", "inf", "1e999", "<script>", True, None])
def test_a_value_that_a_knob_cannot_hold_is_an_error_and_is_not_clamped(raw):
    panel = Panel("07_dpo", DPOConfig())
    turn(panel, beta=raw)
    assert "beta must be" in panel.notes["errors"]["beta"] and panel.config is None
    assert panel.values["beta"] == raw and not panel.notes["parameters"]
    turn(panel, beta="1")
    assert panel.notes["errors"] == {} and panel.config.beta == 1.0


def test_whole_numbers_stay_whole():
    panel = Panel("02_supervised_fine_tuning", SFTConfig())
    turn(panel, steps="12.5")
    assert "whole number" in panel.notes["errors"]["steps"]
    turn(panel, steps="12")
    assert panel.config.steps == 12


def test_a_knob_without_effect_is_disabled_and_says_why():
    panel = Panel("07_dpo", DPOConfig())
    assert (
        panel.notes["disabled"]["label_smoothing"]
        == "needs loss_type = 'robust' or 'exo_pair' or 'aot' or 'aot_unpaired'"
    )
    assert panel.notes["disabled"]["lora_rank"] == "needs tuning = 'lora'"
    turn(panel, loss_type="robust", label_smoothing="0.2", tuning="lora", lora_rank="4")
    assert not panel.notes["disabled"] and panel.config.label_smoothing == 0.2 and panel.config.lora_rank == 4
    turn(panel, loss_type="sigmoid")  # the knob keeps what was typed, and the run does not see it
    assert panel.config.label_smoothing == 0.0 and "label_smoothing" in panel.notes["disabled"]


def test_the_same_rule_holds_in_the_parameters_cell():
    with pytest.raises(ConfigError, match="lora_rank needs tuning = 'lora'"):
        SFTConfig(lora_rank=4)
    assert SFTConfig(tuning="lora", lora_rank=4).lora_rank == 4


def test_what_is_copied_gives_the_same_config():
    panel = Panel("07_dpo", DPOConfig())
    turn(panel, beta="0.3", loss_type="ipo", data="my pairs; rm -rf.jsonl")
    tree = ast.parse(panel.notes["parameters"])
    values = {node.targets[0].id: ast.literal_eval(node.value) for node in tree.body}
    assert DPOConfig(**values) == panel.config
    mill, lab, stage = panel.notes["command"].splitlines()
    assert "-p beta 0.3" in mill and "-p beta=0.3" in lab and "'my pairs; rm -rf.jsonl'" in mill
    about = json.loads(stage.split("'")[1].split("'")[0]) if stage.count("'") == 2 else None
    assert about is None or about["beta"] == 0.3


def test_a_button_takes_the_knobs_as_they_stand_in_the_page():
    """A change of a knob and the click after it are two messages, and the click may be first."""
    begun = []
    panel = Panel("02_supervised_fine_tuning", SFTConfig(), on_do=lambda what: begun.append((what, panel.config)))
    panel._do({"do": "train", "values": {**panel.values, "steps": "40", "no such knob": "1"}})
    panel._do({"do": "again", "values": {**panel.values, "steps": "many"}})
    panel._do({"do": "stop"})
    assert begun == [("train", SFTConfig(steps=40)), ("again", None), ("stop", None)]
    assert "steps" in panel.notes["errors"] and "no such knob" not in panel.values


def test_presets_and_reset():
    panel = Panel("02_supervised_fine_tuning", SFTConfig(steps=40))
    for name in PRESETS:
        panel.preset(name)
        assert panel.config is not None, name
    assert panel.config.model == "smoke"
    panel.preset("a quarter of the steps")
    assert panel.config.steps == SFTConfig().steps // 4
    panel._do({"do": "reset"})
    assert panel.config == SFTConfig(steps=40)
    with pytest.raises(ConfigError, match="preset"):
        panel.preset("best")
    panel.set(steps=3)
    assert panel.config.steps == 3
    with pytest.raises(ConfigError, match="Did you mean steps"):
        panel.set(stepps=3)


def test_a_slider_spans_more_than_one_place():
    for kind in NOTEBOOKS.values():
        for field in dataclasses.fields(kind):
            slider = describe(field)["slider"]
            assert slider is None or slider["high"] > slider["low"]


def test_where_no_widget_runs_the_values_stand_as_text():
    found = Panel("02_supervised_fine_tuning", SFTConfig())._repr_mimebundle_()
    bundle = found[0] if isinstance(found, tuple) else found
    assert "steps = 1700" in bundle["text/plain"] and "application/vnd.jupyter.widget-view+json" in bundle


def test_a_number_is_shown_with_every_digit_that_it_has():
    values = {6e-5: "6e-05", 3.14159265e-4: "0.000314159265", 2.0: "2", 7: "7", "a": "a", True: True}
    for value, text in values.items():
        assert shown(value) == text
    field = next(field for field in dataclasses.fields(SFTConfig) if field.name == "learning_rate")
    assert parsed(field, shown(3.14159265e-4)) == 3.14159265e-4


def places(of: dict) -> list[float]:
    """The values that a slider's thousand places stand for, as panel.js rounds them."""
    low, high = of["low"], of["high"]
    found = [low * (high / low) ** (n / 1000) if of["log"] else low + (high - low) * n / 1000 for n in range(1001)]
    return [float(round(value)) if of["whole"] else float(f"{value:.2g}") for value in found]


EVERY = {(f.name, f.default): f for kind in configs.NOTEBOOKS.values() for f in dataclasses.fields(kind)}


@pytest.mark.parametrize("name", EVERY, ids=lambda name: f"{name[0]}={name[1]}")
def test_every_slider_is_fine_around_the_default_and_reaches_zero(name):
    field = EVERY[name]
    of, about = fields.slider(field), field.metadata
    if of is None:
        return
    values, default = places(of), float(field.default)
    assert len(set(values)) >= min(10, about["high"] - about["low"]), "it jumps past everything"
    nearest = min(values, key=lambda value: abs(value - default))
    assert nearest == pytest.approx(default, rel=0.05, abs=0.5 if field.type is int else 0)
    if about["low"] <= 0:
        assert 0 in values
    if default > 0:
        beyond = min((value for value in values if value > nearest), default=nearest)
        assert beyond - nearest <= 1.001 * max(0.1 * default, 1.0 if field.type is int else 0.0)
        assert sum(value < default for value in values) >= (10 if default > 10 or field.type is float else 0)


def test_a_knob_that_can_hold_one_value_is_off_and_says_so():
    panel = Panel("06_ppo", PPOConfig())
    (field,) = [one for one in panel.fields if one["name"] == "lora_dropout"]
    assert field["slider"] is None
    assert "always 0 here" in str(panel.notes)
    with pytest.raises(ConfigError):
        PPOConfig(lora_dropout=0.1)
