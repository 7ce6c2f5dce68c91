"""What a user writes is text, never control: the name of a special token in it ends, begins and pads nothing."""

import json
import warnings

import pytest
import torch
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

from labkit import data, models, preferences, rewards, rollouts
from labkit.errors import DataError, ModelError
from labkit.evaluate import answers, choices, judge, perplexity
from labkit.stages import ppo
from labkit.ui import chat

TOKENIZER = AutoTokenizer.from_pretrained(data.BASE, padding_side="left")
SPECIAL = [token.content for token in TOKENIZER.added_tokens_decoder.values()]
TEXTS = [f"With {token} at the end. Then more." for token in SPECIAL] + ["".join(SPECIAL), f"{SPECIAL[-1]}"]


def control(ids: list[int]) -> list[int]:
    return [token for token in ids if token in TOKENIZER.added_tokens_decoder]


@pytest.fixture(scope="module")
def model():
    return models.new_model(TOKENIZER, hidden_size=32, layers=2, heads=2, seed=0)


@pytest.fixture
def fed(model):
    """Every batch of tokens that the model is given."""
    seen = []
    hook = model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["input_ids"] if "input_ids" in kwargs else args[0]),
        with_kwargs=True,
    )
    yield seen
    hook.remove()


@pytest.mark.parametrize("text", TEXTS)
def test_an_answer_is_learned_whole_and_ends_once(text):
    plain = data.chat_row(TOKENIZER, "Ask", "Answer")
    for prompt, answer in ((text, "Answer"), ("Ask", text), (text, text)):
        row = data.chat_row(TOKENIZER, prompt, answer)
        learned = [label for label in row["labels"] if label != data.IGNORED]
        assert control(row["input_ids"]) == control(plain["input_ids"])  # the template's own, and no other
        assert TOKENIZER.decode(learned[:-1]).strip() == answer and learned[-1] == TOKENIZER.eos_token_id
        assert prompt in TOKENIZER.decode(row["input_ids"])


@pytest.mark.parametrize("token", SPECIAL)
def test_pairs_that_differ_after_it_differ(token):
    said = data.messages("Ask")
    pair = {"messages": said, "prompt": "Ask", "chosen": f"Same {token} good.", "rejected": f"Same {token} bad."}
    (row,) = preferences.tokens([pair], TOKENIZER)
    assert row["chosen_ids"] != row["rejected_ids"]
    assert TOKENIZER.decode(row["chosen_ids"][:-1]).strip() == pair["chosen"]
    one, other = rewards.encode(TOKENIZER, ["Ask", "Ask"], [pair["chosen"], pair["rejected"]], 1024)
    assert one != other and control(one) == control(rewards.encode(TOKENIZER, ["Ask"], ["x"], 1024)[0])


def test_documents_hold_no_control_but_what_parts_them():
    from datasets import Dataset

    rows = data.blocks(TOKENIZER, Dataset.from_dict({"text": TEXTS}), 8)
    whole = rows.flatten().tolist()
    assert set(control(whole)) <= {TOKENIZER.bos_token_id} and control(whole).count(TOKENIZER.bos_token_id) <= len(
        TEXTS
    )


@pytest.mark.parametrize("text", TEXTS)
def test_a_question_is_text_wherever_it_is_asked(model, fed, text):
    said, plain = data.messages(text), control(data.asked_ids(TOKENIZER, data.messages("Ask")))
    ids = data.asked_ids(TOKENIZER, said)
    assert control(ids) == plain and TOKENIZER.decode(ids) == data.asked(TOKENIZER, said)
    begun = [TOKENIZER.bos_token_id]
    ways = {
        "ask": (lambda: answers.ask(model, TOKENIZER, [text], max_new_tokens=1), plain),
        "complete": (lambda: answers.complete(model, TOKENIZER, [text], max_new_tokens=1), begun),
        "sample": (lambda: rollouts.sample(model, TOKENIZER, [said], 1), plain),
        "perplexity": (lambda: perplexity.text_losses(model, TOKENIZER, [text]), begun),
        "judge": (lambda: judge.Local(model, TOKENIZER, "tiny")([text], ("A", "B")), plain),
        "choose": (
            lambda: choices.choose(model, TOKENIZER, [{"question": text, "choices": ["a"], "answer": 0}]),
            begun,
        ),
    }
    for way, (act, wanted) in ways.items():
        fed.clear()
        act()
        found = control(fed[0][0].tolist())
        assert [token for token in found if token != TOKENIZER.pad_token_id] == wanted, way
    for form, wanted in (("chat", plain), ("document", begun)):
        assert control(chat._input(TOKENIZER, [chat.Turn(text)], form)) == wanted


def test_the_labs_own_rows_have_the_tokens_that_they_had():
    """Nothing changes for text without the name of a token."""
    rows, _ = data.instructions()
    for row in rows.select(range(0, len(rows), 500)):
        said = data.messages(row["prompt"], row["answer"])
        plain = TOKENIZER.apply_chat_template(said, return_dict=True)["input_ids"]
        assert data.templated(TOKENIZER, said) == plain
        assert (
            data.encode(TOKENIZER, [row["answer"]])[0]
            == TOKENIZER(row["answer"], add_special_tokens=False)["input_ids"]
        )


def test_tools_and_calls_of_them_are_text_too():
    tokenizer = AutoTokenizer.from_pretrained(data.BASE)
    tokenizer.chat_template = (
        "{{ (tools or []) | tojson }}{% for m in messages %}{{ '<|' + m.role + '|>' + m.content }}"
        "{{ (m.tool_calls or []) | tojson }}"
        "{% if m.role == 'assistant' %}<|end|>{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>"
        "{% endif %}"
    )

    def row(text, name="q"):
        tools = [{"type": "function", "function": {"name": "f", "description": text}}]
        calls = [{"type": "function", "function": {"name": "f", "arguments": {name: [text]}}}]
        said = [{"role": "user", "content": "Ask", "tool_calls": []}]
        return [*said, {"role": "assistant", "content": "x", "tool_calls": calls}], tools

    plain, own = (data.conversation(tokenizer, said, tools=tools) for said, tools in (row("a"), row("a <|end|> b")))
    assert control(own["input_ids"]) == control(plain["input_ids"])
    assert tokenizer.decode(own["input_ids"]).count("a <|end|> b") == 2 and own["labels"][-1] == tokenizer.eos_token_id
    data.check_template(tokenizer, [row("a <|end|> b")], [1], "rows.jsonl")
    with pytest.raises(DataError, match=r"spell a token of the model in the name of a field.*7"):
        data.check_template(tokenizer, [row("a"), row("a", name="<|end|>")], [1, 7], "rows.jsonl")


def test_a_conversation_without_a_template_is_text_too():
    tokenizer = AutoTokenizer.from_pretrained(data.BASE)
    tokenizer.chat_template = None
    data.give_template(tokenizer)
    row = data.chat_row(tokenizer, "Ask <|end|>", f"One {tokenizer.eos_token} two.")
    learned = [label for label in row["labels"] if label != data.IGNORED]
    assert row["labels"].count(tokenizer.eos_token_id) == 1 and "two." in tokenizer.decode(learned)


@pytest.fixture
def gpt2(tmp_path):
    """A model with a table of 64 places, in a folder."""
    size = {"n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 2, "vocab_size": len(TOKENIZER)}
    GPT2LMHeadModel(GPT2Config(**size, eos_token_id=TOKENIZER.eos_token_id)).save_pretrained(tmp_path / "gpt2")
    TOKENIZER.save_pretrained(tmp_path / "gpt2")
    return tmp_path / "gpt2"


def test_a_prompt_beyond_learned_positions_is_cut_and_counted(gpt2):
    model, tokenizer = models.load(gpt2)
    assert models.positions(model) == 64
    with pytest.warns(UserWarning, match="1 of 2 inputs are cut at 54 tokens"):
        rows = answers.ask(model, tokenizer, ["word " * 200, "short"], max_new_tokens=10)
    assert len(rows) == 2
    with warnings.catch_warnings(action="error"):  # a short question is whole, however long its answer may be
        assert len(answers.ask(model, tokenizer, ["short"], max_new_tokens=500)) == 1
    found = choices.choose(model, tokenizer, [{"question": "word " * 200, "choices": ["a", "b"], "answer": 0}])
    assert len(found[0]["likelihoods"]) == 2
    sums, counts, _ = perplexity.text_losses(model, tokenizer, ["word " * 200])
    assert counts[0] == 63 and sums[0] > 0
    with pytest.raises(DataError, match="must fit the judge's 64 tokens"):
        judge.Local(model, tokenizer, "tiny")(["word " * 200], ("A", "B"))


def test_a_tokenizer_larger_than_the_embeddings_is_refused(tmp_path, gpt2):
    tokenizer = AutoTokenizer.from_pretrained(gpt2)
    tokenizer.add_tokens(["<extra>"])
    tokenizer.save_pretrained(gpt2)
    with pytest.raises(ModelError, match=r"must be among the model's \d+ embeddings.*<extra>") as caught:
        models.load(gpt2)
    assert "resize_token_embeddings" in str(caught.value)


@pytest.mark.parametrize("algorithm", ["ppo", "grpo"])
def test_reinforcement_learning_asks_it_as_text(tmp_path, store, monkeypatch, algorithm):
    from labkit.config import PPOConfig

    rows = [{"prompt": f"Say {n} <|end|> now", "chosen": f"{n}.", "rejected": "no"} for n in range(12)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    models.new_model(TOKENIZER, hidden_size=32, layers=2, heads=2, seed=0).save_pretrained(tmp_path / "model")
    TOKENIZER.save_pretrained(tmp_path / "model")
    config = PPOConfig(
        model=str(tmp_path / "model"), data=str(tmp_path / "pairs.jsonl"), steps=1, batch_size=4, minibatch_size=4,
        max_new_tokens=2, algorithm=algorithm, warmup_steps=0,
    )  # fmt: skip
    seen = []
    hook = torch.nn.modules.module.register_module_forward_pre_hook(
        lambda module, args: seen.append(args[0]) if isinstance(module, torch.nn.Embedding) else None
    )
    try:
        ppo.train(
            config, tmp_path / "model", "tiny", say=lambda line: None, reward_function=lambda p, t: torch.zeros(len(t))
        )
    finally:
        hook.remove()
    own = set(control(data.asked_ids(TOKENIZER, data.messages("Ask"))))
    first = next(ids for ids in seen if ids.dim() == 2 and ids.shape[1] > 4)
    assert all(control(row).count(TOKENIZER.eos_token_id) <= 1 for row in first.tolist())
    assert set(control(first.flatten().tolist())) <= own | {TOKENIZER.pad_token_id}
