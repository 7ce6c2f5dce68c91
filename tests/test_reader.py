"""One reader for a user's files: each form read rightly, or refused with the file's own line and the true reason."""

import csv
import json

import pytest
from datasets import Dataset
from transformers import AutoTokenizer

from labkit import data, models, pipeline, preferences, reader, splits
from labkit.config import SFTConfig
from labkit.errors import DataError

ROWS = [{"prompt": f"What is {n}, “é”?", "answer": f"It is\n{n}, or “{n}”."} for n in range(12)]
PAIRS = [{"prompt": f"What is {n}?", "chosen": f"It is {n}.", "rejected": f"It is no {n}."} for n in range(12)]
BIG = 2**70


def jsonl(rows: list) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def write_csv(path, rows, delimiter=","):
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, rows[0], delimiter=delimiter)
        table.writeheader()
        table.writerows(rows)


WRITERS = {
    "rows.jsonl": lambda path, rows: path.write_text(jsonl(rows), encoding="utf-8"),
    "crlf.jsonl": lambda path, rows: path.write_bytes(jsonl(rows).replace("\n", "\r\n").encode()),
    "bom.jsonl": lambda path, rows: path.write_text(jsonl(rows), encoding="utf-8-sig"),
    "utf16.jsonl": lambda path, rows: path.write_text(jsonl(rows), encoding="utf-16"),
    "array.json": lambda path, rows: path.write_text(json.dumps(rows), encoding="utf-8"),
    "array.jsonl": lambda path, rows: path.write_text(json.dumps(rows), encoding="utf-8"),
    "indented.json": lambda path, rows: path.write_text(json.dumps(rows, indent=2), encoding="utf-8"),
    "lines.json": lambda path, rows: path.write_text(jsonl(rows), encoding="utf-8"),
    "table.csv": write_csv,
    "table.tsv": lambda path, rows: write_csv(path, rows, "\t"),
    "table.parquet": lambda path, rows: Dataset.from_list(rows).to_parquet(path),
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_gives_the_same_rows(tmp_path, name):
    WRITERS[name](tmp_path / name, ROWS)
    train, held_out = data.instructions(str(tmp_path / name))
    found = sorted([*train, *held_out], key=lambda row: int(row["prompt"].split()[2].strip(",")))
    assert [{key: row[key] for key in ("prompt", "answer")} for row in found] == ROWS
    WRITERS[name](tmp_path / name, PAIRS)
    train, held_out = preferences.pairs(str(tmp_path / name))
    found = sorted([*train, *held_out], key=lambda row: int(row["prompt"].split()[2].strip("?")))
    assert [{key: row[key] for key in PAIRS[0]} for row in found] == PAIRS


TOLD = {  # content of a file -> (its name, what the refusal says)
    "not json": ("a.jsonl", '{"prompt": "a", "answer": "b"}\n\n{nonsense', "line 3 of a.jsonl is no JSON object"),
    "an array among objects": ("a.jsonl", '{"prompt": "a"}\n[{"text": "doc", "id": 1}]', "line 2 of a.jsonl is no JSON object but list"),
    "a text among objects": ("a.jsonl", '{"prompt": "a"}\n"b"', "line 2 of a.jsonl is no JSON object but str"),
    "a text in an array": ("a.json", '[{"prompt": "a"},\n\n "b"]', "line 3 of a.json is no JSON object but str"),
    "latin-1": ("a.jsonl", jsonl(ROWS[:2]).encode("utf-8") + '{"prompt": "Où?"}\n'.encode("latin-1"), "is not UTF-8: invalid start byte in line 3"),
    "utf-16 without a mark": ("a.jsonl", '{"prompt": "a"}'.encode("utf-16-le"), "NUL character in line 1"),
    "gzip": ("a.jsonl", b"\x1f\x8b\x08\x00rest", "is no text but gzip"),
    "a spreadsheet": ("a.csv", b"PK\x03\x04rest", "is no text but zip"),
    "parquet by another name": ("a.jsonl", b"PAR1rest", "is no text but Parquet"),
    "broken parquet": ("a.parquet", b"PAR1rest", "is no readable Parquet file"),
    "a cell too many": ("a.csv", "prompt,answer\na,b\nc,d,e\n", "line 3 of a.csv has 3 cells for 2 columns"),
    "an open quote": ("a.csv", 'prompt,answer\na,b\n"c,d\n', "line 3 of a.csv is no CSV"),
    "a column twice": ("a.csv", "prompt,prompt\na,b\n", "must name its columns in line 1"),
    "nothing": ("a.jsonl", "\n\n", "a.jsonl holds no rows"),
    "deep": ("a.jsonl", "[" * 100_000, "a.jsonl"),
    "no answer": ("a.jsonl", '{"prompt": "a", "answer": "b"}\n{"prompt": "a", "answer": " "}', "1 have an empty answer (line 2)"),
    "a number": ("a.jsonl", '{"prompt": "a", "answer": "b"}\n{"prompt": 3, "answer": "b"}', "1 have prompt that is no text but int (line 2)"),
    "half a character": ("a.jsonl", '{"prompt": "a", "answer": "b"}\n{"prompt": "\\ud83d", "answer": "b"}', "half of a surrogate pair, which is no character (line 2)"),
    "no columns of ours": ("a.jsonl", '{"question": "a", "reply": "b"}', "a.jsonl lacks the columns ['answer', 'prompt']"),
    "unknown role": ("a.jsonl", json.dumps({"messages": [{"role": "narrator", "content": "x"}]}), "the unknown role 'narrator' (line 1)"),
    "no assistant": ("a.jsonl", json.dumps({"messages": [{"role": "user", "content": "x"}]}), "no message of the assistant"),
    "assistant first": ("a.jsonl", json.dumps({"messages": [{"role": "assistant", "content": "x"}]}), "begin with the assistant's message"),
    "late system": ("a.jsonl", json.dumps({"messages": [{"role": "user", "content": "x"}, {"role": "system", "content": "y"}]}), "a system message after the first"),
    "messages that are none": ("a.jsonl", json.dumps({"messages": "hello"}), "messages that are no list of objects"),
    "two systems": ("a.jsonl", json.dumps({"system": "a", "messages": [{"role": "system", "content": "b"}, {"role": "user", "content": "x"}]}), "another system message"),
}  # fmt: skip


@pytest.mark.parametrize("case", TOLD)
def test_what_cannot_be_read_is_refused_with_its_line(tmp_path, case):
    name, content, says = TOLD[case]
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError) as caught:
        data.instructions(str(tmp_path / name))
    assert says in str(caught.value) and caught.value.remedy


def test_an_array_of_objects_is_rows_and_not_pairs_of_names(tmp_path):
    (tmp_path / "a.jsonl").write_text('[{"text": "doc", "id": 1}, {"text": "other", "id": 2}]')
    train, held_out = data.corpus(str(tmp_path / "a.jsonl"))
    assert sorted([*train["text"], *held_out["text"]]) == ["doc", "other"]


def test_a_mark_of_the_byte_order_is_no_part_of_a_document(tmp_path):
    (tmp_path / "a.txt").write_text("one\n\ntwo\n", encoding="utf-8-sig")
    train, held_out = data.corpus(str(tmp_path / "a.txt"))
    assert sorted([*train["text"], *held_out["text"]]) == ["one", "two"]


def test_columns_that_are_not_needed_are_not_looked_at(tmp_path):
    odd = [BIG, "text", None, [1, "a"], {"b": 2}, True, -BIG, 1.5, "", [], 0, "x"]
    (tmp_path / "sft.jsonl").write_text(jsonl([row | {"note": value} for row, value in zip(ROWS, odd, strict=True)]))
    (tmp_path / "pairs.jsonl").write_text(jsonl([row | {"id": value} for row, value in zip(PAIRS, odd, strict=True)]))
    (tmp_path / "texts.jsonl").write_text(jsonl([{"text": f"t{n}", "n": value} for n, value in enumerate(odd)]))
    assert sum(map(len, data.instructions(str(tmp_path / "sft.jsonl")))) == 12
    assert sum(map(len, preferences.pairs(str(tmp_path / "pairs.jsonl")))) == 12
    assert sum(map(len, data.corpus(str(tmp_path / "texts.jsonl")))) == 12
    (tmp_path / "bad.jsonl").write_text(jsonl([*PAIRS, PAIRS[0] | {"chosen": BIG}]))
    with pytest.raises(DataError, match=r"1 are no pair of texts or messages \(line 13\)"):
        preferences.pairs(str(tmp_path / "bad.jsonl"))


USER, GOOD = {"role": "user", "content": "What is a river?"}, {"role": "assistant", "content": "A stream of water."}
SYSTEM = {"role": "system", "content": "Be brief."}
CALL = {
    "role": "assistant",
    "content": "",
    "tool_calls": [{"type": "function", "function": {"name": "look", "arguments": {"x": 1}}}],
}
RESULT = {"role": "tool", "name": "look", "content": "A stream."}
TOOLS = [{"type": "function", "function": {"name": "look", "description": "Looks.", "parameters": {"type": "object"}}}]
SHARE = [{"from": "human", "value": USER["content"]}, {"from": "gpt", "value": GOOD["content"]}]
FORMS = {
    "prompt and answer": ({"prompt": USER["content"], "answer": GOOD["content"]}, [USER, GOOD], None),
    "prompt and completion": ({"prompt": USER["content"], "completion": GOOD["content"]}, [USER, GOOD], None),
    "conversational": ({"prompt": [USER], "completion": [GOOD]}, [USER, GOOD], None),
    "messages": ({"messages": [USER, GOOD]}, [USER, GOOD], None),
    "several turns": ({"messages": [SYSTEM, USER, GOOD, USER, GOOD]}, [SYSTEM, USER, GOOD, USER, GOOD], None),
    "a system column": ({"system": "Be brief.", "messages": [USER, GOOD]}, [SYSTEM, USER, GOOD], None),
    "a system column beside the same": ({"system": "Be brief.", "messages": [SYSTEM, USER, GOOD]}, [SYSTEM, USER, GOOD], None),
    "ShareGPT": ({"conversations": SHARE}, [USER, GOOD], None),
    "ShareGPT with a system": ({"conversations": [{"from": "system", "value": "Be brief."}, *SHARE]}, [SYSTEM, USER, GOOD], None),
    "tools": ({"messages": [USER, CALL, RESULT, GOOD], "tools": TOOLS}, [USER, CALL, RESULT, GOOD], TOOLS),
    "tools as JSON": ({"messages": [USER, CALL, RESULT, GOOD], "tools": json.dumps(TOOLS)}, [USER, CALL, RESULT, GOOD], TOOLS),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_conversation_is_understood(form):
    row, said, tools = FORMS[form]
    assert reader.chat(row) == (said, tools)


@pytest.mark.parametrize("form", FORMS)
def test_every_answer_is_learned_and_nothing_else(form):
    """Token by token as by the marks of generation in the template, which trl's assistant_only_loss reads."""
    tokenizer = AutoTokenizer.from_pretrained(data.BASE)
    _, said, tools = FORMS[form]
    row = data.conversation(tokenizer, said, tools=tools)
    theirs = tokenizer.apply_chat_template(said, tools=tools, return_dict=True, return_assistant_tokens_mask=True)
    learned = [int(label != data.IGNORED) for label in row["labels"]]
    assert row["input_ids"] == theirs["input_ids"] and learned == theirs["assistant_masks"]
    text = tokenizer.decode(row["input_ids"])
    assert all(one["content"] in text for one in said) and text.count("<|user|>") == said.count(USER)
    if tools:
        assert '"look"' in text and '"arguments"' in text


def test_a_template_without_a_form_for_a_role_is_refused(tmp_path, store):
    """As templates that write every role but the assistant's as the user's, or pass a message by."""
    tokenizer = AutoTokenizer.from_pretrained(data.BASE)
    rows = [{"messages": [SYSTEM, USER, GOOD]}, {"messages": [USER, CALL, RESULT, GOOD], "tools": TOOLS}]
    (tmp_path / "a.jsonl").write_text(jsonl([{"prompt": "a", "answer": "b"}] * 2 + rows))
    whole = data.chats(tmp_path / "a.jsonl")
    assert len(data.chat_rows(tokenizer, whole, loss_on="assistant", max_length=512)) == 4
    tokenizer.chat_template = (
        "{% for m in messages %}{{ ('<|assistant|> ' if m.role == 'assistant' else '<|user|> ') + m.content + '<|end|>' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
    )
    with pytest.raises(DataError) as caught:
        data.chat_rows(tokenizer, whole, loss_on="assistant", max_length=512)
    for says in (
        "1 rows have a system message (line 3)",
        "a tool message (line 4)",
        "have tools (line 4)",
        "calls of tools (line 4)",
    ):
        assert says in str(caught.value)


def test_chats_train_and_are_summed_up(tmp_path, store):
    rows = [
        {"messages": [SYSTEM, USER | {"content": f"What is {n}?"}, GOOD, USER, GOOD | {"content": f"{n}."}]}
        for n in range(11)
    ]
    (tmp_path / "a.jsonl").write_text(jsonl([*rows, rows[3]]))
    said = []
    config = SFTConfig(model="smoke", data=str(tmp_path / "a.jsonl"), steps=2, batch_size=2, eval_every=2)
    run = pipeline.train_stage("sft", config, say=said.append)
    assert run.status == "finished"
    assert any("12 rows read: " in line and "1 are repetitions" in line for line in said)


PROMPTS = {
    "plain": ({"prompt": "Q?", "chosen": "a", "rejected": "b"}, ["user: Q?"]),
    "system column": ({"system": "S", "prompt": "Q?", "chosen": "a", "rejected": "b"}, ["system: S", "user: Q?"]),
    "prompt and chosen overlap": ({"prompt": ["system: S", "user: Q?"], "chosen": ["user: Q?", "assistant: a"], "rejected": ["user: Q?", "assistant: b"]}, ["system: S", "user: Q?"]),
    "prompt is where chosen begins": ({"prompt": ["user: Q?"], "chosen": ["user: Q?", "assistant: x", "user: R?", "assistant: a"], "rejected": ["user: Q?", "assistant: x", "user: R?", "assistant: b"]}, ["user: Q?", "assistant: x", "user: R?"]),
    "chosen goes on": ({"prompt": ["user: Q?", "assistant: x"], "chosen": ["user: R?", "assistant: a"], "rejected": ["user: R?", "assistant: b"]}, ["user: Q?", "assistant: x", "user: R?"]),
    "text and messages": ({"prompt": "Q?", "chosen": ["user: Q?", "assistant: a"], "rejected": ["user: Q?", "assistant: b"]}, ["user: Q?"]),
    "another prompt": ({"prompt": "Other?", "chosen": ["user: Q?", "assistant: a"], "rejected": ["user: Q?", "assistant: b"]}, "have a prompt that is not what chosen begins with"),
    "another list": ({"prompt": ["user: Other?"], "chosen": ["user: Q?", "assistant: a"], "rejected": ["user: Q?", "assistant: b"]}, "have a prompt that is not what chosen begins with"),
    "two systems": ({"system": "S", "chosen": ["system: T", "user: Q?", "assistant: a"], "rejected": ["system: T", "user: Q?", "assistant: b"]}, "have a system column and another system message"),
    "unknown role": ({"prompt": ["narrator: S", "user: Q?"], "chosen": ["assistant: a"], "rejected": ["assistant: b"]}, "the unknown role 'narrator'"),
}  # fmt: skip


@pytest.mark.parametrize("case", PROMPTS)
def test_what_is_said_before_a_pair_of_answers(tmp_path, case):
    """Messages are written "role: content" here."""

    def spread(value):
        return (
            [dict(zip(("role", "content"), one.split(": "), strict=True)) for one in value]
            if isinstance(value, list)
            else value
        )

    row, wanted = PROMPTS[case]
    (tmp_path / "a.jsonl").write_text(jsonl([{name: spread(value) for name, value in row.items()}] * 3))
    if isinstance(wanted, str):
        with pytest.raises(DataError, match=wanted):
            preferences.pairs(str(tmp_path / "a.jsonl"))
    else:
        train, _ = preferences.pairs(str(tmp_path / "a.jsonl"))
        assert train[0]["messages"] == spread(wanted)


def test_a_held_out_question_is_not_trained_on_in_other_words(tmp_path):
    """Neither a repetition of it nor a wording with the same long answer."""
    long = [f"The capital of country number {n} is a city." for n in range(40)]
    rows = [{"prompt": f"{ask} {n}{mark}", "answer": text} for n, text in enumerate(long) for ask, mark in (("What is the capital of", "?"), ("Name the capital of", "."), ("WHAT is the capital of", ""))]  # fmt: skip
    rows += [{"prompt": f"Is {n} even?", "answer": "yes" if n % 2 else "no"} for n in range(60)]
    (tmp_path / "a.jsonl").write_text(jsonl(rows))
    train, held_out = data.instructions(str(tmp_path / "a.jsonl"))
    assert len(held_out) >= 8 and len(train) + len(held_out) == len(rows)
    asked = set(map(data.normalised, train["prompt"]))
    told = {data.normalised(text) for text in train["answer"] if len(text.split()) >= splits.WORDS}
    for row in held_out:
        assert data.normalised(row["prompt"]) not in asked and data.normalised(row["answer"]) not in told
    assert len(data.summary(train, held_out)) > 20


def test_held_out_pairs_share_no_text_with_those_that_train():
    for source in ("lab", "all"):
        train, held_out = preferences.pairs(source)
        told = {data.normalised(row[side]) for row in train for side in ("chosen", "rejected")}
        asked = set(map(data.normalised, train["prompt"]))
        assert len(held_out) >= 100
        for row in held_out:
            assert not {data.normalised(row[side]) for side in ("chosen", "rejected")} & told
            assert data.normalised(row["prompt"]) not in asked


def test_rows_are_linked_by_any_shared_key():
    assert splits.linked([["a"], ["b"], ["a", "b"], ["c"], []]) == [0, 0, 0, 1, 2]


def test_nothing_of_a_files_order_or_repetition_is_lost(tmp_path):
    (tmp_path / "a.jsonl").write_text(jsonl(ROWS * 3))
    train, held_out = data.instructions(str(tmp_path / "a.jsonl"))
    assert sorted([*train["row"], *held_out["row"]]) == list(range(1, 37))
    assert not set(train["prompt"]) & set(held_out["prompt"]) and "24 are repetitions" in data.summary(train, held_out)


def test_the_smoke_tokenizer_writes_what_it_did_for_plain_conversations():
    _, tokenizer = models.load("smoke")
    assert tokenizer.apply_chat_template([USER, GOOD], tokenize=False) == (
        "<|user|> What is a river?<|assistant|> A stream of water.<|end|>"
    )
