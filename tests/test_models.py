"""Tokenizer, architecture, loading, and the optimizer that pretraining uses."""

import copy
import ctypes

import psutil
import pytest
import tokenizers
import torch
import transformers
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BloomConfig,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
)

from labkit import adapters, data, models, rewards, rollouts, runs, training
from labkit.config import SFTConfig
from labkit.errors import ConfigError, ModelError
from labkit.evaluate import answers, judge
from labkit.stages.pretrain import MuonWithAdamW

TEXTS = ["The river is 42 km long. RIVER: river. A token is a piece of text.", "12 + 7 = 19. Paris is in France."] * 20


@pytest.fixture(scope="module")
def tokenizer():
    return models.train_tokenizer(TEXTS, 330)


def tiny(tokenizer, seed=0):
    return models.new_model(tokenizer, hidden_size=32, layers=2, heads=2, seed=seed)


def same(left, right):
    pairs = zip(left.state_dict().items(), right.state_dict().items(), strict=True)
    return all(a == b and torch.equal(v, w) for (a, v), (b, w) in pairs)


# Tokenizer


def test_digits_and_capitals_are_spelled_one_by_one(tokenizer):
    def pieces(text):
        return [tokenizer.decode(token) for token in tokenizer(text, add_special_tokens=False)["input_ids"]]

    assert pieces("42") == ["4", "2"] and pieces(" 190") == [" 1", "9", "0"]
    assert pieces("RIVER") == list("RIVER") and pieces(" RIVER") == [" R", *"IVER"]
    assert pieces(" river") == [" river"]  # a word of small letters is not


@pytest.mark.parametrize(
    "text", ["A river is 42 km long.", "  two  blanks\n\nand\tlines ", "ÀÉ naïve – 東京 🙂", "it's WE'LL", ""]
)
def test_text_survives_a_round_trip(tokenizer, text):
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


def test_special_tokens_are_whole_and_differ(tokenizer):
    special = [models.END_OF_TEXT, models.PAD, models.USER, models.ASSISTANT, models.END_OF_TURN]
    assert tokenizer.convert_tokens_to_ids(special) == [0, 1, 2, 3, 4]
    assert tokenizer("<|user|><|end|>", add_special_tokens=False)["input_ids"] == [2, 4]
    assert (tokenizer.bos_token_id, tokenizer.pad_token_id, tokenizer.eos_token_id) == (0, 1, 4)
    assert tokenizer.padding_side == "left" and 261 <= len(tokenizer) <= 330
    batch = tokenizer(["a", "a a a"], padding=True)
    assert batch["input_ids"][0][0] == 1 and batch["attention_mask"][0][0] == 0


def test_the_chat_template_renders_and_marks_the_answer(tokenizer):
    turns = data.messages("What is 4?", "A number.")
    assert tokenizer.apply_chat_template(turns, tokenize=False) == ("<|user|> What is 4?<|assistant|> A number.<|end|>")
    asked = tokenizer.apply_chat_template(turns[:1], tokenize=False, add_generation_prompt=True)
    assert asked == "<|user|> What is 4?<|assistant|>"

    encoded = tokenizer.apply_chat_template(
        turns * 2, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    learned = [token for token, mask in zip(encoded["input_ids"], encoded["assistant_masks"], strict=True) if mask]
    assert tokenizer.decode(learned) == " A number.<|end|>" * 2
    single = tokenizer.apply_chat_template(turns, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
    labels = data.chat_row(tokenizer, "What is 4?", "A number.")["labels"]
    assert single["assistant_masks"] == [int(label != data.IGNORED) for label in labels]


def test_the_same_texts_train_the_same_tokenizer(tokenizer):
    assert models.train_tokenizer(TEXTS, 330).get_vocab() == tokenizer.get_vocab()


# Models


def test_a_seed_gives_its_weights(tokenizer):
    assert same(tiny(tokenizer), tiny(tokenizer)) and not same(tiny(tokenizer), tiny(tokenizer, seed=1))


def test_the_model_knows_where_to_stop(tokenizer):
    config = tiny(tokenizer).config
    assert config.vocab_size == len(tokenizer) and config.tie_word_embeddings
    assert (config.bos_token_id, config.pad_token_id, config.eos_token_id) == (0, 1, [4, 0])


def test_tied_weights_count_once(tokenizer):
    model = tiny(tokenizer)
    embedding = model.get_input_embeddings().weight
    assert model.get_output_embeddings().weight is embedding
    stored = {tensor.data_ptr(): tensor.numel() for tensor in model.state_dict().values()}
    every = sum(stored.values())
    assert models.weights(model) == {"parameters": every, "trainable_parameters": every}
    embedding.requires_grad_(False)
    assert models.weights(model) == {"parameters": every, "trainable_parameters": every - embedding.numel()}


def test_a_saved_model_opens_anywhere_and_answers_alike(tokenizer, tmp_path):
    model = tiny(tokenizer).eval()
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    ids = torch.tensor([tokenizer("The river is 42 km long.")["input_ids"]])
    assert any(tmp_path.glob("*.safetensors"))
    with torch.no_grad():
        expected = model(ids).logits
        anywhere = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
        assert torch.equal(anywhere(ids).logits, expected)
        loaded, words = models.load(tmp_path)
        assert torch.equal(loaded.eval()(ids).logits, expected)
    assert words.get_vocab() == tokenizer.get_vocab() and words.padding_side == "left"
    assert words.chat_template == AutoTokenizer.from_pretrained(tmp_path).chat_template == models.CHAT_TEMPLATE


def test_a_model_s_own_sampling_habits_are_left_behind(tokenizer, tmp_path):
    """Temperature 1 is then temperature 1, as every KL and every PPO ratio supposes."""
    model = tiny(tokenizer)
    model.generation_config.update(do_sample=True, temperature=0.3, top_p=0.5, repetition_penalty=1.5)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert AutoModelForCausalLM.from_pretrained(tmp_path).generation_config.repetition_penalty == 1.5
    own, left = models.load(tmp_path)[0].generation_config, transformers.GenerationConfig()
    for name in ("do_sample", "temperature", "top_p", "top_k", "repetition_penalty", "min_p"):
        assert getattr(own, name) == getattr(left, name)
    assert own.eos_token_id == model.generation_config.eos_token_id


def test_what_cannot_be_loaded_is_named(tokenizer, tmp_path):
    with pytest.raises(ModelError, match=r"no such folder here\).*nowhere.*config\.json"):
        models.load("nowhere/at-all")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match="holds no complete model"):
        models.load(tmp_path / "empty")
    tokenizer.save_pretrained(tmp_path / "words")  # a tokenizer alone is no model
    with pytest.raises(ModelError, match="holds no complete model"):
        models.load(tmp_path / "words")


def keep(weights, change):
    """Change a file of weights."""
    found = load_file(weights)
    change(found)
    save_file(found, weights, {"format": "pt"})


def cut(file):
    file.write_bytes(file.read_bytes()[:-100])


def lose_one(weights):
    del weights[min(key for key in weights if "q_proj" in key)]


def shorten_one(weights):
    key = min(key for key in weights if "q_proj" in key)
    weights[key] = weights[key][:-1].clone()


@pytest.mark.parametrize("fault, reason", [
    (lambda folder: cut(folder / "model.safetensors"), "incomplete metadata, file not fully covered"),
    (lambda folder: keep(folder / "model.safetensors", lose_one), "1 weights .* are missing, such as .*q_proj"),
    (lambda folder: keep(folder / "model.safetensors", shorten_one), "1 weights .* another shape, such as .*q_proj"),
    (lambda folder: (folder / "config.json").write_text("{"), "not a valid JSON file"),
    (lambda folder: (folder / "config.json").write_text('{"model_type": "lfm2", "hidden_size": "x"}'), "hidden_size"),
    (lambda folder: (folder / "tokenizer.json").write_text("[]"), "."),
])  # fmt: skip
def test_a_damaged_folder_is_one_error_that_quotes_the_reason(tokenizer, tmp_path, fault, reason):
    tiny(tokenizer).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    models.load(tmp_path)
    fault(tmp_path)
    with pytest.raises(ModelError, match=rf"cannot be loaded: .*{reason}.*holds no complete model.*Name a folder"):
        models.load(tmp_path)


@pytest.mark.parametrize("fault, reason", [
    (lambda folder: cut(folder / "adapter_model.safetensors"), "file not fully covered"),
    (lambda folder: keep(folder / "adapter_model.safetensors", lose_one), "missing adapter keys.*q_proj"),
    (lambda folder: keep(folder / "adapter_model.safetensors", shorten_one), "size mismatch"),
    (lambda folder: (folder / "adapter_config.json").write_text("{"), "Expecting"),
    (lambda folder: (folder / "adapter_config.json").write_text("{}"), "base_model_name_or_path"),
    (lambda folder: (folder / "adapter_model.safetensors").unlink(), "adapter_model.safetensors is missing"),
])  # fmt: skip
def test_a_damaged_adapter_is_one_error_that_quotes_the_reason(tokenizer, tmp_path, fault, reason):
    model, folder = tiny(tokenizer), tmp_path / "adapter"
    model.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    adapters.save(
        get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"])), folder, str(tmp_path / "base"), "none"
    )
    models.load(folder)
    fault(folder)
    with pytest.raises(ModelError, match=rf"model cannot be loaded: .*{reason}.*holds no complete model"):
        models.load(folder)


def test_a_turn_that_ends_in_another_stop_token_than_eos_teaches_that_one(tmp_path):
    """As Gemma's <end_of_turn> and Phi-3's <|end|>, which stand in generation_config beside the tokenizer's eos."""
    own = models.train_tokenizer(TEXTS, 330)
    own.eos_token = models.END_OF_TEXT
    own.chat_template = own.chat_template.replace("<|end|>", "<|end|> ")
    tiny(own).save_pretrained(tmp_path)  # its generation_config has both
    own.save_pretrained(tmp_path)
    assert models.END_OF_TURN not in AutoTokenizer.from_pretrained(tmp_path).special_tokens_map.values()
    model, tokenizer = models.load(tmp_path)
    assert tokenizer.eos_token == models.END_OF_TURN and models.stops(model, tokenizer) == {0, 4}
    row = data.chat_row(tokenizer, "What is 4?", "A number.")
    assert row["labels"][-1] == row["input_ids"][-1] == 4
    data.check_labels([row], tokenizer)
    model.save_pretrained(tmp_path / "again")
    tokenizer.save_pretrained(tmp_path / "again")
    assert models.load(tmp_path / "again")[1].eos_token == models.END_OF_TURN


def test_an_answer_ends_at_every_stop_of_the_model(tokenizer, monkeypatch):
    model = tiny(tokenizer)
    stop = tokenizer("a", add_special_tokens=False)["input_ids"][0]
    model.generation_config.eos_token_id = [4, stop]
    with torch.no_grad():  # every token alike, so that the largest bias wins: it says "a" for ever
        monkeypatch.setattr(model, "lm_head", torch.nn.Linear(32, model.config.vocab_size))
        model.lm_head.weight.zero_()
        model.lm_head.bias.zero_()[stop] = 1.0
    assert answers.generate(model, tokenizer, ["river"], max_new_tokens=3) == [{"text": "", "stopped": True}]
    model.generation_config.eos_token_id = 4
    assert answers.generate(model, tokenizer, ["river"], max_new_tokens=3) == [{"text": "aaa", "stopped": False}]


def test_the_context_is_the_configs_or_the_default(tokenizer):
    assert models.context(tiny(tokenizer)) == 1024 and models.context(GPT2Config(n_positions=77)) == 77
    assert not hasattr(BloomConfig(), "max_position_embeddings")
    assert models.context(BloomConfig(), default=2048) == 2048


def test_nano_is_the_shipped_base():
    assert same(models.load("nano")[0], models.load(data.BASE)[0])


def test_without_a_chat_template_the_plain_one_teaches_the_answer_and_its_end(tmp_path):
    bare = models.train_tokenizer(TEXTS, 330)
    bare.chat_template = None
    tiny(bare).save_pretrained(tmp_path)
    bare.save_pretrained(tmp_path)
    model, tokenizer = models.load(tmp_path)
    uses = [
        lambda: data.chat_row(tokenizer, "What is 4?", "A number."),
        lambda: answers.ask(model, tokenizer, ["What is 4?"]),
        lambda: rewards.encode(tokenizer, ["What is 4?"], ["A number."], 100),
        lambda: rollouts.sample(model, tokenizer, [data.messages("What is 4?")], 4),
        lambda: judge.Local(model, tokenizer, "tiny")(["What is 4?"], ["A", "B"]),
    ]
    for use in uses:
        with pytest.raises(ModelError, match=r"must have a chat template.*Start from an SFT run"):
            use()
    assert data.give_template(tokenizer) and not data.give_template(tokenizer)
    row = data.conversation(tokenizer, [("What is 4?", "A number."), ("A river?", "Yes.")])
    text = "<|endoftext|>Question: What is 4?\nAnswer: A number.<|end|>\nQuestion: A river?\nAnswer: Yes.<|end|>"
    assert tokenizer.decode(row["input_ids"]) == text
    learned = [token for token in row["labels"] if token != data.IGNORED]
    assert tokenizer.decode(learned) == " A number.<|end|> Yes.<|end|>"


@pytest.mark.parametrize("template", ["{{ raise_exception('no roles') }}", "{% if %}"])
def test_a_template_that_fails_is_told_where_it_is_used(tmp_path, template):
    own = models.train_tokenizer(TEXTS, 330)
    tiny(own).save_pretrained(tmp_path)
    own.chat_template = template
    own.save_pretrained(tmp_path)
    _, tokenizer = models.load(tmp_path)
    with pytest.raises(ModelError, match="must take a question and its answer"):
        data.chat_row(tokenizer, "What is 4?", "A number.")


def test_a_tokenizer_that_names_no_padding_still_learns_to_stop(tmp_path):
    bare = models.train_tokenizer(TEXTS, 330)
    tiny(bare).save_pretrained(tmp_path)
    bare.pad_token = None
    bare.save_pretrained(tmp_path)
    _, tokenizer = models.load(tmp_path)
    assert tokenizer.pad_token == models.PAD  # found among its special tokens
    row = data.chat_row(tokenizer, "What is 4?", "A number.")
    assert row["labels"][-1] == tokenizer.eos_token_id  # labels are made from places: padding hides no end


@pytest.mark.parametrize(
    ("others", "padding"),
    [
        (["<unk>"], "<unk>"),  # as Mistral's
        (["<|reserved_0|>", "<|finetune_right_pad_id|>"], "<|finetune_right_pad_id|>"),  # as Llama 3's
        (["<|im_start|>"], "<|end|>"),
    ],
)
def test_padding_is_no_end_where_another_token_can_be_it(others, padding):
    inner = tokenizers.Tokenizer(tokenizers.models.BPE())
    special = ["<s>", "<|end|>", *others]
    inner.train_from_iterator(TEXTS, tokenizers.trainers.BpeTrainer(special_tokens=special, show_progress=False))
    bare = PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="<|end|>")
    assert bare.pad_token is None
    models.give_padding(bare)
    assert bare.pad_token == padding


def test_a_base_with_a_chat_models_template_learns_that_templates_end(tmp_path):
    """As Qwen2.5's bases: eos_token and generation_config know <|endoftext|> alone, a turn ends in <|im_end|>."""
    own = models.train_tokenizer(TEXTS, 330)
    own.eos_token = models.END_OF_TEXT
    model = tiny(own)
    model.generation_config.eos_token_id = 0
    model.save_pretrained(tmp_path)
    own.save_pretrained(tmp_path)
    model, tokenizer = models.load(tmp_path)
    assert tokenizer.eos_token == models.END_OF_TURN and models.stops(model, tokenizer) == {0, 4}
    row = data.chat_row(tokenizer, "What is 4?", "A number.")
    assert row["labels"][-1] == 4
    data.check_labels([row], tokenizer)


def test_a_second_end_after_the_first_is_not_learned(tmp_path):
    """As Phi-3's template, which writes <|end|>, a line break and eos_token."""
    own = models.train_tokenizer(TEXTS, 330)
    own.eos_token = models.END_OF_TEXT
    own.chat_template = own.chat_template.replace("'<|end|>'", "'<|end|>\\n' + eos_token")
    tiny(own).save_pretrained(tmp_path)
    own.save_pretrained(tmp_path)
    _, tokenizer = models.load(tmp_path)
    row = data.chat_row(tokenizer, "What is 4?", "A number.")
    assert tokenizer.decode(row["input_ids"]) == "<|user|> What is 4?<|assistant|> A number.<|end|>"


def test_a_model_that_is_quantized_already_needs_an_adapter(tmp_path, tokenizer):
    model = tiny(tokenizer)
    model.is_quantized = True
    with pytest.raises(ConfigError, match=r"quantized.*tuning = .lora"):
        config = SFTConfig(model=str(tmp_path))
        training.load(runs.open_run("sft", config), config, "tiny", loader=lambda *_, **__: (model, tokenizer))


def test_four_bit_weights_count_one_by_one(tokenizer, tmp_path):
    tiny(tokenizer).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    whole, small = (models.load(tmp_path, quantization=bits)[0] for bits in ("none", "4bit"))
    assert models.weights(small)["parameters"] == models.weights(whole)["parameters"]


@pytest.mark.parametrize("trains", [True, False])
def test_the_output_head_gets_its_input_in_one_piece(tmp_path, tokenizer, trains):
    """A frozen head and a view with gaps: torch would copy the head's weights once for each row."""
    tiny(tokenizer).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model = models.load(tmp_path)[0].requires_grad_(trains)
    whole, given, head = [], [], model.get_output_embeddings()
    head.register_forward_pre_hook(lambda module, args: given.append(args[0].is_contiguous()), prepend=True)
    head.register_forward_hook(lambda module, args, out: whole.append(args[0].is_contiguous()))
    answers.generate(model, tokenizer, ["a river is", "a lamp is"], max_new_tokens=3)
    assert whole and all(whole) and not all(given)


def test_a_tokenizer_without_an_end_is_refused(tmp_path):
    bare = models.train_tokenizer(TEXTS, 330)
    tiny(bare).save_pretrained(tmp_path)
    bare.eos_token = None
    bare.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="must have an end token"):
        models.load(tmp_path)


@pytest.mark.skipif(not (data.BASE / "tokenizer.json").is_file(), reason="data/base is not there")
def test_smoke_is_two_random_layers_of_a_seed():
    model, tokenizer = models.load("smoke", seed=3)
    assert model.config.num_hidden_layers == 2 and model.config.vocab_size == len(tokenizer)
    assert tokenizer.eos_token == models.END_OF_TURN and tokenizer.pad_token == models.PAD
    assert models.weights(model)["parameters"] < 1_000_000
    assert same(model, models.load("smoke", seed=3)[0]) and not same(model, models.load("smoke", seed=4)[0])


# Muon with AdamW


def step(model, optimizer, seed):
    """One training step on random tokens; the mean absolute move of every parameter."""
    ids = torch.randint(5, model.config.vocab_size, (2, 12), generator=torch.Generator().manual_seed(seed))
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    optimizer.zero_grad()
    model(ids, labels=ids).loss.backward()
    optimizer.step()
    return {name: (weight.detach() - before[name]).abs().mean().item() for name, weight in model.named_parameters()}


def test_every_trainable_weight_moves_and_no_frozen_one(tokenizer):
    model = tiny(tokenizer).train()
    assert all(step(model, MuonWithAdamW(model, 0.01), 0).values())

    frozen = {name for name, _ in model.named_parameters() if "layers.0" in name or "embed" in name}
    for name, weight in model.named_parameters():
        weight.requires_grad_(name not in frozen)
    moved = step(model, MuonWithAdamW(model, 0.01), 1)
    assert frozen and {name for name, by in moved.items() if by == 0} == frozen


def test_matrices_of_the_layers_go_to_muon_and_every_weight_to_one(tokenizer):
    model = tiny(tokenizer)
    optimizer = MuonWithAdamW(model, 0.01)
    names = {id(weight): name for name, weight in model.named_parameters()}
    muon, adamw = (
        {names[id(weight)] for group in part.param_groups for weight in group["params"]}
        for part in (optimizer.muon, optimizer.adamw)
    )
    assert not muon & adamw and muon | adamw == set(names.values())
    assert any("embed" in name for name in adamw) and all("layers." in name for name in muon)
    gpt2 = GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=64, n_positions=32))
    taken = {id(weight) for group in MuonWithAdamW(gpt2, 0.01).muon.param_groups for weight in group["params"]}
    assert taken == {id(layer.weight) for layer in adapters.linears(gpt2).values()}
    assert id(gpt2.transformer.wte.weight) not in taken and id(gpt2.transformer.wpe.weight) not in taken
    assert [id(group) for group in optimizer.param_groups] == [
        id(group) for part in (optimizer.muon, optimizer.adamw) for group in part.param_groups
    ]


def test_a_restored_optimizer_takes_the_same_next_step(tokenizer):
    model = tiny(tokenizer).train()
    optimizer = MuonWithAdamW(model, 0.01)
    for seed in range(3):
        step(model, optimizer, seed)
    twin = tiny(tokenizer, seed=1).train()
    twin.load_state_dict(model.state_dict())
    restored = MuonWithAdamW(twin, 0.5)
    restored.load_state_dict(copy.deepcopy(optimizer.state_dict()))  # as from a file: nothing shared
    assert same(model, twin)
    step(model, optimizer, 9)
    step(twin, restored, 9)
    assert same(model, twin)

    fresh = tiny(tokenizer, seed=1).train()
    fresh.load_state_dict(model.state_dict())
    step(model, optimizer, 10)
    step(fresh, MuonWithAdamW(fresh, 0.01), 10)
    assert not same(model, fresh)  # its memory matters


def test_the_learning_rate_of_a_restored_optimizer_can_be_scheduled(tokenizer):
    model = tiny(tokenizer).train()
    optimizer = MuonWithAdamW(model, 0.01)
    step(model, optimizer, 0)
    optimizer.load_state_dict(optimizer.state_dict())
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    assert not any(step(model, optimizer, 1).values())


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="another C library than glibc")
def test_memory_that_nothing_uses_goes_back_to_the_system():
    process = psutil.Process()
    before = process.memory_info().rss
    held = [torch.ones(25_000) for _ in range(4000)]  # 400 MB in blocks that the heap keeps for itself
    held = held[-1:]  # at its end, so that freeing the others does not shrink it
    assert process.memory_info().rss > before + 300e6
    models.give_back()
    assert process.memory_info().rss < before + 100e6 and held[0].sum() == 25_000
