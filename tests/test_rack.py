"""The rack: the base stays as it is, a blend is the sum it claims to be, merging costs what is measured; its view."""

import json
import math
import shutil
import warnings

import ipywidgets
import numpy
import pytest
import torch
from hostile import HOSTILE
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from test_chat import Tags

from labkit import adapters, data, models
from labkit.config import SFTConfig
from labkit.errors import ConfigError, LabError, ModelError, RunError
from labkit.evaluate import answers
from labkit.rack import Rack
from labkit.runs import open_run
from labkit.ui.rack import NONE, RackView

IDS = torch.arange(5, 45).view(2, 20)
SETTINGS = {  # of different ranks, scales and layers
    "a": {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"},
    "b": {"r": 8, "lora_alpha": 4, "target_modules": ["q_proj", "v_proj"]},
    "c": {"r": 2, "lora_alpha": 6, "target_modules": ["w1", "in_proj"]},
}


def train(base, folder, seed, **settings):
    """An adapter with random A and B, as a run would leave it."""
    model, _ = models.load(base)
    torch.manual_seed(seed)
    model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **settings))
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.05)
    adapters.save(model, folder, str(base), "none")
    return folder


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rack")
    model, tokenizer = models.load("smoke", seed=3)
    model.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    for seed, (name, settings) in enumerate(SETTINGS.items()):
        train(folder / "base", folder / name, seed, **settings)
    return folder


@pytest.fixture
def rack(root):
    rack = Rack(root / "base")
    for name in SETTINGS:
        rack.attach(name, root / name)
    return rack


@torch.no_grad()
def logits(rack, name=None):
    if name is not None:
        rack.switch(name)
    return rack.model(IDS).logits


def by_hand(root, weights):
    """The base with W + sum_i w_i s_i B_i A_i written into its layers."""
    model, _ = models.load(root / "base")
    for name, weight in weights.items():
        about = json.loads((root / name / "adapter_config.json").read_text())
        parts = load_file(root / name / "adapter_model.safetensors")
        for key in (key for key in parts if "lora_A" in key):
            layer = model.get_submodule(key.removeprefix("base_model.model.").removesuffix(".lora_A.weight"))
            update = parts[key.replace("lora_A", "lora_B")] @ parts[key]
            layer.weight.data += weight * about["lora_alpha"] / about["r"] * update
    with torch.no_grad():
        return model.eval()(IDS).logits


def close(left, right):
    return torch.allclose(left, right, atol=1e-5)


# ---- switching


def test_switching_leaves_every_weight_of_the_base_as_it_was(root):
    rack = Rack(root / "base")
    plain, _ = models.load(root / "base")
    before = dict(plain.named_parameters())
    with torch.no_grad():
        bare = plain.eval()(IDS).logits
    assert rack.active == "" and torch.equal(logits(rack), bare)
    for name in SETTINGS:
        rack.attach(name, root / name)
        assert rack.active == "" and torch.equal(logits(rack), bare), "attached is not switched on"
    seen = {name: logits(rack, name) for name in ("a", "b", "c")}
    assert all(close(seen[name], by_hand(root, {name: 1.0})) for name in seen)
    assert not any(close(seen[left], seen[right]) for left, right in ("ab", "bc", "ca"))
    assert torch.equal(logits(rack, "a"), seen["a"]) and torch.equal(logits(rack, "b"), seen["b"])
    assert torch.equal(logits(rack, "a"), seen["a"]) and rack.active == "a"
    rack.blend({"a": 0.5, "b": -2.0})
    rack.merged("a")
    rack.disable()
    assert rack.active == "" and torch.equal(logits(rack), bare)
    after = {key.replace(".base_layer", ""): w for key, w in rack.model.get_base_model().named_parameters()}
    assert all(torch.equal(weight, after[name]) for name, weight in before.items())
    assert not any(weight.requires_grad for weight in rack.model.parameters())


def test_attaching_beside_an_active_adapter_does_not_change_its_answers(root):
    rack = Rack(root / "base")
    rack.attach("b", root / "b")
    before = logits(rack, "b")
    rack.attach("a", root / "a")  # in layers that b does not have
    assert rack.active == "b" and torch.equal(logits(rack), before)


def test_the_id_of_a_run_names_its_adapter(root, store):
    run = open_run("sft", SFTConfig(model="smoke", tuning="lora"))
    shutil.copytree(root / "a", run.checkpoint)
    rack = Rack(root / "base")
    rack.attach("by_id", run.finish().id)
    rack.attach("by_folder", str(root / "a"))
    assert torch.equal(logits(rack, "by_id"), logits(rack, "by_folder"))


def test_unloading_frees_the_weights_and_the_name(root, rack):
    bare, b = logits(rack, ""), logits(rack, "b")
    rack.unload("a")
    assert rack.active == "b" and torch.equal(logits(rack), b) and list(rack.folders) == ["b", "c"]
    rack.unload("b")
    assert rack.active == "" and torch.equal(logits(rack), bare)
    rack.unload("c")
    assert not any("lora_" in name for name, _ in rack.model.named_parameters()) and rack.sizes() == []
    rack.attach("a", root / "b")
    assert torch.equal(logits(rack, "a"), b)


def test_sizes_are_those_of_the_files_and_of_the_formula(root, rack):
    rack.blend({"b": 1.0, "c": 1.0}, as_name="both")
    rows = {row["name"]: row for row in rack.sizes()}
    base = (root / "base" / "model.safetensors").stat().st_size
    assert [rows[name]["rank"] for name in ("a", "b", "c", "both")] == [4, 8, 2, 10]
    assert rows["b"]["trainable_weights"] == 8 * 4 * 64  # rank x (in + out) of q_proj and v_proj
    assert rows["b"]["bytes_on_disk"] == (root / "b" / "adapter_model.safetensors").stat().st_size
    assert rows["both"]["bytes_on_disk"] == 0 and {row["base_bytes_on_disk"] for row in rows.values()} == {base}
    smoke = Rack("smoke")
    with pytest.warns(UserWarning, match="was trained on"):
        smoke.attach("a", root / "a")
    assert smoke.sizes()[0]["base_bytes_on_disk"] == 0


# ---- blending


def test_a_blend_is_the_weighted_sum_of_the_updates(root, rack):
    a = logits(rack, "a")
    for weights in ({"a": 1.0}, {"a": 1, "b": 0}):
        rack.blend(weights)
        assert rack.active == "blend" and close(logits(rack), a)
    for weights in ({"a": 0.5, "b": 0.5}, {"a": 0.7, "b": -1.3, "c": 2.0}):
        rack.blend(weights)
        assert close(logits(rack), by_hand(root, weights))
        assert not close(logits(rack), a)
    rack.blend({"blend": 0.5, "a": 1.0}, as_name="again")  # a blend of a blend
    assert close(logits(rack), by_hand(root, {"a": 1.35, "b": -0.65, "c": 1.0}))
    rack.blend({"b": 0.0})
    assert close(logits(rack), logits(rack, ""))
    assert torch.equal(logits(rack, "a"), a)


def test_linear_blending_would_mix_the_adapters_up(root):
    """Why blends are "cat", as the module says: the same ranks, and yet not the sum."""
    rack = Rack(root / "base")
    for seed, name in enumerate(("x", "y")):
        rack.attach(name, train(root / "base", root / name, seed, **SETTINGS["a"]))
    rack.model.add_weighted_adapter(["x", "y"], [0.5, 0.5], "linear", combination_type="linear")
    rack.folders["linear"] = None
    right = by_hand(root, {"x": 0.5, "y": 0.5})
    assert not torch.allclose(logits(rack, "linear"), right, atol=1e-2)
    rack.blend({"x": 0.5, "y": 0.5})
    assert close(logits(rack), right)


def test_weights_may_come_from_numpy(root, rack):
    rack.blend({"a": numpy.float32(0.5), "b": numpy.int64(2)})
    assert close(logits(rack), by_hand(root, {"a": 0.5, "b": 2.0}))


def test_an_rslora_adapter_switches_and_blends_at_its_own_scale(root, tmp_path):
    folder = train(root / "base", tmp_path / "rs", 5, r=4, lora_alpha=8, target_modules="all-linear", use_rslora=True)
    rack, alone = Rack(root / "base"), models.load(folder)[0]
    rack.attach("a", root / "a")
    rack.attach("rs", folder)
    with torch.no_grad():
        assert close(logits(rack, "rs"), alone.eval()(IDS).logits)
    own = logits(rack)
    rack.blend({"rs": 1.0, "a": 0.0})
    assert close(logits(rack), own) and not close(own, logits(rack, "a"))
    rack.blend({"rs": 0.5, "a": 1.0})
    merged, both = rack.merged("blend"), logits(rack)
    with torch.no_grad():
        assert close(merged(IDS).logits, both)
        change = merged.get_input_embeddings().weight - alone.get_input_embeddings().weight
    assert change.abs().max() == 0 and json.loads((folder / "adapter_config.json").read_text())["use_rslora"]


def test_a_dora_adapter_switches_and_merges_and_is_in_no_blend(root, tmp_path, rack):
    folder = train(root / "base", tmp_path / "dora", 6, r=4, lora_alpha=8, target_modules=["q_proj"], use_dora=True)
    file = folder / "adapter_model.safetensors"
    weights = load_file(file)
    assert any("magnitude" in key for key in weights)
    save_file({key: 1.5 * w if "magnitude" in key else w for key, w in weights.items()}, file, {"format": "pt"})
    bare, a = logits(rack, ""), logits(rack, "a")
    rack.attach("d", folder)
    with torch.no_grad():
        alone = models.load(folder)[0].eval()(IDS).logits
        assert close(logits(rack, "d"), alone) and close(rack.merged("d")(IDS).logits, alone)
    assert not torch.allclose(alone, bare, atol=1e-3)
    assert rack.merge_damage("d", IDS)["fp32"]["max_difference"] < 1e-3
    row = next(row for row in rack.sizes() if row["name"] == "d")
    assert row["trainable_weights"] == 4 * (64 + 64) + 64  # and a length for each output
    with pytest.raises(ConfigError, match=r"no part of a blend may be a DoRA adapter; got \['d'\]"):
        rack.blend({"a": 1.0, "d": 0.5})
    assert "blend" not in rack.folders and rack.active == "d"
    rack.blend({"a": 1.0, "d": 0.0})
    assert close(logits(rack), a)
    rack.unload("d")
    assert torch.equal(logits(rack, ""), bare)


@pytest.mark.parametrize("start", [False, "gaussian", "orthogonal"])
def test_how_an_adapter_began_is_no_matter(root, tmp_path, rack, start):
    shutil.copytree(root / "b", tmp_path / "begun")
    file = tmp_path / "begun" / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "init_lora_weights": start}))
    rack.attach("begun", tmp_path / "begun")
    assert torch.equal(logits(rack, "begun"), logits(rack, "b"))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, "0.5", None, True])
def test_blend_weights_are_finite_numbers(rack, bad):
    with pytest.raises(ConfigError, match="finite"):
        rack.blend({"a": 1.0, "b": bad})
    assert list(rack.folders) == ["a", "b", "c"]


# ---- merging


def test_a_merged_model_is_plain_and_apart(root, rack, tmp_path):
    before = logits(rack, "b")
    model = rack.merged("a")
    assert not adapters.is_peft(model) and not any("lora" in name for name, _ in model.named_parameters())
    assert all(weight.requires_grad for weight in model.parameters())
    model.save_pretrained(tmp_path)
    model = type(model).from_pretrained(tmp_path, use_safetensors=True).eval()
    with torch.no_grad():
        assert close(model(IDS).logits, by_hand(root, {"a": 1.0}))
        model.get_input_embeddings().weight.zero_()
    assert rack.active == "b" and torch.equal(logits(rack), before)


@pytest.mark.parametrize("name", ["a", "blend"])
def test_merging_costs_more_the_coarser_the_numbers(rack, name):
    rack.blend({"a": 0.5, "c": 1.0})
    damage = rack.merge_damage(name, IDS)
    fp32, bf16, four = (damage[number] for number in ("fp32", "bf16", "4bit"))
    for key in ("max_difference", "mean_difference", "mean_kl"):
        assert 0 <= fp32[key] < bf16[key] < four[key], key
    assert fp32["max_difference"] < 1e-4 and rack.active == "blend"
    rack.switch("")
    assert rack.merge_damage(name, IDS.tolist()) == damage


def test_a_quantized_rack_switches_blends_and_merges(root):
    rack = Rack(root / "base", quantization="4bit")
    bare = logits(rack)
    for name in SETTINGS:
        rack.attach(name, root / name)
    a = logits(rack, "a")
    rack.blend({"a": 1.0, "b": 0.0})
    assert torch.allclose(logits(rack), a, atol=0.02) and not torch.allclose(bare, a, atol=0.1)
    merged = rack.merged("a")  # after answers, with which bitsandbytes would repack the weights of the base
    with torch.no_grad():
        gap = (merged(IDS).logits - a).abs().mean()
    assert 0 < gap < (a - bare).abs().mean() / 2
    assert "Linear4bit" in {type(part).__name__ for part in merged.modules()} and not adapters.is_peft(merged)
    assert torch.equal(logits(rack, ""), bare) and torch.equal(logits(rack, "a"), a)


# ---- what cannot be


@pytest.mark.parametrize("call", ["switch", "unload", "merged", "merge_damage", "blend"])
def test_an_unknown_name_is_told_with_those_that_are_there(rack, call):
    given = {"merge_damage": ("zzz", IDS), "blend": ({"a": 1.0, "zzz": 0.0},)}.get(call, ("zzz",))
    with pytest.raises(ConfigError, match=r"got 'zzz'.*Attached: a, b, c"):
        getattr(rack, call)(*given)
    with pytest.raises(ConfigError, match=r"rack.attach\(name, folder\)"):
        Rack("smoke").switch("zzz")


@pytest.mark.parametrize("name", ["a", "base", "", "two words", "v1.0", "../x", "keys", "<b>"])
def test_a_name_is_free_and_one_word(root, rack, name):
    before = logits(rack, "a")
    with pytest.raises(ConfigError, match="Choose another word"):
        rack.attach(name, root / "b")
    with pytest.raises(ConfigError):
        rack.blend({"b": 1.0}, as_name=name)
    assert torch.equal(logits(rack), before) and list(rack.folders) == ["a", "b", "c"]


def test_blends_of_nothing_and_of_themselves_are_refused(rack):
    for weights in ({}, {"a": 1.0, "blend": 0.5}):
        with pytest.raises(ConfigError, match="of adapters other than blend"):
            rack.blend(weights)


def test_a_folder_without_an_adapter_is_refused(root, store, tmp_path):
    rack = Rack(root / "base")
    shutil.copytree(root / "a", tmp_path / "pickled")
    torch.save(load_file(root / "a" / "adapter_model.safetensors"), tmp_path / "pickled" / "adapter_model.bin")
    (tmp_path / "pickled" / "adapter_model.safetensors").unlink()
    for folder in (root / "base", tmp_path, tmp_path / "gone", tmp_path / "pickled"):
        with pytest.raises(ModelError, match='tuning = "lora"'):
            rack.attach("x", folder)
    with pytest.raises(RunError, match="id of a run"):
        rack.attach("x", "sft-no-such-run")


def other_base(folder, **sizes):
    _, tokenizer = models.load("smoke")
    options = {"hidden_size": 64, "layers": 2, "heads": 2, "seed": 0, **sizes}
    models.new_model(tokenizer, **options).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("sizes", [{"hidden_size": 32}, {"layers": 4}, {"layers": 1}])
@pytest.mark.parametrize("first", [True, False])
def test_an_adapter_of_another_base_is_refused_and_leaves_nothing(root, tmp_path, sizes, first):
    folder = train(other_base(tmp_path / "base", **sizes), tmp_path / "adapter", 0, **SETTINGS["c"])
    rack = Rack(root / "base")
    bare = logits(rack)
    if not first:
        rack.attach("a", root / "a")
        bare = logits(rack, "a")
    with pytest.raises(ModelError, match=r"must fit the base .* a Rack of the base which"):
        rack.attach("x", folder)
    assert torch.equal(logits(rack), bare) and "x" not in rack.folders
    assert not any(".x." in name for name, _ in rack.model.named_parameters())
    rack.attach("x", root / "b")
    assert close(logits(rack, "x"), by_hand(root, {"b": 1.0}))


def test_a_base_of_the_same_shape_and_another_name_is_told(root, tmp_path):
    folder = train(other_base(tmp_path / "base"), tmp_path / "adapter", 0, **SETTINGS["c"])
    with pytest.warns(UserWarning, match=r"x was trained on .*; the base of this rack is"):
        Rack(root / "base").attach("x", folder)
    with warnings.catch_warnings(action="error", category=UserWarning):
        Rack(root / "base").attach("a", root / "a")


@pytest.mark.parametrize("change", [
    {"use_dora": True}, {"bias": "all"}, {"init_lora_weights": "olora"}, {"init_lora_weights": "pissa"},
    {"layer_replication": [[0, 2], [0, 2]]},
    {"modules_to_save": ["lm_head"]}, {"peft_type": "IA3"}, {"target_modules": ".*q_proj"},
    {"r": 0}, {"r": "four"}, {"target_modules": ["nowhere"]}, {"megatron_config": {"x": 1}}, "no json", "no weights",
])  # fmt: skip
def test_what_is_no_plain_adapter_changes_nothing(root, tmp_path, rack, change):
    shutil.copytree(root / "b", tmp_path / "odd")
    file = tmp_path / "odd" / "adapter_config.json"
    if change == "no json":
        file.write_text("{")
    elif change == "no weights":
        (tmp_path / "odd" / "adapter_model.safetensors").write_bytes(b"nothing of the kind")
    else:
        file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    bare, b = logits(rack, ""), logits(rack, "b")
    with pytest.raises(ModelError, match="must fit the base"):
        rack.attach("x", tmp_path / "odd")
    assert torch.equal(logits(rack), b) and torch.equal(logits(rack, ""), bare) and "x" not in rack.folders
    assert not any(".x." in name for name, _ in rack.model.named_parameters())


def test_a_weight_too_many_or_too_few_is_told(root, tmp_path, rack):
    parts = load_file(root / "b" / "adapter_model.safetensors")
    first = next(key for key in parts if "lora_B" in key)
    for changed in (
        {key: w for key, w in parts.items() if key != first},
        {**parts, "base_model.model.x": parts[first].clone()},
    ):
        shutil.copytree(root / "b", tmp_path / "odd", dirs_exist_ok=True)
        save_file(changed, tmp_path / "odd" / "adapter_model.safetensors")
        with pytest.raises(ModelError, match="1 weights have no partner"):
            rack.attach("x", tmp_path / "odd")


def test_nano_is_the_base_that_its_adapters_name(tmp_path):
    folder = train(data.BASE, tmp_path / "adapter", 0, r=2, target_modules=["q_proj"])
    with warnings.catch_warnings(action="error", category=UserWarning):
        Rack("nano").attach("a", folder)


def test_a_base_that_is_an_adapter(root, tmp_path):
    assert torch.allclose(logits(Rack(root / "a")), by_hand(root, {"a": 1.0}), atol=1e-5)  # models.load merged it
    shutil.copytree(root / "a", tmp_path / "qlora")
    (tmp_path / "qlora" / "quantization.txt").write_text("4bit\n")
    with pytest.raises(ModelError, match="Attach it to its base"):
        Rack(tmp_path / "qlora")


# ---- the view


@pytest.fixture
def view(rack):
    return RackView(rack, max_new_tokens=5)


def test_the_list_switches_and_unload_frees(view, rack):
    assert view.active.options == ((NONE, ""), ("a", "a"), ("b", "b"), ("c", "c")) and view.active.value == ""
    view.active.value = "b"
    assert rack.active == "b"
    rack.switch("c")
    view.refresh()
    assert view.active.value == "c"
    view.unload_button.click()
    assert list(rack.folders) == ["a", "b"] == list(view.weights) and view.active.value == rack.active == ""
    assert "<td" in view.table.value and ">c<" not in view.table.value and not view.error.value
    view.unload_button.click()
    assert "must be active" in view.error.value and "role='alert'" in view.error.value


def test_weights_blend(view, rack):
    view.weights["a"].value, view.weights["b"].value = 0.5, -1.0
    view.blend_button.click()
    assert rack.active == view.active.value == "blend" and ("blend", "blend") in view.active.options
    assert [box.value for box in view.weights.values()] == [0.5, -1.0, 0.0] and list(view.weights) == ["a", "b", "c"]
    blended = logits(rack)
    rack.blend({"a": 0.5, "b": -1.0})
    assert torch.equal(logits(rack), blended)
    for bad in (math.nan, math.inf):
        view.weights["c"].value = bad
        view.blend_button.click()
        assert "must be finite" in view.error.value and "role='alert'" in view.error.value
        assert rack.active == "blend" and torch.equal(logits(rack), blended)


def test_merging_shows_the_damage_and_saves_a_model_that_loads(view, rack, tmp_path):
    for button in (view.merge_button, view.save_button):
        button.click()
        assert "must be active to be merged" in view.error.value
    view.active.value = "a"
    view.merge_button.click()
    assert [row["merged into"] for row in view.damage.rows] == ["fp32", "bf16", "4bit"] and not view.error.value
    said = rack.tokenizer.apply_chat_template(
        [{"role": "user", "content": view.prompt.value}], add_generation_prompt=True, return_dict=True
    )
    found = rack.merge_damage("a", said["input_ids"])
    assert [row["mean_kl"] for row in view.damage.rows] == [row["mean_kl"] for row in found.values()]
    bundle = view._repr_mimebundle_()
    assert "mean_kl" in bundle["text/plain"] and "mean_kl" in bundle["text/html"] and rack.active == "a"
    for bad in ("", "  ", str(tmp_path)):
        view.save(bad)
        assert "must be named, and new" in view.error.value
    view.folder.value = str(tmp_path / "merged")
    view.folder._handle_custom_msg({"event": "submit"}, [])  # what the browser sends for Enter
    assert str(tmp_path / "merged") in view.merging.value and not view.error.value
    model, tokenizer = models.load(tmp_path / "merged")
    with torch.no_grad():
        assert close(model.eval()(IDS).logits, logits(rack, "a")) and tokenizer.chat_template


def test_ask_puts_the_prompt_to_the_base_and_every_adapter(view, rack):
    rack.switch("b")
    view.ask_button.click()
    assert [row["adapter"] for row in view.answers] == [NONE, "a", "b", "c"] and rack.active == "b"
    assert view.active.value == "b" and not view.error.value
    for row in view.answers:
        rack.switch("" if row["adapter"] == NONE else row["adapter"])
        said = answers.ask(rack.model, rack.tokenizer, ["What is an LLM?"], max_new_tokens=5)[0]
        assert said == {key: row[key] for key in said}
    view.prompt.value = "something else"
    view.prompt._handle_custom_msg({"event": "submit"}, [])  # what the browser sends for Enter
    assert view.asked == "something else" and "something else" in view.panes.value
    view.ask("  ")
    assert "must not be empty" in view.error.value and view.asked == "something else"


def test_no_error_is_lost(view, rack, monkeypatch):
    def broken(*given, **options):
        raise ValueError("<b>no template</b>")

    monkeypatch.setattr(answers, "ask", broken)
    rack.switch("a")
    view.ask_button.click()
    assert "ValueError: &lt;b&gt;no template" in view.error.value and rack.active == "a"
    monkeypatch.setattr(rack, "sizes", broken)
    view.active.value = "c"
    assert rack.active == "c" and "ValueError" in view.error.value
    monkeypatch.undo()
    view.refresh()
    assert view.error.value == ""


@pytest.mark.parametrize("payload", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_text_stays_text(root, payload, monkeypatch):
    rack = Rack("smoke")
    monkeypatch.setattr(answers, "ask", lambda *given, **options: [{"text": payload, "stopped": False}])
    view = RackView(rack)
    view.ask(payload)
    bundle = view._repr_mimebundle_()
    view._do(lambda: rack.switch(payload))
    if payload.strip():
        assert "role='alert'" in view.error.value
    for out in (view.panes.value, view.error.value, bundle["text/html"]):
        found = Tags(out)
        assert set(found.tags) <= {"div", "b", "em"} and not found.comments
        assert {name for name, _ in found.attributes} <= {"style", "dir", "role", "class"}
        out.encode("utf-8")
    bundle["text/plain"].encode("utf-8")
    assert "\x1b" not in bundle["text/plain"] and "\x00" not in bundle["text/plain"]
    json.dumps(bundle)


def test_a_saved_notebook_keeps_answers_and_sizes(view):
    assert "nothing asked yet" in view._repr_mimebundle_()["text/plain"]
    view.ask("<i>Why?</i>")
    bundle = view._repr_mimebundle_()
    assert bundle["application/vnd.jupyter.widget-view+json"]["model_id"] == view.model_id
    assert "> <i>Why?</i>" in bundle["text/plain"] and "bytes_on_disk" in bundle["text/plain"]
    assert "&lt;i&gt;Why?" in bundle["text/html"] and "<i>" not in bundle["text/html"]
    assert all(f"== {name}" in bundle["text/plain"] for name in (NONE, "a", "b", "c"))


def test_every_control_has_a_label_and_a_tooltip_and_clamps_nothing(view):
    controls, left = [], [view]
    while left:
        widget = left.pop()
        left += getattr(widget, "children", ())
        if isinstance(widget, ipywidgets.ValueWidget | ipywidgets.Button) and not isinstance(widget, ipywidgets.HTML):
            controls.append(widget)
    assert len(controls) == 11 and all(control.description and control.tooltip for control in controls)
    assert not any("Bounded" in type(control).__name__ or "Slider" in type(control).__name__ for control in controls)
    assert len({control.description for control in controls}) == len(controls)


def test_errors_are_lab_errors_with_a_remedy(rack):
    with pytest.raises(LabError) as caught:
        rack.switch("zzz")
    assert caught.value.remedy and caught.value.got == "zzz"


def test_dropout_is_off_as_soon_as_an_adapter_is_attached(root, tmp_path):
    folder = train(root / "base", tmp_path / "d", 9, r=4, target_modules="all-linear", lora_dropout=0.5)
    rack = Rack(root / "base")
    rack.attach("d", folder)
    assert torch.equal(logits(rack, "d"), logits(rack, "d"))
    rack.blend({"d": 1.0})
    assert torch.equal(logits(rack), logits(rack))
    assert rack.merge_damage("d", IDS)["fp32"]["max_difference"] < 1e-3


@pytest.mark.parametrize("order", [("one", "two", "none"), ("none", "two", "one")])
@torch.no_grad()
def test_rows_of_chat_tokens_switch_blend_and_merge_with_their_adapter(root, tmp_path, order):
    made, tokens = {}, {"one": [2, 4], "two": [3, 4], "none": None}
    for seed, (name, ids) in enumerate((name, tokens[name]) for name in order):
        settings = {"r": 2, "target_modules": ["q_proj"], "trainable_token_indices": ids}
        made[name] = train(root / "base", tmp_path / name, seed, **settings)
        file = made[name] / "adapter_model.safetensors"
        weights = {key: weight + 1.0 if "token" in key else weight for key, weight in load_file(file).items()}
        save_file(weights, file, {"format": "pt"})
    rack = Rack(root / "base")
    base = models.load(root / "base")[0]
    rows = base.get_input_embeddings().weight.clone()
    for name, folder in made.items():
        rack.attach(name, folder)
    expected = {"one": 2 * 64 + 2 * 128, "two": 2 * 64 + 2 * 128, "none": 2 * 128}
    assert {row["name"]: row["trainable_weights"] for row in rack.sizes()} == expected
    for name in made:
        alone, _ = models.load(made[name])
        assert torch.allclose(logits(rack, name), alone(IDS).logits, atol=1e-4)
        assert torch.allclose(rack.merged(name)(IDS).logits, alone(IDS).logits, atol=1e-4)
    rack.blend({"one": 0.5, "two": -1.0, "none": 1.0})
    change = rack.merged("blend").get_input_embeddings().weight - rows
    expected = torch.zeros(len(rows))
    expected[[2, 3, 4]] = torch.tensor([0.5, -1.0, -0.5])
    assert torch.allclose(change, expected[:, None].expand_as(change), atol=1e-5)
    assert torch.allclose(rack.merged("blend")(IDS).logits, logits(rack), atol=1e-4)
    assert torch.equal(logits(rack, ""), base(IDS).logits)
