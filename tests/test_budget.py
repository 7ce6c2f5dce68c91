"""Budgets: weights against peft, bytes against torch and bitsandbytes, sums against published figures."""

import dataclasses
import json
import math
import weakref
from pathlib import Path

import bitsandbytes
import peft
import pytest
import safetensors
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPT2Config,
    LlamaConfig,
    MixtralConfig,
    OPTConfig,
    Qwen3Config,
    T5Config,
)

from labkit import adapters, budget, data, models, rewards
from labkit.config import DPOConfig, PretrainConfig, QLoRAConfig, RewardConfig, SFTConfig
from labkit.errors import ConfigError, ModelError
from labkit.stages import sft
from labkit.stages.pretrain import MuonWithAdamW

GB = 1e9


def llama(**sizes):
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 176} | sizes
    return LlamaConfig(**{"vocab_size": 128, "tie_word_embeddings": False} | sizes)


TINY = {
    "llama": llama(num_key_value_heads=2),
    "qwen3": Qwen3Config(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=16,
        intermediate_size=176, vocab_size=128, tie_word_embeddings=True,
    ),
    "gpt2": GPT2Config(
        n_embd=64, n_layer=2, n_head=4, vocab_size=128, resid_pdrop=0.0, attn_pdrop=0.0, embd_pdrop=0.0,
        bos_token_id=0, eos_token_id=0,
    ),
    "lfm2": models.nano_config(128, hidden_size=64, layers=2, heads=4),
}  # fmt: skip


def build(name):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(TINY[name])


def lora(model, rank=4, targets="all-linear", **options):
    return peft.get_peft_model(model, peft.LoraConfig(r=rank, target_modules=targets, **options))


# Shapes


@pytest.mark.parametrize("name", TINY)
def test_weights_are_counted_as_the_built_model_has_them(name):
    shape, model = budget.shape(TINY[name]), build(name)
    assert shape.parameters == models.weights(model)["parameters"]
    assert (shape.vocab, shape.hidden, shape.layers) == (128, 64, 2)
    assert shape.largest == max(weight.numel() for weight in model.parameters())
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    tables = sum(table.weight.numel() for table in model.modules() if isinstance(table, torch.nn.Embedding))
    assert shape.embedding == tables - (128 * 64 if tied else 0)


@pytest.mark.parametrize("variant", ["lora", "dora"])
@pytest.mark.parametrize("targets", ["all-linear", "some"])
@pytest.mark.parametrize("name", TINY)
@pytest.mark.filterwarnings("ignore")
def test_an_adapters_weights_are_those_that_peft_trains(name, targets, variant):
    some = {"gpt2": ["c_attn", "mlp.c_proj"], "lfm2": ["q_proj", "w1", "in_proj"]}.get(name, ["q_proj", "v_proj"])
    targets = some if targets == "some" else targets
    trained, _ = lora(build(name), 4, targets, use_dora=variant == "dora").get_nb_trainable_parameters()
    shape, knobs = budget.shape(TINY[name]), {"method": "lora", "lora_rank": 4, "lora_variant": variant}
    assert budget.estimate(shape, **knobs, target_modules=targets).trainable == trained
    if targets != "all-linear":
        assert budget.estimate(shape, **knobs, target_modules=", ".join(targets)).trainable == trained


@pytest.mark.parametrize("name", TINY)
def test_budget_and_training_take_the_same_names_of_layers(name):
    shape, model = budget.shape(TINY[name]), build(name)
    assert [line[0] for line in shape.linears] == list(adapters.linears(model))
    for last in adapters.linear_names(adapters.linears(model)):
        assert adapters.targets(model, f"{last}, ") == [last] and budget.adapted(shape, last)
    for wrong in ("lm_head", "nowhere", "proj", ""):
        for use in (lambda: adapters.targets(model, wrong), lambda: budget.adapted(shape, wrong)):  # noqa: B023
            with pytest.raises(ConfigError, match=f"target_modules must .*; got '{wrong}'.*Known: all-linear, "):
                use()


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_a_reward_models_weights_are_those_that_train(tmp_path, tied, tuning):
    tokenizer = models.load("smoke")[1]
    torch.manual_seed(0)
    config = llama(vocab_size=len(tokenizer), tie_word_embeddings=tied)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    config = RewardConfig(model=str(tmp_path), tuning=tuning)
    model, tokenizer = rewards.from_language_model(tmp_path)
    model = adapters.attach(model, config, tokenizer)
    planned = budget.estimate(budget.shape_of("reward", config), **budget.knobs("reward", config))
    assert planned.trainable == models.weights(model)["trainable_parameters"]


def test_nano_is_the_shipped_model_and_smoke_the_one_that_is_made():
    nano = budget.shape("nano")
    with safetensors.safe_open(data.BASE / "model.safetensors", "pt") as file:
        stored = sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
    assert nano == budget.shape(data.BASE) and nano.parameters == stored
    model, _ = models.load("smoke")
    assert budget.shape("smoke").parameters == models.weights(model)["parameters"]
    assert budget.estimate(nano).trainable == nano.parameters
    assert budget.estimate(nano, method="lora").trainable < nano.parameters / 10


def test_a_shape_leaves_the_random_numbers_alone():
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    budget.shape("smoke")
    assert torch.rand(1) == expected


@pytest.mark.parametrize("source", ["no/such/folder", Path("nowhere"), T5Config(d_model=32, num_layers=1)])
def test_what_has_no_shape_is_named(source):
    with pytest.raises(ModelError, match=r"no usable configuration.*Name "):
        budget.shape(source)


def test_a_damaged_configuration_is_told_with_its_reason(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama", "hidden_size": "wide"}')
    with pytest.raises(ModelError, match=r"no usable configuration: .*hidden_size.*; got"):
        budget.shape(tmp_path)


# Bytes against torch and bitsandbytes


def kept_by_autograd(model, autocast, rows=2, length=48):
    """Bytes of all tensors that a forward pass keeps for the backward pass, weights left out."""
    own, kept = {weight.untyped_storage()._cdata for weight in model.parameters()}, {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage  # held, so that its address is not given away again
        return tensor

    ids = torch.randint(0, 100, (rows, length))
    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with hooks, torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        out = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
    assert out.logits.requires_grad
    return sum(storage.nbytes() for storage in kept.values())


@pytest.mark.parametrize("stage, attention", [("pretrain", "sdpa"), ("sft", "eager")])  # as the stages train
@pytest.mark.parametrize("dtype, autocast", [("fp32", True), ("fp32", False), ("bf16", False), ("bf16", True)])
@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("name", TINY)
@pytest.mark.filterwarnings("ignore")
def test_activations_are_what_autograd_keeps(name, method, dtype, autocast, stage, attention):
    model = build(name).train().to(torch.bfloat16 if dtype == "bf16" else torch.float32)
    model.set_attn_implementation(attention)
    model = lora(model) if method == "lora" else model
    parts = budget.estimate(
        budget.shape(TINY[name]),
        method=method,
        lora_rank=4,
        dtype=dtype,
        autocast=autocast,
        batch_size=2,
        seq_length=48,
        stage=stage,
    ).parts
    kept = kept_by_autograd(model, autocast)
    if name == "gpt2" and attention == "eager":  # its softmax stays in bf16: the prediction is too much for it
        assert 0.8 * kept < parts["activations"] + parts["autocast"] < 1.45 * kept
    else:
        assert parts["activations"] + parts["autocast"] == pytest.approx(kept, rel=0.2)


@pytest.mark.parametrize("name", TINY)
@pytest.mark.filterwarnings("ignore")
def test_dora_keeps_what_layer_and_adapter_gave(name):
    long = {"rows": 8, "length": 96}  # long enough for activations to outweigh the products of B and A
    found = {}
    for variant in ("lora", "dora"):
        model = lora(build(name).train(), use_dora=variant == "dora")
        parts = budget.estimate(
            budget.shape(TINY[name]), method="lora", lora_rank=4, lora_variant=variant, autocast=False, batch_size=8,
            seq_length=96, stage="pretrain",
        ).parts  # fmt: skip
        found[variant] = parts["activations"], kept_by_autograd(model, False, **long)
    more, kept = (found["dora"][side] - found["lora"][side] for side in (0, 1))
    assert more == pytest.approx(kept, rel=0.25)


class Peak(TorchDispatchMode):
    """The most bytes that tensors made while it is on took at once; `known` tensors are not counted."""

    def __init__(self, known):
        super().__init__()
        self.now = self.most = 0
        self.live = {tensor.untyped_storage()._cdata: tensor for tensor in known}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage()._cdata not in self.live:
                storage = tensor.untyped_storage()
                self.now += storage.nbytes()
                self.most = max(self.most, self.now)
                key, size = storage._cdata, storage.nbytes()
                self.live[key] = weakref.ref(storage, lambda _, key=key, size=size: self.free(key, size))
        return out

    def free(self, key, size):
        self.live.pop(key, None)
        self.now -= size


@pytest.mark.parametrize("stage", ["pretrain", "dpo"])
@pytest.mark.filterwarnings("ignore")
def test_logits_of_a_large_vocabulary_are_what_a_step_takes(stage):
    from accelerate.utils.operations import convert_to_fp32
    from trl.trainer.utils import add_fused_lm_head

    config = llama(vocab_size=8192, hidden_size=32, intermediate_size=64)
    model = AutoModelForCausalLM.from_config(config).train()
    if stage == "dpo":
        add_fused_lm_head(model)
    ids = torch.randint(0, 8192, (4, 128))
    with Peak(model.parameters()) as peak:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = model(input_ids=ids, labels=ids, **({"fused_lm_head": True} if stage == "dpo" else {}))
        out = convert_to_fp32(out)  # as the Trainer's accelerate does with all that a model returns
        out["loss"].backward()
    rows = 2 if stage == "dpo" else 4  # two pairs are four rows
    parts = budget.estimate(budget.shape(config), stage=stage, batch_size=rows, seq_length=128).parts
    expected = sum(parts[name] for name in ("logits", "activations", "autocast"))
    assert parts["logits"] > 0.8 * expected and expected == pytest.approx(peak.most, rel=0.15)


@pytest.mark.filterwarnings("ignore")
def test_logits_of_learned_tokens_are_what_a_step_of_sft_takes_on_a_cpu():
    from accelerate.utils.operations import convert_to_fp32

    config = llama(vocab_size=8192, hidden_size=32, intermediate_size=64)
    model = AutoModelForCausalLM.from_config(config).train()
    model.set_attn_implementation("eager")
    sft.score_learned_tokens_only(model)
    ids = torch.randint(0, 8192, (4, 128))
    labels = ids.clone()
    labels[:, :96] = data.IGNORED
    with Peak(model.parameters()) as peak:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = model(input_ids=ids, labels=labels)
        convert_to_fp32(out)["loss"].backward()
    planned = {"stage": "sft", "batch_size": 4, "seq_length": 128}
    parts = budget.estimate(budget.shape(config), **planned, learned_tokens=32).parts
    expected = sum(parts[name] for name in ("logits", "activations", "autocast"))
    assert parts["logits"] > 0.5 * expected and expected == pytest.approx(peak.most, rel=0.15)
    assert budget.estimate(budget.shape(config), **planned).parts["logits"] == 4 * parts["logits"]


def state_bytes(optimizer):
    states = [tensor for state in optimizer.state.values() for tensor in state.values()]
    return sum(t.numel() * t.element_size() for t in states if isinstance(t, torch.Tensor) and t.numel() > 1)


def test_moments_are_what_the_optimizers_keep():
    model, shape = build("lfm2"), budget.shape(TINY["lfm2"])

    def step(optimizer):
        for weight in model.parameters():
            weight.grad = torch.randn_like(weight)
        optimizer.step()
        return optimizer

    expected = {name: budget.estimate(shape, optimizer=name).parts["optimizer"] for name in ("adamw", "muon")}
    assert state_bytes(step(torch.optim.AdamW(model.parameters()))) == expected["adamw"] == 8 * shape.parameters
    both = step(MuonWithAdamW(model, 1e-3))
    assert state_bytes(both.muon) + state_bytes(both.adamw) == expected["muon"] < expected["adamw"]


def test_8bit_moments_are_what_bitsandbytes_keeps():
    weight = torch.nn.Parameter(torch.randn(256, 64))
    optimizer = bitsandbytes.optim.AdamW8bit([weight])
    weight.grad = torch.randn_like(weight)
    optimizer.step()
    state = optimizer.state[weight]
    kept = sum(state[name].nbytes for name in ("state1", "state2", "absmax1", "absmax2"))
    shape = dataclasses.replace(budget.shape("nano"), parameters=weight.numel())
    assert budget.estimate(shape, optimizer="paged_adamw_8bit").parts["optimizer"] == kept


@pytest.mark.parametrize("double_quant, bits", [(True, 4.127), (False, 4.5)])
def test_nf4_takes_the_bits_that_bitsandbytes_writes(double_quant, bits):
    """4.127 bits: Dettmers et al. 2023, QLoRA, section 3 (0.5 bits of scales become 0.127 by double quantization)."""
    written, state = bitsandbytes.functional.quantize_4bit(
        torch.randn(1024, 1024), quant_type="nf4", compress_statistics=double_quant, blocksize=64
    )
    scales = [state.absmax, state.state2.absmax] if double_quant else [state.absmax]
    measured = 8 * (written.nbytes + sum(scale.nbytes for scale in scales)) / 1024**2
    planned = budget.estimate(budget.shape("nano"), method="lora", quantization="4bit", double_quant=double_quant)
    assert planned.bits_per_weight == pytest.approx(bits, abs=5e-4) == pytest.approx(measured, rel=1e-3)


def test_embeddings_head_and_norms_are_not_quantized():
    shape = budget.shape(TINY["llama"])
    inside = sum(wide * out for _, wide, out in shape.linears)
    outside = shape.parameters - inside
    assert outside == 2 * 128 * 64 + 5 * 64
    for quantization, bits in [("8bit", 8), ("4bit", 4.127)]:
        planned = budget.estimate(shape, method="lora", quantization=quantization, dtype="bf16")
        scales = 4 * sum(out for *_, out in shape.linears) if quantization == "8bit" else 0
        assert planned.parts["weights"] == pytest.approx(inside * bits / 8 + scales + 2 * outside, rel=1e-3)


# Published figures


@pytest.fixture(scope="module")
def llama_65b():
    sizes = {"hidden_size": 8192, "num_hidden_layers": 80, "num_attention_heads": 64, "intermediate_size": 22016}
    return budget.shape(llama(vocab_size=32000, **sizes))  # Touvron et al. 2023, table 2: 65.2B


def states(parts):
    return sum(parts[name] for name in ("weights", "adapter", "gradients", "optimizer"))


def test_llama_65b_has_65_2_billion_weights(llama_65b):
    assert llama_65b.parameters == pytest.approx(65.2e9, rel=0.01)  # Touvron et al. 2023, LLaMA, table 2


def test_qlora_finetunes_65b_on_one_gpu_of_48_gb(llama_65b):
    """Dettmers et al. 2023, abstract and section 1: from > 780 GB to < 48 GB; their figure 6 breaks 45 GB down."""
    knobs = {"method": "lora", "quantization": "4bit", "lora_rank": 64, "dtype": "bf16", "device": "cuda"}
    planned = budget.estimate(llama_65b, **knobs, batch_size=1, seq_length=512, gradient_checkpointing=True)
    assert planned.total == pytest.approx(45 * GB, rel=0.15)
    assert budget.fits(planned, 48 * 2**30) != "will not fit"
    assert budget.fits(planned, 32 * 2**30) == "will not fit"


def test_full_16_bit_finetuning_of_65b_takes_780_gb(llama_65b):
    """Dettmers et al. 2023, section 1: weights and gradients in 16 bits, AdamW's moments in 32."""
    half, whole = budget.estimate(llama_65b, dtype="bf16"), budget.estimate(llama_65b, dtype="fp32")
    assert half.parts["weights"] + half.parts["gradients"] + whole.parts["optimizer"] == pytest.approx(
        780 * GB, rel=0.15
    )


def test_zero_counts_16_bytes_per_weight():
    """Rajbhandari et al. 2020, ZeRO, section 3.1 and figure 1: 7.5B weights with Adam have 120 GB of model states."""
    shape = budget.shape(GPT2Config(n_embd=4096, n_layer=36, n_head=32))
    assert states(budget.estimate(shape).parts) == 16 * shape.parameters == pytest.approx(120 * GB, rel=0.15)


def test_gpt2_of_1_5b_needs_24_gb_of_states_and_8_gb_of_checkpoints():
    """ZeRO, sections 3.1 and 3.2: states at least 24 GB; activations about 8 GB with checkpoints, batch 32 of 1K."""
    shape = budget.shape(GPT2Config(n_embd=1600, n_layer=48, n_head=25))
    assert states(budget.estimate(shape).parts) == pytest.approx(24 * GB, rel=0.15)
    planned = budget.estimate(shape, dtype="bf16", batch_size=32, seq_length=1024, gradient_checkpointing=True)
    assert planned.parts["activations"] == pytest.approx(8 * GB, rel=0.15)


def test_a_gpt_layer_keeps_34_bytes_per_token_and_hidden_number():
    """Korthikanti et al. 2022, section 4.1 and 5: 34 sbh bytes without the attention scores (2 of them dropout's)."""
    config = GPT2Config(n_embd=1024, n_layer=8, n_head=16, activation_function="gelu")
    kept = budget.estimate(budget.shape(config), dtype="bf16", batch_size=1, seq_length=1024).parts["activations"]
    assert kept / 1024 / 1024 / 8 == pytest.approx(34, rel=0.15)


def test_lora_of_gpt3_is_an_adapter_of_35_mb_on_350_gb():
    """Hu et al. 2021, LoRA, section 4.2: rank 4 on queries and values; VRAM 350 GB, checkpoint 35 MB (16-bit)."""
    sizes = {"hidden_size": 12288, "word_embed_proj_dim": 12288, "ffn_dim": 49152, "vocab_size": 50257}
    shape = budget.shape(OPTConfig(num_hidden_layers=96, num_attention_heads=96, **sizes))  # OPT-175B has GPT-3's shape
    assert shape.parameters == pytest.approx(175e9, rel=0.01)
    knobs = {"method": "lora", "lora_rank": 4, "target_modules": ["q_proj", "v_proj"], "dtype": "bf16", "batch_size": 1}
    planned = budget.estimate(shape, **knobs, gradient_checkpointing=True, device="cuda")
    assert planned.trainable == pytest.approx(18.9e6, rel=0.01)  # table 4
    assert 2 * planned.trainable == pytest.approx(35e6, rel=0.15)
    assert planned.total == pytest.approx(350 * GB, rel=0.15)


def test_8bit_moments_take_2_gb_where_adams_took_8():
    """Dettmers et al. 2022, 8-bit optimizers, section 1.1: Adam's states of 1B weights shrink from 8 GB to 2 GB."""
    shape = dataclasses.replace(budget.shape("nano"), parameters=10**9)
    assert budget.estimate(shape).parts["optimizer"] == 8 * GB
    eight = budget.estimate(shape, optimizer="paged_adamw_8bit").parts["optimizer"]
    assert eight == pytest.approx(2 * GB, rel=0.15)


# Knobs


def test_every_knob_moves_the_part_that_it_should():
    shape = budget.shape(TINY["llama"])

    def parts(**knobs):
        return budget.estimate(shape, **knobs).parts

    now = parts()
    assert parts(batch_size=16)["activations"] == parts(seq_length=1024)["activations"] == 2 * now["activations"]
    assert parts(gradient_checkpointing=True)["activations"] < now["activations"]
    assert parts(autocast=False)["autocast"] == 0 < now["autocast"]
    assert parts(dtype="bf16")["weights"] == now["weights"] / 2
    assert parts(method="lora")["gradients"] == parts(method="lora")["adapter"] < now["gradients"]
    assert parts(stage="reward")["logits"] == 0 and parts(stage="orpo")["logits"] > parts(stage="pretrain")["logits"]
    assert all(type(size) is int for size in now.values())


def test_other_models_are_copies_for_full_tuning_and_adapters_for_lora():
    shape = budget.shape(TINY["llama"])

    def parts(**knobs):
        return budget.estimate(shape, **knobs).parts

    weights = parts()["weights"]
    assert parts(stage="dpo")["other models"] == 0  # the reference's log-probabilities are computed before
    assert parts(stage="dpo", precompute_ref_log_probs=False)["other models"] == weights
    assert parts(stage="dpo", precompute_ref_log_probs=False, method="lora")["other models"] == 0
    assert parts(stage="ppo")["other models"] == 3 * weights  # reference, reward, value
    assert parts(stage="ppo")["gradients"] == 2 * parts()["gradients"]  # policy and value
    shared = parts(stage="ppo", separate_values=False)
    assert shared["other models"] == 2 * weights and shared["gradients"] == parts()["gradients"]
    bf16 = {"method": "lora", "dtype": "bf16"}
    reward = 4 * shape.parameters  # a whole model in fp32, whatever the policy's weights are
    assert parts(stage="ppo", separate_values=False, **bf16)["other models"] == reward
    apart = parts(stage="ppo", **bf16)
    assert apart["other models"] == reward + apart["weights"] + apart["adapter"]


@pytest.mark.parametrize("name", TINY)
def test_a_cache_is_what_generation_keeps(name):
    ids = torch.randint(128, (3, 11))
    kept = build(name)(ids, use_cache=True).past_key_values
    tensors = [x for layer in kept.layers for x in (getattr(layer, "keys", None), getattr(layer, "values", None))]
    assert budget.shape(TINY[name]).cache * ids.numel() == sum(x.numel() for x in tensors if x is not None)


def test_sampling_takes_more_than_learning_where_many_answers_are_sampled_at_once():
    shape = budget.shape(TINY["llama"])
    knobs = {"stage": "ppo", "separate_values": False, "batch_size": 2, "seq_length": 64}
    none, few, many = (budget.estimate(shape, **knobs, sampled_rows=rows) for rows in (0, 1, 512))
    assert few.total == none.total < many.total and "sampling" not in none.parts
    assert many.parts["sampling"] == 512 * few.parts["sampling"] > 512 * 64 * 2 * shape.cache


def test_attention_without_a_fused_form_keeps_its_scores_everywhere():
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    shape = budget.shape(Gemma2Config(**sizes, intermediate_size=176, vocab_size=128, head_dim=16))
    assert shape.written_out and not any(budget.shape(config).written_out for config in TINY.values())
    knobs = {"seq_length": 1024, "batch_size": 2, "device": "cuda"}
    both = [dataclasses.replace(shape, written_out=out) for out in (True, False)]
    written, fused = (budget.estimate(one, **knobs).parts["activations"] for one in both)
    scores = 2 * 2 * 4 * 1024**2  # layers, rows, heads
    assert written - fused >= scores * (4 + 2)


def test_experts_count_as_weights_that_are_not_quantized():
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = MixtralConfig(**sizes, num_key_value_heads=2, vocab_size=128, num_local_experts=4)
    shape = budget.shape(config)
    experts = 2 * 4 * 3 * 64 * 128
    assert shape.parameters > experts > sum(wide * out for _, wide, out in shape.linears)
    planned = budget.estimate(shape, method="lora", quantization="4bit", dtype="bf16")
    assert planned.parts["weights"] > 2 * experts
    one = budget.shape(MixtralConfig(**sizes, num_key_value_heads=2, vocab_size=128, num_experts_per_tok=1))
    assert shape.between > one.between > 0


# Verdict and advice


def plan(total):
    return budget.Budget({}, 0, total, 0, 16.0)


@pytest.mark.parametrize("total, verdict", [(84, "fits"), (86, "tight"), (100, "tight"), (101, "will not fit")])
def test_the_verdict(total, verdict):
    assert budget.fits(plan(total), 100) == verdict


def test_advice_puts_first_what_is_enough_and_says_what_it_saves(llama_65b):
    knobs = {"batch_size": 8, "seq_length": 512, "dtype": "bf16", "device": "cuda"}
    before = budget.estimate(llama_65b, **knobs).total
    assert budget.advice(llama_65b, before, **knobs) == []
    changes = budget.advice(llama_65b, 250 * 10**9, **knobs)
    assert changes[0].knobs == {"method": "lora", "quantization": "8bit"} and changes[0].fits
    assert changes[0].text == "tuning full -> lora and quantization none -> 8bit"
    assert changes[-1].text == "optimizer adamw -> paged_adamw_8bit in a trainer of your own"
    assert {"optimizer": "paged_adamw_8bit"} in [change.knobs for change in changes]
    for change in changes:
        after = budget.estimate(llama_65b, **knobs | change.knobs).total
        assert change.saves == before - after > 0 and change.fits == (after <= 250 * 10**9)
    assert [change.fits for change in changes] == sorted((change.fits for change in changes), reverse=True)


def test_advice_lowers_a_number_no_further_than_it_must():
    shape = budget.shape(TINY["llama"])
    knobs = {"batch_size": 64, "seq_length": 1024, "stage": "pretrain"}
    first = budget.advice(shape, budget.estimate(shape, **knobs | {"batch_size": 16}).total, **knobs)[0]
    assert first.knobs == {"batch_size": 16} and first.text == "batch_size 64 -> 16"
    changes = budget.advice(shape, 1, **knobs)
    assert not any("method" in change.knobs for change in changes)  # a base model needs all
    assert any(change.text.startswith("block_size 1024 -> ") for change in changes)


def test_advice_lowers_the_rank_of_an_adapter():
    shape = budget.shape(TINY["llama"])
    knobs = {"method": "lora", "lora_rank": 64, "batch_size": 1, "seq_length": 64}
    changes = budget.advice(shape, budget.estimate(shape, **knobs | {"lora_rank": 16}).total, **knobs)
    assert changes[0].fits and changes[0].knobs == {"lora_rank": 16} and changes[0].text == "lora_rank 64 -> 16"
    assert not any("lora_rank" in change.knobs for change in budget.advice(shape, 1, **knobs | {"method": "full"}))


@pytest.mark.parametrize("device", ["cpu", "cuda", "mps"])
def test_advice_names_parameters_that_a_config_has_and_quantizes_only_where_loading_does(device):
    shape = budget.shape(TINY["llama"])
    changes = budget.advice(shape, 1, method="lora", seq_length=512, device=device)
    fields = {field.name for field in dataclasses.fields(SFTConfig)}
    for change in changes:
        own = change.text.endswith("in a trainer of your own")
        assert own or (set(change.knobs) <= fields | {"seq_length"} and "method" not in change.text)
    assert any("quantization" in change.knobs for change in changes) is (device in models.QUANTIZES)


def test_advice_combines_where_no_change_is_enough_and_admits_defeat(llama_65b):
    knobs = {"batch_size": 64, "seq_length": 4096, "dtype": "bf16", "device": "cuda"}
    changes = budget.advice(llama_65b, 48 * 2**30, **knobs)
    first, *others = changes
    assert first.fits and first.knobs["method"] == "lora" and first.knobs["quantization"] == "4bit"
    assert not any(change.fits for change in others)
    for spared in first.knobs.keys() - {"method", "quantization"}:  # none of them can be
        fewer = {name: value for name, value in first.knobs.items() if name != spared}
        assert budget.estimate(llama_65b, **knobs | fewer).total > 48 * 2**30
    assert not any(change.fits for change in budget.advice(llama_65b, 10**9, **knobs))


# What a stage's config stands for


def rows_of(path, answers):
    path.write_text("".join(json.dumps({"prompt": "Say it", "answer": answer}) + "\n" for answer in answers))
    return str(path)


def test_knobs_follow_the_config_and_its_longest_rows(tmp_path):
    short = rows_of(tmp_path / "short.jsonl", ["one"] * 30)
    long = rows_of(tmp_path / "long.jsonl", ["one"] * 29 + ["a b " * 99])
    tokenizer = models.load("smoke")[1]
    for source, answer in ((short, "one"), (long, "a b " * 99)):
        row = data.chat_row(tokenizer, "Say it", answer)
        learned = sum(label != data.IGNORED for label in row["labels"])
        assert budget.row_length("sft", "smoke", source) == (len(row["input_ids"]), learned)
    plain = budget.knobs("sft", SFTConfig(model="smoke", data=long, batch_size=5))
    assert plain["batch_size"] == 5 and "method" not in plain and plain["seq_length"] > 150
    config = QLoRAConfig(model="smoke", data=short, lora_rank=3, target_modules="q_proj")
    found = budget.estimate(budget.shape("smoke"), **budget.knobs("sft", config))
    assert found.trainable == 3 * (64 + 64) and found.bits_per_weight < 4.2  # one attention layer
    assert budget.knobs("pretrain", PretrainConfig(block_size=77))["seq_length"] == 77


def test_only_learned_tokens_have_logits_on_a_cpu_and_rows_are_padded(tmp_path, monkeypatch):
    source = rows_of(tmp_path / "short.jsonl", ["one"] * 30)
    length, learned = budget.row_length("sft", "smoke", source)
    config, shape = SFTConfig(model="smoke", data=source, batch_size=4), budget.shape("smoke")
    knobs = budget.knobs("sft", config)
    assert knobs["seq_length"] == 16 > length and knobs["learned_tokens"] == learned < length
    assert budget.estimate(shape, **knobs).parts["logits"] == 16 * 4 * learned * shape.vocab
    for other in ({"loss_on": "all"}, {"replay": 0.1}):
        assert "learned_tokens" not in budget.knobs("sft", dataclasses.replace(config, **other))
    monkeypatch.setattr(models, "device", lambda: "cuda")
    assert budget.knobs("sft", config)["seq_length"] == length


def test_a_reward_model_has_logits_of_chosen_answers_alone_where_it_predicts_them(tmp_path):
    row, file = {"prompt": "Say it", "chosen": "one two", "rejected": "one"}, tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for _ in range(30)))
    config, shape = RewardConfig(model="smoke", data=str(file), batch_size=4), budget.shape(llama())
    with_words, without = (budget.knobs("reward", dataclasses.replace(config, sft_coef=coef)) for coef in (1.0, 0.0))
    learned = with_words["learned_tokens"]
    assert 0 < learned < with_words["seq_length"] and "learned_tokens" not in without
    parts, plain = (budget.estimate(shape, **knobs).parts for knobs in (with_words, without))
    assert parts["logits"] == 16 * 4 * learned * shape.vocab and plain["logits"] == 0
    assert parts["other models"] == 4 * shape.head > 0 == plain["other models"]  # the output head, kept and frozen


def test_the_base_is_known_by_its_name_too():
    for stage, config in (("dpo", DPOConfig), ("reward", RewardConfig), ("sft", SFTConfig)):
        assert budget.knobs(stage, config(tuning="lora", parent="nano"))["token_rows"] == 3
    assert "token_rows" not in budget.knobs("dpo", DPOConfig(tuning="lora", parent="sft-nano-0"))


def test_a_file_that_was_edited_is_read_again(tmp_path):
    source = rows_of(tmp_path / "rows.jsonl", ["one"] * 30)
    before = budget.row_length("sft", "smoke", source)
    rows_of(tmp_path / "rows.jsonl", ["one two three"] * 30)
    assert budget.row_length("sft", "smoke", source) > before
    config = SFTConfig(model=str(tmp_path / "model"))
    for layers in (2, 3):
        llama(num_hidden_layers=layers).save_pretrained(tmp_path / "model")
        assert budget.shape_of("sft", config).layers == layers


def test_a_tokenizer_without_a_chat_template_is_given_the_plain_one(tmp_path):
    tokenizer = models.load("smoke")[1]
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path)
    llama(vocab_size=len(tokenizer), max_position_embeddings=12).save_pretrained(tmp_path)
    tokenizer.chat_template = data.PLAIN_TEMPLATE
    source = rows_of(tmp_path / "rows.jsonl", ["one"] * 30)
    whole = len(data.chat_row(tokenizer, "Say it", "one")["input_ids"])
    assert budget.row_length("sft", str(tmp_path), source)[0] == min(12, whole)  # as much as the model reads


def test_a_model_without_a_tokenizer_is_named(tmp_path):
    TINY["llama"].save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"no usable tokenizer.*holds the model's tokenizer too"):
        budget.row_length("sft", str(tmp_path), "glossary")


# Wrong values


@pytest.mark.parametrize(
    "knobs, message",
    [
        ({"method": "lora", "lora_rank": 0}, "lora_rank must be a whole number >= 1; got 0. Write .* = 8"),
        (
            {"method": "lora", "target_modules": ["q_pro"]},
            "got 'q_pro'. Did you mean q_proj. Known: all-linear, down_proj, gate",
        ),
        ({"method": "lora", "lora_variant": "olora"}, "lora_variant must be one of lora, rslora, dora; got 'olora'"),
        ({"method": "lora", "target_modules": []}, "target_modules must .*; got ''. Known: "),
        ({"method": "lora", "target_modules": "all_linear"}, "got 'all_linear'"),
        ({"quantization": "4bits"}, "quantization must be one of none, 8bit, 4bit; got '4bits'. .* '4bit'"),
        ({"quantization": "8bit"}, 'method = "full"; got \'8bit\'. Write method = "lora"'),
        ({"method": "Lora"}, "method must be one of full, lora; got 'Lora'. .* 'lora'"),
        ({"optimizer": "adam"}, "optimizer .*'adamw'"),
        ({"stage": "rlhf"}, "stage must be one of pretrain"),
        ({"dtype": "fp16"}, "dtype must be one of fp32, bf16"),
        ({"batch_size": True}, "batch_size must be a whole number >= 1; got True"),
        ({"seq_length": 1.5}, "seq_length must be a whole number"),
        ({"device": "gpu"}, "device must be one of cpu, cuda"),
    ],
)
def test_a_wrong_value_is_named(knobs, message):
    shape = budget.shape(TINY["llama"])
    with pytest.raises(ConfigError, match=message):
        budget.estimate(shape, **knobs)
    with pytest.raises(ConfigError, match=message):
        budget.advice(shape, 1, **knobs)


# Memory and time


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_a_containers_limit_counts_wherever_above_the_process_it_is_set(tmp_path):
    write(tmp_path / "proc/self/cgroup", "4:memory:/job/step\n5:cpu:/\n0::/job\n")
    base = tmp_path / "sys/fs/cgroup"
    write(base / "memory/job/memory.limit_in_bytes", "1000")
    write(base / "memory/job/memory.usage_in_bytes", "700")
    write(base / "memory/job/memory.stat", "cache 5\ntotal_inactive_file 100\n")
    write(base / "job/memory.max", "max\n")  # version 2: no limit
    write(base / "memory.max", "900\n")
    write(base / "memory.current", "500\n")
    write(base / "memory.stat", "anon 1\ninactive_file 50\n")
    assert sorted(budget._limits(tmp_path)) == [400, 450]
    assert budget._limits(tmp_path / "elsewhere") == []


def test_available_memory_is_the_least_of_machine_and_container(monkeypatch):
    import psutil

    assert 0 < budget.available_bytes("cpu") <= psutil.virtual_memory().total
    monkeypatch.setattr(budget, "_limits", lambda: [1000])
    assert 1000 < budget.available_bytes() <= 1000 + budget.PROCESS["cpu"]
    with monkeypatch.context() as card:  # of 80 GB, of which others took 50
        card.setattr(torch.cuda, "is_available", lambda: True)
        card.setattr(torch.cuda, "mem_get_info", lambda: (30 * 10**9, 80 * 10**9))
        card.setattr(torch.cuda, "memory_reserved", lambda: 3 * 10**9)
        card.setattr(torch.cuda, "memory_allocated", lambda: 10**9)
        assert budget.available_bytes("cuda") == 32 * 10**9 + budget.PROCESS["cuda"]
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="device must be one of this machine; got 'cuda'"):
            budget.available_bytes("cuda")


def test_a_probe_leaves_out_the_first_step_and_takes_the_median(monkeypatch):
    ticks = iter([0, 60, 100, 101, 200, 203, 300, 310])  # steps of 60, 1, 3 and 10 seconds
    monkeypatch.setattr(budget.time, "perf_counter", lambda: next(ticks))
    calls = []
    assert budget.probe(lambda: calls.append(1), n=4) == 3 and len(calls) == 4
    assert budget.time_left(3.0, 100) == 300.0
    with pytest.raises(ConfigError, match="n must be"):
        budget.probe(lambda: None, n=0)
