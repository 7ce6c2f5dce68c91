"""Parameters: every wrong name, type and value is refused with the near miss and the allowed values."""

import dataclasses
import os
import subprocess
import sys

import pytest

from labkit import config as module
from labkit import parameters
from labkit.config import NOTEBOOKS, STAGES, Config, DPOConfig, PretrainConfig, SFTConfig, StartConfig
from labkit.errors import ConfigError

EVERY = sorted({*NOTEBOOKS.values(), *STAGES.values()}, key=lambda kind: kind.__name__)
START = {"model": "nano", "seed": 0, "retrain": False}


def refused(make, *parts):
    with pytest.raises(ConfigError) as caught:
        make()
    for part in parts:
        assert part in str(caught.value), str(caught.value)


@pytest.mark.parametrize("kind", EVERY)
def test_every_field_has_help_and_an_allowed_default(kind):
    for field in dataclasses.fields(kind):
        assert len(field.metadata["help"]) > 10
        assert type(field.default) is field.type
        assert field.type not in (int, float) or None not in (field.metadata["low"], field.metadata["high"])
    assert kind() == kind.from_dict(kind().as_dict())


@pytest.mark.parametrize("kind", EVERY)
def test_every_number_is_held_to_its_range_and_type(kind):
    for field in dataclasses.fields(kind):
        if field.type not in (int, float):
            continue
        low, high = field.metadata["low"], field.metadata["high"]
        for wrong in (low - 1, high + 1, "3", True, None, float("nan"), float("inf"), [1]):
            refused(
                lambda given={field.name: wrong}: kind(**given), field.name, repr(wrong)[:5], f"from {low} to {high}"
            )


def test_wrong_types_and_choices():
    refused(lambda: SFTConfig(model=3), "model must be text", "got 3")
    refused(lambda: SFTConfig(model=" "), "model must be text")
    refused(lambda: SFTConfig(retrain="true"), "retrain must be True or False", "'true'", "retrain = True")
    refused(lambda: SFTConfig(retrain=1), "retrain must be True or False")
    refused(lambda: SFTConfig(steps=100.0), "got 100.0", "steps = 100.")
    refused(lambda: DPOConfig(loss_type="sigmoidal"), "sigmoid, ipo, hinge", "Did you mean loss_type = 'sigmoid'")
    refused(lambda: DPOConfig(beta=20), "0.001 to 10", "got 20", "beta = 10.0")
    refused(lambda: DPOConfig(beta=10**400), "beta must be a number")


def test_an_int_is_good_enough_for_a_float():
    beta = DPOConfig(beta=1).beta
    assert beta == 1.0 and type(beta) is float
    assert DPOConfig(beta=1).identity() == DPOConfig(beta=1.0).identity()


def test_values_that_do_not_fit_each_other():
    refused(lambda: PretrainConfig(hidden_size=250), "hidden_size", "250", "256")
    refused(lambda: DPOConfig(loss_type="ipo", label_smoothing=0.1), "label_smoothing", "0.1", "robust")


def test_frozen_and_keyword_only():
    with pytest.raises(dataclasses.FrozenInstanceError):
        SFTConfig().steps = 3
    with pytest.raises(TypeError):
        SFTConfig("nano")


def test_unknown_name_tells_the_near_miss_and_all_names():
    refused(lambda: SFTConfig.from_dict({"stpes": 3}), "stpes", "got 3", "Did you mean steps?", "from 1 to", "loss_on")


def test_identity_leaves_out_what_does_not_change_the_result():
    assert SFTConfig(eval_every=7, retrain=True).identity() == SFTConfig().identity()
    assert SFTConfig(steps=7).identity() != SFTConfig().identity()
    assert "eval_every" not in SFTConfig().identity() and "eval_every" in SFTConfig().as_dict()


def test_check_parameters():
    assert parameters.check_parameters("07_dpo", {"beta": 0.3}) == DPOConfig(beta=0.3)
    refused(lambda: parameters.check_parameters("07_dop", {}), "07_dop", "Did you mean 07_dpo?", "00_start_here")
    refused(lambda: parameters.check_parameters("07_dpo", {"betta": 0.3}), "betta", "Did you mean beta?", "0.001 to 10")
    refused(lambda: parameters.check_parameters("07_dpo", {"beta": "low"}), "beta", "'low'", "0.001 to 10")


def test_configure_takes_the_notebooks_variables():
    namespace = {**SFTConfig(steps=5, loss_on="all").as_dict(), "other": object()}
    assert parameters.configure("02_supervised_fine_tuning", namespace) == SFTConfig(steps=5, loss_on="all")
    assert 0 <= parameters.seconds_since_configure() < 5
    refused(lambda: parameters.configure("00_start_here", {"model": "nano"}), "seed", "got nothing", "seed = 0")
    refused(lambda: parameters.configure("00_start_here", START | {"seed": "x"}), "seed", "'x'", "from 0 to 2147483647")


def test_smoke_shortens_only_defaults_and_says_so(capsys):
    smoke = parameters.configure("02_supervised_fine_tuning", SFTConfig(model="smoke").as_dict())
    assert (smoke.steps, smoke.eval_every) == (4, 2)
    assert "steps 1700 -> 4, eval_every 340 -> 2" in capsys.readouterr().out
    smoke = parameters.configure("02_supervised_fine_tuning", SFTConfig(model="smoke", steps=9).as_dict())
    assert (smoke.steps, smoke.eval_every) == (9, 2)
    assert "steps" not in capsys.readouterr().out
    assert parameters.configure("00_start_here", START | {"model": "smoke"}) == StartConfig(model="smoke")
    assert parameters.configure("02_supervised_fine_tuning", SFTConfig().as_dict()).steps == SFTConfig().steps
    assert capsys.readouterr().out == ""


PARAMETERS = 'model = "nano"\nseed = 0\nretrain = False\n'
BAD = "# Parameters\nsede = 3\n"


@pytest.mark.parametrize("injected", [BAD, '# Parameters\nseed = 3\nsede: int = 3\nmodel = "nano"'])
def test_a_misspelt_injected_parameter_is_found(injected):
    history = ["", PARAMETERS, injected, "configure"]
    refused(lambda: parameters.configure("00_start_here", START | {"In": history, "sede": 3}), "sede", "got 3", "seed?")
    history += ["configure"]  # asking again does not make it right
    refused(lambda: parameters.configure("00_start_here", START | {"In": history, "sede": 3}), "sede")


@pytest.mark.parametrize(
    "history",
    [
        ["", PARAMETERS, "# Parameters\nseed = 3\n"],
        ["", PARAMETERS, BAD, "configure", "# Parameters\nseed = 3\n"],  # corrected in place
        ["", PARAMETERS, BAD, "configure", PARAMETERS, "configure"],  # removed, and run again
        ["", PARAMETERS, "# Parameters of the model\nn = 3\n"],  # another cell's comment
        ["", "# Parameters\n%magic\nsede = 3"],  # not papermill's: it is no Python
        ["", PARAMETERS, '# Parameters\nPAPERMILL_INPUT_PATH = "in.ipynb"\n'],  # papermill --inject-paths
    ],
)
def test_no_false_alarm_in_a_long_lived_kernel(history):
    assert parameters.configure("00_start_here", START | {"In": history}) == StartConfig()


def test_papermill_still_writes_the_mark_that_configure_looks_for():
    from papermill.translators import PythonTranslator

    source = PythonTranslator.codify({"sede": 3})
    refused(lambda: parameters.configure("00_start_here", START | {"In": ["", PARAMETERS, source], "sede": 3}), "sede")


def test_base_config_is_shared_by_all():
    assert all(issubclass(kind, Config) and kind().model == "nano" for kind in EVERY)


def test_import_is_light():
    code = "import labkit, labkit.config, labkit.runs, sys; labkit.configure; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "labkit.runs" in loaded
    assert not {"torch", "transformers", "pandas", "plotly", "numpy", "papermill"} & set(loaded)


def test_import_is_quick():
    code = "import time; began = time.perf_counter(); import labkit; print(time.perf_counter() - began)"
    times = [
        float(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout) for _ in range(3)
    ]
    assert min(times) < 0.2


def test_public_names_are_all_there():
    import labkit

    for name in (
        "configure",
        "record",
        "verdict",
        "PretrainConfig",
        "SFTConfig",
        "DPOConfig",
        "LabError",
        "Run",
        "runs",
    ):
        assert getattr(labkit, name) is not None and name in dir(labkit)
    with pytest.raises(AttributeError, match="recrod"):
        _ = labkit.recrod


def test_a_notebook_of_a_stage_may_have_more_parameters_and_they_change_no_run():
    config = module.LoRAConfig(ranks="2,8", lora_rank=8)
    assert module.stage_of("03_lora") == "sft" and module.stage_of("00_start_here") == ""
    assert config.identity() == module.LoRAConfig(ranks="4", lora_rank=8, adapter_steps=7).identity()
    assert config.identity() == module.SFTConfig.from_dict(config.identity()).identity()  # 02 finds 03's runs
    full = config.full()
    assert (full.tuning, full.learning_rate, full.steps) == ("full", config.full_learning_rate, config.steps)


@pytest.mark.parametrize("ranks", ["", "0", "4,x", "4;8", "2000"])
def test_ranks_are_numbers_parted_by_commas(ranks):
    with pytest.raises(ConfigError, match="ranks must be"):
        module.LoRAConfig(ranks=ranks)


def test_qlora_stands_beside_full_fine_tuning_at_its_own_learning_rate():
    config = module.QLoRAConfig(seeds=3, batch_size=4)
    assert module.stage_of("04_qlora") == "sft" and (config.tuning, config.quantization) == ("lora", "4bit")
    full = config.full()
    assert type(full) is module.SFTConfig and (full.tuning, full.quantization, full.lora_rank) == ("full", "none", 16)
    assert (full.steps, full.batch_size, full.learning_rate) == (config.steps, 4, config.full_learning_rate)


def test_smol_gets_sizes_of_its_own_where_nothing_else_is_said(capsys):
    plain = module.LoRAConfig(model="smol").as_dict()
    config = parameters.configure("03_lora", plain)
    assert {name: getattr(config, name) for name in module.LoRAConfig.SMOL if name != "seeds"} == {
        name: value for name, value in module.LoRAConfig.SMOL.items() if name != "seeds"
    }
    assert "model = smol has sizes of its own: " in capsys.readouterr().out
    assert parameters.configure("03_lora", plain | {"steps": 7}).steps == 7  # a value that was set stays
    given = ["\n".join(f"{name} = {value!r}" for name, value in plain.items()), "# Parameters\nturns = 1"]
    assert parameters.configure("03_lora", plain | {"In": given}).turns == 1  # also where it is the default
    assert module.sized(module.LoRAConfig()) == module.LoRAConfig()


@pytest.mark.parametrize(("name", "kind"), module.NOTEBOOKS.items())
def test_what_suits_smol_is_allowed_and_a_setting_of_its_notebook(name, kind):
    config = module.sized(kind(model="smol"))
    known = {field.name for field in dataclasses.fields(kind)} | {"seeds", "ranks", "adapter_steps"}  # 03's and 04's
    assert set(kind.SMOL) <= known and config.model == "smol"


@pytest.mark.parametrize(("given", "kept"), [({}, "64"), ({"LRU_CACHE_CAPACITY": "9"}, "9")])
def test_few_compiled_kernels_are_kept_unless_the_user_says_otherwise(given, kept):
    code = "import labkit, os; print(os.environ['LRU_CACHE_CAPACITY'])"
    plain = {name: value for name, value in os.environ.items() if name != "LRU_CACHE_CAPACITY"}
    done = subprocess.run([sys.executable, "-c", code], env=plain | given, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == kept


def test_a_stride_is_shorter_than_its_window():
    with pytest.raises(ConfigError, match=r"stride must be less than window; got 128\. Write for example stride = 32"):
        module.WordMetricsConfig(stride=128)
