"""The chat: streaming against answers.ask, hostile text, and the widget driven through its buttons."""

import html
import json
import math
import re
import threading
import time
from html.parser import HTMLParser

import ipywidgets
import pytest
import torch
from hostile import HOSTILE

from labkit import data, models
from labkit.config import SFTConfig
from labkit.errors import ConfigError, LabError, ModelError
from labkit.evaluate import answers
from labkit.evaluate.stream import LIKELIEST, Sampling, Token, stream
from labkit.runs import open_run
from labkit.ui import chat as chats
from labkit.ui.chat import Chat, Turn
from labkit.ui.text import safe_html, safe_text, tokens_html

QUESTION = "What is an LLM?"


@pytest.fixture(scope="module")
def smoke():
    return models.load("smoke", seed=0)


@pytest.fixture(scope="module")
def nano():
    return models.load(data.BASE)


def chat_text(tokenizer, prompt=QUESTION):
    return tokenizer.apply_chat_template(data.messages(prompt), tokenize=False, add_generation_prompt=True)


def text_of(tokens):
    return "".join(token.text for token in tokens)


# ---- streaming


@pytest.mark.parametrize("which", ["smoke", "nano"])
@pytest.mark.parametrize("prompt", [QUESTION, "The capital of Peru", "x"])
def test_greedy_streaming_gives_the_text_of_ask(which, prompt, request):
    """The cache handed back to forward by hand does what generate() does with it, LFM2's convolutions included."""
    model, tokenizer = request.getfixturevalue(which)
    row = answers.ask(model, tokenizer, [prompt], max_new_tokens=40)[0]
    tokens = list(stream(model, tokenizer, chat_text(tokenizer, prompt), max_new_tokens=40))
    assert text_of(tokens).strip() == row["text"]
    assert (tokens[-1].stop == "end of turn") == row["stopped"]
    row = answers.complete(model, tokenizer, [prompt], max_new_tokens=40)[0]
    tokens = list(stream(model, tokenizer, tokenizer.bos_token + prompt, max_new_tokens=40))
    assert text_of(tokens).strip() == row["text"]
    assert tokens[-1].stop in ("end of turn", "length") and tokens[-1].id is None
    assert all(token.stop == "" and token.id is not None for token in tokens[:-1])


def test_one_token_is_input_enough_and_length_is_kept(smoke):
    model, tokenizer = smoke
    tokens = list(stream(model, tokenizer, [tokenizer.bos_token_id], max_new_tokens=5))
    assert len(tokens) <= 6
    assert tokens[-1].stop == "length" if len(tokens) == 6 else tokens[-1].stop == "end of turn"


def test_the_stop_event_ends_the_stream_before_its_next_token(smoke):
    model, tokenizer = smoke
    stop, tokens = threading.Event(), []
    for token in stream(model, tokenizer, chat_text(tokenizer), max_new_tokens=500, stop=stop):
        tokens.append(token)
        if len(tokens) == 3:
            stop.set()
    assert [token.stop for token in tokens] == ["", "", "", "stopped"]
    assert [token.stop for token in stream(model, tokenizer, "x", stop=stop)] == ["stopped"]


def test_probabilities_are_those_of_one_forward_pass(smoke, monkeypatch):
    """Temperature, top-k and top-p choose the token; they do not change the probability that is shown."""
    monkeypatch.setattr(models, "bf16", lambda: False)
    model, tokenizer = smoke
    start = tokenizer(chat_text(tokenizer), add_special_tokens=False)["input_ids"]
    options = {"temperature": 1.7, "top_k": 30, "top_p": 0.9, "seed": 3}
    tokens = [token for token in stream(model, tokenizer, start, max_new_tokens=12, **options) if token.id is not None]
    ids = start + [token.id for token in tokens]
    with torch.no_grad():
        expected = model(torch.tensor([ids]), use_cache=False).logits[0].softmax(-1)
    for place, token in enumerate(tokens, len(start) - 1):
        assert token.probability == pytest.approx(expected[place, token.id].item(), rel=1e-3)
        shares = [share for _, share in token.alternatives]
        assert len(shares) == LIKELIEST and shares == sorted(shares, reverse=True)
        assert sum(shares) <= 1 + 1e-5 and shares[0] >= token.probability > 0
        assert shares == pytest.approx(expected[place].topk(LIKELIEST).values.tolist(), rel=1e-3)


def test_probabilities_multiply_to_log_probs(smoke, monkeypatch):
    """The end token included. A hook makes whole words and the end likely, so that the answer tokenizes back."""
    monkeypatch.setattr(models, "bf16", lambda: False)
    model, tokenizer = smoke
    bias = torch.zeros(len(tokenizer))
    likely = [*tokenizer.convert_tokens_to_ids(["Ġthe", "Ġriver", "Ġstone"]), tokenizer.eos_token_id]
    assert len(set(likely)) == 4 and tokenizer.unk_token_id not in likely
    bias[likely] = torch.tensor([13.0, 13.0, 13.0, 12.0])
    hook = model.lm_head.register_forward_hook(lambda module, given, logits: logits + bias)
    try:
        tokens = list(stream(model, tokenizer, chat_text(tokenizer), max_new_tokens=60, temperature=1.0, seed=1))
        assert tokens[-1].stop == "end of turn" and len(tokens) > 2
        sums, counts = answers.log_probs(model, tokenizer, [QUESTION], [text_of(tokens).strip()])
    finally:
        hook.remove()
    assert counts.item() == len(tokens) - 1
    assert sum(math.log(token.probability) for token in tokens[:-1]) == pytest.approx(sums.item(), rel=1e-3)


def test_sampling_repeats_with_its_seed_and_leaves_torch_alone(smoke):
    model, tokenizer = smoke
    torch.manual_seed(5)
    before = torch.random.get_rng_state()

    def draw(**options):
        tokens = stream(model, tokenizer, chat_text(tokenizer), max_new_tokens=8, temperature=1.0, **options)
        return [token.id for token in tokens]

    assert draw(seed=1) == draw(seed=1) != draw(seed=2)
    assert torch.equal(before, torch.random.get_rng_state())
    greedy = [token.id for token in stream(model, tokenizer, chat_text(tokenizer), max_new_tokens=8)]
    assert draw(seed=1, top_k=1) == greedy
    tokens = stream(model, tokenizer, "x", max_new_tokens=2)
    next(tokens)
    assert not torch.is_inference_mode_enabled() and not torch.is_autocast_enabled("cpu")


def test_half_a_character_is_held_back(smoke, monkeypatch):
    """A model that spells out emoji byte by byte: pieces are whole characters, and together the text."""
    model, tokenizer = smoke
    said = "a 😀é漢 b"
    spelled = [id for byte in said.encode() for id in _byte_token(tokenizer, byte)]
    monkeypatch.setattr("labkit.evaluate.stream._next", _says(tokenizer, [*spelled, tokenizer.eos_token_id]))
    tokens = list(stream(model, tokenizer, "x"))
    assert text_of(tokens) == said and all("\ufffd" not in token.text for token in tokens)
    assert [token.text for token in tokens if token.text] == list(said)
    assert len(tokens) == len(said.encode()) + 2  # every byte, the end of the turn, the end of the stream

    half = spelled[:4]  # "a", " " and two of the four bytes of the emoji
    monkeypatch.setattr("labkit.evaluate.stream._next", _says(tokenizer, half))
    tokens = list(stream(model, tokenizer, "x", max_new_tokens=4))
    assert text_of(tokens[:-1]) == "a " and text_of(tokens) == tokenizer.decode(half)
    text_of(tokens).encode("utf-8")


def _byte_token(tokenizer, byte):
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    return tokenizer.convert_tokens_to_ids([bytes_to_unicode()[byte]])


def _says(tokenizer, ids):
    """A stand-in for one step of a model that says these tokens."""
    left = iter(ids)
    return lambda *given: (next(left), torch.full((len(tokenizer),), 1 / len(tokenizer)), None)


@pytest.mark.parametrize(
    "bad",
    [
        {"temperature": -1.0}, {"temperature": math.nan}, {"temperature": math.inf}, {"temperature": 1e-320},
        {"temperature": "hot"}, {"top_p": 0.0}, {"top_p": 1.5}, {"top_k": -1}, {"top_k": 2.5}, {"max_new_tokens": 0},
        {"seed": -1}, {"seed": 2**40}, {"max_new_tokens": True},
    ],
)  # fmt: skip
def test_bad_sampling_values_are_errors_at_once(smoke, bad):
    with pytest.raises(ConfigError, match=next(iter(bad))):
        stream(*smoke, "x", **bad)


def test_inputs_that_cannot_be_used_are_errors(smoke, monkeypatch):
    model, tokenizer = smoke
    for text in ("", [], "river " * 3000):
        with pytest.raises(ConfigError, match="1024 tokens"):
            stream(model, tokenizer, text)
    hook = model.lm_head.register_forward_hook(lambda module, given, logits: logits * math.nan)
    try:
        with pytest.raises(ModelError, match="diverged"):
            list(stream(model, tokenizer, "x", temperature=1.0))
    finally:
        hook.remove()


# ---- hostile text


class Tags(HTMLParser):
    """What a browser would find: tags, attributes, comments."""

    def __init__(self, source):
        super().__init__(convert_charrefs=True)
        self.tags, self.attributes, self.comments, self.text = [], [], [], ""
        self.feed(source)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_comment(self, comment):
        self.comments.append(comment)

    def handle_decl(self, decl):
        self.comments.append(decl)

    unknown_decl = handle_pi = handle_decl

    def handle_data(self, text):
        self.text += text


@pytest.mark.parametrize("payload", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_text_comes_out_as_text(payload):
    for out in (safe_html(payload), safe_html(payload, most=10)):
        out.encode("utf-8")
        assert not set(out) & set("<>\"'")
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", out)
        assert len(out) < 40_000
        found = Tags(f"<p title='{out}'>{out}</p>")
        assert found.tags == ["p"] and not found.comments and [name for name, _ in found.attributes] == ["title"]
    assert html.unescape(safe_html(payload)) == safe_text(payload)


@pytest.mark.parametrize("payload", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_answers_stay_text_wherever_the_chat_shows_them(payload):
    token = Token(payload, 7, 0.25, ((payload, 0.5), ("x", 0.25)))
    turn = Turn(payload, [token, Token(payload, stop="length")], error=payload, note=payload)
    for shaded in (False, True):
        out = turn.as_html(shaded)
        found = Tags(out)
        assert set(found.tags) <= {"div", "span"} and not found.comments
        assert {name for name, _ in found.attributes} <= {"style", "dir", "role", "title"}
        assert all("var(" in value or "rgba(" in value for name, value in found.attributes if name == "style")
        out.encode("utf-8")
        json.dumps(out)
    plain = turn.as_text()
    plain.encode("utf-8")
    assert "\x1b" not in plain and "\x00" not in plain


def test_what_is_cut_says_so_and_what_is_hidden_is_shown():
    assert safe_html("x" * 4000) == "x" * 4000
    assert safe_html("x" * 4001) == "x" * 4000 + " … (4,001 characters, cut)"
    assert safe_html("\x1b[1m\x00\x7f a\tb\nc\r") == "␛[1m␀␡ a\tb\nc␍"
    assert safe_html("\u202e\x9b") == "[U+202E][U+009B]" and safe_html("\ud800") == "\ufffd"
    assert safe_html("<a b='c\">&") == "&lt;a b=&#x27;c&quot;&gt;&amp;"
    many = tokens_html([Token("word ", 1, 0.5)] * 2000)
    assert many.count("<span") == 800 and many.endswith("… (10,000 characters, cut)")


# ---- the widget


def finished_run(stage="sft", **options):
    """A finished run of the smoke model in the session's store."""
    model, tokenizer = models.load("smoke", seed=0)
    run = open_run(stage, SFTConfig(model="smoke", **options))
    model.save_pretrained(run.checkpoint)
    tokenizer.save_pretrained(run.checkpoint)
    return run.finish()


def small(chat, tokens=6):
    chat.sampling["max_new_tokens"].value = tokens
    return chat


def last(chat):
    assert chat.wait(60)
    return [column.turns[-1] for column in chat.columns]


def test_send_fills_two_columns(smoke, store):
    run = finished_run()
    chat = small(Chat(["smoke", run.id]))
    chat.send_button.click()
    first, second = last(chat)
    row = answers.ask(*smoke, [QUESTION], max_new_tokens=6)[0]
    for turn in (first, second):  # the run holds the same weights
        assert turn.text.strip() == row["text"] and not turn.error
        assert turn.stop == ("end of turn" if row["stopped"] else "length") and turn.form == "chat"
        assert "tokens/s" in turn.note and ("stopped by itself" in turn.note or "cut at 6 tokens" in turn.note)
    assert all(html.escape(QUESTION) in column.view.value for column in chat.columns)
    assert set(chat._loaded) == {"smoke", run.id}
    chat.remove_column()
    chat.ask("x")
    last(chat)
    assert set(chat._loaded) == {"smoke"}, "a model that is not shown is kept"


def test_the_question_button_and_enter_ask(store):
    chat = small(Chat(["smoke"], question="Why?"))
    assert chat.question_button.description == "Why?"
    chat.prompt.value = "something else"
    chat.question_button.click()
    assert last(chat)[0].prompt == "Why?"
    chat.prompt._handle_custom_msg({"event": "submit"}, [])  # what the browser sends for Enter
    assert last(chat)[0].prompt == "something else"


def test_bad_values_are_shown_and_nothing_is_asked(store):
    chat = Chat(["smoke"])
    for name, value in {"temperature": -0.5, "top_p": 0.0, "max_new_tokens": 0, "seed": -1, "top_k": -3}.items():
        box = chat.sampling[name]
        before, box.value = box.value, value
        chat.send_button.click()
        assert name in chat.error.value and box.value == value, "clamped, or not told"
        assert not chat.busy and not chat.columns[0].turns
        box.value = before
    chat.ask("  ")
    assert "empty" in chat.error.value
    small(chat).send_button.click()
    assert not last(chat)[0].error and chat.error.value == ""


def test_errors_are_told_in_their_column(store, tmp_path):
    (tmp_path / "no_model").mkdir()
    unfinished = open_run("sft", SFTConfig(model="smoke", seed=9))
    chat = small(Chat(["no-such-run", str(tmp_path / "no_model"), str(tmp_path / "<b>gone"), unfinished.id, "smoke"]))
    chat.send_button.click()
    missing, folder, gone, running, fine = last(chat)
    assert "run must be the id of a run" in missing.error and "no complete model" in folder.error
    assert "no such folder" in gone.error and "must be finished" in running.error
    assert not fine.error and fine.stop in ("length", "end of turn")
    assert all(turn.stop == "error" and not turn.text for turn in (missing, folder, gone, running))
    assert "<b>gone" not in chat._repr_mimebundle_()["text/html"] and "role=&#x27;" not in chat.columns[0].view.value
    chat.ask("lone \ud800 surrogate")
    assert last(chat)[-1].stop  # an error or an answer, but told
    assert not chat.busy


def test_stop_ends_every_column_and_clear_forgets(store):
    chat = small(Chat(["smoke", "smoke"]), 900)
    seen = threading.Event()
    chat.columns[0].view.observe(lambda change: "answering" in change["new"] and seen.set(), "value")
    chat.send_button.click()
    assert seen.wait(30)
    chat.ask("too early")
    assert "Still answering" in chat.error.value
    chat.stop_button.click()
    first, second = last(chat)
    assert first.stop == second.stop == "stopped" and "stopped by you after" in first.note
    assert second.note == "stopped by you before it began" and not second.text
    chat.clear_button.click()
    assert not any(column.turns for column in chat.columns) and "nothing asked" in chat.columns[0].view.value


def test_the_browser_is_sent_few_updates(store):
    chat, sent = small(Chat(["smoke"]), 300), []
    chat.columns[0].view.observe(lambda change: sent.append(time.monotonic()), "value")
    chat.send_button.click()
    assert last(chat)[0].stop == "length"
    assert 4 <= len(sent) <= 6 + (sent[-1] - sent[0]) / chats.PULSE


def test_choosing_another_model_empties_a_column_and_columns_come_and_go(store):
    run = finished_run(seed=4)
    chat = small(Chat(["smoke"]))
    chat.send_button.click()
    last(chat)
    chat.columns[0].choice.value = "shipped base"
    assert chat.columns[0].turns == []
    chat.add_button.click()
    assert [column.choice.value for column in chat.columns] == ["shipped base", "shipped base"]
    assert run.id in [value for _, value in chat.columns[1].choice.options]
    chat.remove_button.click()
    chat.remove_button.click()
    assert len(chat.columns) == len(chat.panes.children) == 1 and "One model stays" in chat.error.value


def test_base_models_go_on_with_a_document_and_the_format_can_be_chosen(store, nano):
    chat = small(Chat(), 12)
    chat.ask("The capital of Peru")
    turn = last(chat)[0]
    assert turn.form == "document"
    assert turn.text.strip() == answers.complete(*nano, ["The capital of Peru"], max_new_tokens=12)[0]["text"]
    chat.form.value = "chat"
    chat.ask("The capital of Peru")
    turn = last(chat)[0]
    assert turn.form == "chat"
    assert turn.text.strip() == answers.ask(*nano, ["The capital of Peru"], max_new_tokens=12)[0]["text"]
    sft, base = finished_run(), finished_run("pretrain")
    assert chats.locate(sft.id) == (sft.checkpoint, False) == chats.locate(str(sft.path))
    assert chats.locate(base.id) == (base.checkpoint, True) == chats.locate(str(base.checkpoint))
    assert chats.locate("shipped base") == (data.BASE, True) == chats.locate(str(data.BASE))
    with pytest.raises(LabError, match="chat template"):
        chats._input(type("Bare", (), {"chat_template": None})(), [Turn("x")], "chat")


def test_a_conversation_is_kept_only_where_wanted(smoke, store, monkeypatch):
    given, real = [], chats.stream
    monkeypatch.setattr(chats, "stream", lambda m, t, text, **more: given.append(text) or real(m, t, text, **more))
    chat = small(Chat(["smoke"]))
    for keep in (False, True, False):
        chat.keep.value = keep
        chat.ask("One?" if not given else "Two?")
        last(chat)
    fresh, kept, again = (smoke[1].decode(ids) for ids in given)
    assert fresh == chat_text(smoke[1], "One?") and again == chat_text(smoke[1], "Two?")
    assert kept.startswith(fresh) and kept.endswith("<|end|><|user|> Two?<|assistant|>")
    turns = [Turn("A", [Token(" b")]), Turn("bad", error="broken"), Turn("C")]
    assert smoke[1].decode(chats._input(smoke[1], turns, "document")) == "<|endoftext|>A b\nC"


def test_token_probabilities_are_shown_on_demand(store):
    chat = small(Chat(["smoke"]))
    chat.send_button.click()
    count = sum(token.id is not None for token in last(chat)[0].tokens)
    assert "<span" not in chat.columns[0].view.value
    chat.shade.value = True
    found = Tags(chat.columns[0].view.value)
    assert found.tags.count("span") == count
    titles = [value for name, value in found.attributes if name == "title"]
    assert len(titles) == count and all(title.count("\n") == LIKELIEST and "%" in title for title in titles)
    chat.shade.value = False
    assert "<span" not in chat.columns[0].view.value


def test_a_saved_notebook_keeps_the_conversation(store):
    chat = small(Chat(["smoke"]))
    assert "nothing asked yet" in chat._repr_mimebundle_()["text/plain"]
    chat.ask("<b>Is it \x1b[31mred?</b>")
    turn = last(chat)[0]
    bundle = chat._repr_mimebundle_()
    assert bundle["application/vnd.jupyter.widget-view+json"]["model_id"] == chat.model_id
    assert "> <b>Is it ␛[31mred?</b>" in bundle["text/plain"] and turn.note in bundle["text/plain"]
    assert "&lt;b&gt;Is it ␛[31mred?" in bundle["text/html"] and "<b>Is" not in bundle["text/html"]
    json.dumps(bundle)


def test_every_control_has_a_label_and_a_tooltip_and_clamps_nothing(store):
    controls, left = [], [Chat(["smoke"])]
    while left:
        widget = left.pop()
        left += getattr(widget, "children", ())
        if isinstance(widget, ipywidgets.ValueWidget | ipywidgets.Button) and not isinstance(widget, ipywidgets.HTML):
            controls.append(widget)
    assert len(controls) >= 16
    assert all(control.description and control.tooltip for control in controls)
    assert not any("Bounded" in type(control).__name__ or "Slider" in type(control).__name__ for control in controls)
    assert len({control.description for control in controls}) == len(controls)
    assert {field for field in Sampling.__dataclass_fields__} == set(Chat(["smoke"]).sampling)
