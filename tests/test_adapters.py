"""LoRA: the adapter moves and the base does not; what is saved loads to the same logits; bad names are named."""

import dataclasses
import json
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config

from labkit import adapters, budget, data, models, preferences
from labkit.config import DPOConfig, LoRAConfig, ORPOConfig, SFTConfig
from labkit.errors import ConfigError, ModelError
from labkit.evaluate import answers
from labkit.rack import Rack
from labkit.stages import dpo, sft


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny model in a folder, with rows and pairs to learn from."""
    root = tmp_path_factory.mktemp("adapters")
    model, tokenizer = models.load("smoke", seed=3)
    model.save_pretrained(root / "model")
    tokenizer.save_pretrained(root / "model")
    words = ["river", "stone", "lamp", "house", "dog", "cat"]
    rows = [{"prompt": f"Say {a} {b}", "answer": f"{a} {b}."} for a in words for b in words]
    pairs = [{"prompt": r["prompt"], "chosen": r["answer"], "rejected": r["answer"] + " I hope."} for r in rows]
    (root / "sft.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (root / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    return root


def quiet(*_):
    pass


def options(folder, **more):
    few = {"steps": 4, "eval_every": 4, "batch_size": 4, "learning_rate": 0.01, "warmup_steps": 0}
    return {"model": str(folder / "model"), "tuning": "lora", "lora_rank": 4, **few, **more}


def test_only_the_adapter_trains_and_it_counts_rank_times_in_plus_out(folder):
    config = SFTConfig(**options(folder, data=str(folder / "sft.jsonl")))
    base, tokenizer = models.load(folder / "model")
    before = {name: weight.clone() for name, weight in base.named_parameters()}
    wide = sum(part.in_features + part.out_features for name, part in base.named_modules()
               if isinstance(part, torch.nn.Linear) and part is not base.get_output_embeddings())  # fmt: skip
    model = adapters.attach(base, config, tokenizer)
    assert models.weights(model)["trainable_parameters"] == 4 * wide
    run = sft.train(config, folder / "model", "tiny", say=quiet)
    assert run.metrics["trainable_parameters"] == 4 * wide
    assert adapters.is_adapter(run.checkpoint) and not (run.checkpoint / "model.safetensors").exists()
    again, _ = models.load(folder / "model")
    assert all(torch.equal(before[name], weight) for name, weight in again.named_parameters())
    learned, tokenizer = models.load(run.checkpoint)  # merged
    row = torch.tensor([data.chat_row(tokenizer, "Say river", "river.")["input_ids"]])
    with torch.no_grad():
        assert not torch.allclose(learned(row).logits, again(row).logits, atol=1e-3)


@pytest.mark.parametrize("variant", ["lora", "dora"])
@pytest.mark.filterwarnings("error:fan_in_fan_out")
def test_gpt2_without_a_chat_template_gets_one_and_an_adapter_on_its_conv1d_layers(folder, tmp_path, variant):
    tokenizer = models.load("smoke")[1]
    tokenizer.chat_template = None
    ends = {"bos_token_id": 0, "eos_token_id": 4}
    config = GPT2Config(n_embd=32, n_layer=2, n_head=2, n_positions=64, vocab_size=len(tokenizer), **ends)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model, tokenizer = models.load(tmp_path)
    assert adapters.linear_names(adapters.linears(model)) == ["c_attn", "c_fc", "c_proj"]
    assert adapters.untaught(model, tokenizer) == []
    few = options(folder, data=str(folder / "sft.jsonl"), target_modules="c_attn,mlp.c_proj", lora_variant=variant)
    config, said = SFTConfig(**few | {"model": str(tmp_path)}), []
    run = sft.train(config, tmp_path, "gpt2", say=said.append)
    assert any("no chat template" in line for line in said)
    learned, tokenizer = models.load(run.checkpoint)
    assert tokenizer.chat_template == data.PLAIN_TEMPLATE and models.context(learned) == 64
    moved = {name for name, weight in model.named_parameters() if not torch.equal(weight, learned.get_parameter(name))}
    assert moved == {f"transformer.h.{n}.{part}.weight" for n in (0, 1) for part in ("attn.c_attn", "mlp.c_proj")}
    planned = budget.estimate(budget.shape_of("sft", config), **budget.knobs("sft", config))
    assert planned.trainable == run.metrics["trainable_parameters"]
    shelf = Rack(tmp_path)
    shelf.attach("taught", run.checkpoint)
    shelf.switch("taught")
    ids = torch.arange(5, 25).view(1, 20)
    with torch.no_grad():
        torch.testing.assert_close(shelf.model(ids).logits, learned.eval()(ids).logits, rtol=1e-4, atol=1e-4)
    assert shelf.tokenizer.chat_template == data.PLAIN_TEMPLATE
    assert shelf.merge_damage("taught", ids)["fp32"]["max_difference"] < 1e-3


def test_the_shipped_base_was_never_taught_its_chat_tokens_and_an_adapter_trains_their_rows(store, folder):
    base, tokenizer = models.load(data.BASE)
    new = adapters.untaught(base, tokenizer)
    assert tokenizer.convert_ids_to_tokens(new) == [models.USER, models.ASSISTANT, models.END_OF_TURN]
    assert adapters.untaught(*models.load("smoke")) == []  # random rows are not alike
    before = base.get_input_embeddings().weight.detach().clone()
    few = str(folder / "sft.jsonl")
    config = SFTConfig(tuning="lora", data=few, steps=2, eval_every=2, batch_size=2, lora_rank=1)
    run = sft.train(config, data.BASE, "base", say=quiet)
    shape = budget.shape_of("sft", config)
    assert run.metrics["trainable_parameters"] == budget.estimate(shape, **budget.knobs("sft", config)).trainable
    learned, _ = models.load(run.checkpoint)
    after = learned.get_input_embeddings().weight.detach()
    moved = (before != after).any(dim=1).nonzero().flatten().tolist()
    assert moved == new and learned.get_output_embeddings().weight is learned.get_input_embeddings().weight
    one_stage = ORPOConfig(tuning="lora", lora_rank=1)  # from the base too
    assert budget.estimate(shape, **budget.knobs("orpo", one_stage)).trainable == run.metrics["trainable_parameters"]
    taught = dataclasses.replace(config, parent="sft-nano-0")
    assert budget.estimate(shape, **budget.knobs("sft", taught)).trainable == run.metrics["trainable_parameters"] - 768


def test_dpo_takes_the_model_without_its_adapter_as_reference(folder):
    config = DPOConfig(**options(folder, data=str(folder / "pairs.jsonl"), steps=8, batch_size=8))
    run = dpo.train(config, folder / "model", "tiny", say=quiet)
    assert run.metrics["held_out_margin"] > 0 and adapters.is_adapter(run.checkpoint)
    assert len(list(run.checkpoint.rglob("*.safetensors"))) == 1  # not trl's copy for its reference
    base = models.weights(models.load(folder / "model")[0])["parameters"]
    assert run.metrics["parameters"] == run.metrics["trainable_parameters"] + base
    last = [row for row in run.history() if "held_out_rewards_chosen" in row or "held_out_margin" in row][-1]
    _, held_out = preferences.pairs(str(folder / "pairs.jsonl"))
    ratios = {}
    for side in ("chosen", "rejected"):
        now, before = (
            answers.log_probs(*models.load(where), held_out["prompt"], held_out[side])[0]
            for where in (run.checkpoint, folder / "model")
        )
        ratios[side] = (now - before).mean().item()  # against the model without the adapter
    assert last["held_out_margin"] == pytest.approx(
        config.beta * (ratios["chosen"] - ratios["rejected"]), rel=0.05, abs=0.01
    )


@pytest.mark.parametrize("bits", ["8bit", "4bit"])
def test_quantized_weights_stay_and_the_adapter_learns(folder, bits):
    config = SFTConfig(**options(folder, data=str(folder / "sft.jsonl"), quantization=bits))
    run = sft.train(config, folder / "model", "tiny", say=quiet)
    looks = [row["held_out_loss"] for row in run.history() if "held_out_loss" in row]
    assert looks[-1] < looks[0]
    assert adapters.base_of(run.checkpoint) == (str(folder / "model"), bits)
    model, tokenizer = models.load(run.checkpoint)
    kinds = {type(part).__name__ for part in model.modules()}
    assert ("Linear4bit" if bits == "4bit" else "Linear8bitLt") in kinds
    with torch.no_grad():
        assert model(torch.tensor([tokenizer("river")["input_ids"]])).logits.isfinite().all()


def test_a_parent_on_quantized_weights_is_refused_and_its_base_stays_as_it_is(folder):
    few = {"steps": 2, "eval_every": 2}
    parent = sft.train(
        SFTConfig(**options(folder, data=str(folder / "sft.jsonl"), quantization="8bit", **few)),
        folder / "model", "tiny", say=quiet,
    )  # fmt: skip
    config = DPOConfig(**options(folder, data=str(folder / "pairs.jsonl"), parent=parent.id, **few))
    with pytest.raises(ConfigError, match="must not be an adapter on quantized weights"):
        dpo.train(config, parent.checkpoint, parent.id, say=quiet)
    with pytest.raises(ModelError, match="must be that of the adapter's own base"):
        models.load(parent.checkpoint, quantization="4bit")


def test_the_sweep_of_ranks_keeps_the_updates_scale_or_is_refused():
    plain = LoRAConfig(lora_rank=16, lora_alpha=32, ranks="4,64")
    rescaled = dataclasses.replace(plain, lora_variant="rslora")
    for rank in (1, 4, 16, 64, 256):
        assert plain.alpha_at(rank) / rank == 2.0
        assert rescaled.alpha_at(rank) / rank**0.5 == 32 / 16**0.5
    high = {"lora_rank": 2, "lora_alpha": 128, "ranks": "2,65"}
    with pytest.raises(ConfigError, match="ranks must keep lora_alpha <= 4096: rank 65 would need 4160; got '2,65'"):
        LoRAConfig(**high)
    assert LoRAConfig(**high, lora_variant="rslora").alpha_at(65) < 4096


def test_an_unknown_layer_is_named_before_training(folder):
    config = SFTConfig(**options(folder, data=str(folder / "sft.jsonl"), target_modules="q_prj"))
    with pytest.raises(ConfigError, match="Did you mean q_proj"):
        sft.train(config, folder / "model", "tiny", say=quiet)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_quantized_model_needs_its_file_no_more(folder):
    model, _ = models.load(folder / "model", quantization="4bit")
    assert str(folder / "model" / "model.safetensors") not in Path("/proc/self/maps").read_text()
    assert model.get_input_embeddings().weight.isfinite().all()


def test_loading_a_quantized_model_takes_nothing_from_one_that_trains_in_the_same_file(folder):
    model, _ = models.load(folder / "model")  # its weights are a mapping of the file, changed in place
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(1.0)
    trained = [weight.detach().clone() for weight in model.parameters()]
    models.load(folder / "model", quantization="4bit")
    assert all(torch.equal(weight, kept) for weight, kept in zip(model.parameters(), trained, strict=True))


@pytest.mark.parametrize("where", ["mps", "npu"])
def test_4bit_where_no_kernels_are_is_refused_before_anything_is_read(monkeypatch, where):
    monkeypatch.setattr(models, "device", lambda: where)
    with pytest.raises(ModelError, match=f'quantization must be none on {where}.*Write quantization = "none"'):
        models.load(data.BASE, quantization="4bit")


def test_4bit_gradients_after_a_look_at_held_out_data_are_those_before_it(folder):
    """bitsandbytes packs 4-bit weights anew for fast answers, in place: gradients after that were wrong, silently."""

    def gradients(look_first: bool) -> dict[str, torch.Tensor]:
        base, tokenizer = models.load(folder / "model", quantization="4bit")
        model = adapters.attach(base, SFTConfig(**options(folder, quantization="4bit")), tokenizer)
        torch.manual_seed(0)
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=0.1)
        ids = torch.tensor([tokenizer("The river is long and the stone is old.")["input_ids"]])
        if look_first:
            with torch.no_grad(), models.autocast():
                model.eval()(ids)
        model.train()
        with models.autocast():
            model(input_ids=ids, labels=ids).loss.backward()
        return {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}

    before, after = gradients(False), gradients(True)
    assert before and before.keys() == after.keys()
    for name, gradient in before.items():
        assert torch.cosine_similarity(gradient.flatten(), after[name].flatten(), dim=0) > 0.999, name


@pytest.mark.parametrize("variant", ["rslora", "dora"])
def test_variants_train_and_load_to_what_they_learned(folder, variant):
    config = SFTConfig(**options(folder, data=str(folder / "sft.jsonl"), lora_variant=variant, lora_dropout=0.1))
    run = sft.train(config, folder / "model", "tiny", say=quiet)
    about = json.loads((run.checkpoint / "adapter_config.json").read_text())
    assert about["use_rslora"] is (variant == "rslora") and about["use_dora"] is (variant == "dora")
    assert about["lora_dropout"] == 0.1
    learned, tokenizer = models.load(run.checkpoint)
    base, _ = models.load(folder / "model")
    row = torch.tensor([data.chat_row(tokenizer, "Say river", "river.")["input_ids"]])
    with torch.no_grad():
        assert not torch.allclose(learned(row).logits, base(row).logits, atol=1e-3)
    looks = [row["held_out_loss"] for row in run.history() if "held_out_loss" in row]
    assert looks[-1] < looks[0]


def test_a_merged_adapter_trains_again_whole(folder):
    run = sft.train(SFTConfig(**options(folder, data=str(folder / "sft.jsonl"))), folder / "model", "tiny", say=quiet)
    more = SFTConfig(**options(folder, data=str(folder / "sft.jsonl"), seed=1) | {"tuning": "full", "lora_rank": 16})
    again = sft.train(more, run.checkpoint, run.id, say=quiet)
    assert again.metrics["trainable_parameters"] == again.metrics["parameters"]
